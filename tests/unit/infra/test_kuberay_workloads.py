"""What the jobs, the endpoint and each overlay promise."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kuberay_manifests import (
    GPU_OVERLAYS,
    JOBS,
    KUBERAY,
    OVERLAYS,
    REPOSITORY,
    Resource,
    cluster_spec,
    find,
    load,
    pod_templates,
    quantity,
    ray_resources,
    settings,
)
from warren.cluster.serve.endpoint_config import FRONT_IMPORT_PATH
from warren.config import Resources, load_config
from warren.config.folders import config_folders
from warren.storage import Location
from warren_serve.endpoint_file import EndpointFile, with_endpoint_file
from warren_serve.front import FrontSettings

GPU = "nvidia.com/gpu"
OUTCOMES = ("SUCCEEDED", "FAILED")
DEV = KUBERAY / "overlays" / "cpu-dev" / "kustomization.yaml"

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
each_gpu_overlay = pytest.mark.parametrize("overlay", GPU_OVERLAYS)


def job(overlay: str, name: str) -> Resource:
    return find(load(overlay), "RayJob", f"warren-{name}")


def endpoint(service: Resource) -> FrontSettings:
    """Return the settings that the endpoint gets: its application's args, and the endpoint file that they name."""
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return FrontSettings.parse(with_endpoint_file(application["args"]))


def asked(resource: Resource, name: str) -> float:
    """Return how much of a resource a cluster asks for with every group at its most."""
    cluster = cluster_spec(resource)
    beside = cluster.get("autoscalerOptions", {}).get("resources", {}).get("requests", {})
    groups = [(1, cluster["headGroupSpec"]), *((each["maxReplicas"], each) for each in cluster["workerGroupSpecs"])]
    pods = [(count, group["template"]["spec"]["containers"][0]["resources"]["requests"]) for count, group in groups]
    total = quantity(beside.get(name, "0"))
    for count, requests in pods:
        total += count * quantity(requests.get(name, "0"))
    return total


def resources_of(overlay: str) -> Resources:
    """Return the resources that an overlay's jobs are given."""
    name = settings(load(overlay))["WARREN_RESOURCES"]
    folders = [REPOSITORY / "jobs" / "resources"]
    if name.startswith("/etc/warren/"):
        (path,) = KUBERAY.rglob(Path(name).name)
        name = str(path)
    return load_config(Resources, name, folders)


# Jobs


@each_overlay
@pytest.mark.parametrize("name", JOBS)
def test_the_entrypoint_exists(overlay: str, name: str) -> None:
    environment = settings(load(overlay))
    program, script, *options = shlex.split(job(overlay, name)["spec"]["entrypoint"])
    assert (program, script) == ("python", f"jobs/{name}.py")
    assert (REPOSITORY / script).is_file()
    more = ["--no-deploy"] if name == "release" else []  # its own cluster is not the endpoint's
    assert options == ["--recipe", "$WARREN_RECIPE", "--resources", "$WARREN_RESOURCES", *more]
    assert (REPOSITORY / "jobs" / "recipes" / f"{environment['WARREN_RECIPE']}.yaml").is_file()
    assert resources_of(overlay).min_workers > 0


@each_overlay
@pytest.mark.parametrize("name", JOBS)
def test_the_operator_asks_for_the_status_of_a_job(overlay: str, name: str) -> None:
    assert job(overlay, name)["spec"]["submissionMode"] == "HTTPMode"  # the others trust a log stream (kuberay#4921)


@each_overlay
@pytest.mark.parametrize("name", JOBS)
def test_no_gpu_waits_for_a_job_that_has_ended(overlay: str, name: str) -> None:
    spec = job(overlay, name)["spec"]
    if overlay == "gpu-kueue":
        assert spec["shutdownAfterJobFinishes"] is True  # Kueue admits nothing else
        assert spec.get("ttlSecondsAfterFinished", 0) == 0
        return
    rules = [(rule["policy"], rule["condition"]) for rule in spec["deletionStrategy"]["deletionRules"]]
    for status in OUTCOMES:
        assert ("DeleteWorkers", {"jobStatus": status, "ttlSeconds": 0}) in rules
    ended = [condition for policy, condition in rules if policy == "DeleteCluster"]
    assert {each.get("jobStatus", each.get("jobDeploymentStatus")) for each in ended} == {*OUTCOMES, "Failed"}


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_jobs_of_kueue_are_in_its_queue(overlay: str) -> None:
    for name in JOBS:
        queue = job(overlay, name)["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        assert queue == ("warren" if overlay == "gpu-kueue" else None)


# The endpoint


@each_overlay
def test_the_endpoint_is_of_one_release_and_asks_for_keys(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_STORAGE", "s3://b/warren")
    service = find(load(overlay), "RayService")
    parsed = endpoint(service)
    assert parsed.place == (Location("s3://b/warren"), "demo"), "no version, so it never changes"
    assert parsed.api_keys_file is not None
    folder = str(Path(parsed.api_keys_file).parent)
    for template in pod_templates(service):
        if template.role == "worker":
            (name,) = (each["name"] for each in template.container["volumeMounts"] if each["mountPath"] == folder)
            (volume,) = (each for each in template.pod["spec"]["volumes"] if each["name"] == name)
            assert volume["secret"] == {"secretName": "warren-api-keys"}  # not optional: without keys, no endpoint


@each_overlay
def test_the_endpoint_has_two_of_what_takes_requests(overlay: str) -> None:
    service = find(load(overlay), "RayService")
    assert endpoint(service).ingress_min_replicas >= 2
    (group,) = cluster_spec(service)["workerGroupSpecs"]
    assert group["minReplicas"] >= 2
    (spread,) = group["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"  # a required one would count machines that training fills
    assert (
        spread["labelSelector"]["matchLabels"].items()
        <= {
            **group["template"]["metadata"]["labels"],
            "ray.io/node-type": "worker",
        }.items()
    )
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True


@each_overlay
def test_the_endpoint_has_room_for_a_rollout(overlay: str) -> None:
    service = find(load(overlay), "RayService")
    (group,) = cluster_spec(service)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    parsed = endpoint(service)
    assert parsed.max_replicas is not None
    # A new ingress starts beside the old one, and a candidate's engines beside those that serve; the controller is one.
    cpus = 2 * (parsed.ingress_max_replicas * parsed.ingress_num_cpus + parsed.max_replicas * parsed.num_cpus)
    needed = {"cpu": cpus + parsed.ingress_num_cpus, GPU: 2 * parsed.max_replicas * parsed.num_gpus}
    for name, amount in needed.items():
        assert group["maxReplicas"] * quantity(limits.get(name, "0")) >= amount


@each_overlay
def test_the_endpoint_file_and_the_manifest_say_the_same_of_serve(overlay: str) -> None:
    config = yaml.safe_load(find(load(overlay), "RayService")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert application["import_path"] == FRONT_IMPORT_PATH
    file = load_config(EndpointFile, application["args"]["endpoint"], config_folders("endpoints"))
    assert (application["name"], application["route_prefix"]) == (file.application, file.route_prefix)
    declared = file.serve.to_config()
    assert {key: config[key] for key in ("proxy_location", "http_options")} == {
        key: declared[key] for key in ("proxy_location", "http_options")
    }


@each_overlay
def test_no_stream_is_cut_by_a_shutdown(overlay: str) -> None:
    service = find(load(overlay), "RayService")
    longest_stream_s = endpoint(service).drain_timeout_s
    assert service["spec"]["rayClusterDeletionDelaySeconds"] >= longest_stream_s
    for group in cluster_spec(service)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        drain_s = int(re.findall(r"--deadline-remaining-seconds (\d+)", script)[0])
        assert longest_stream_s <= drain_s < pod["terminationGracePeriodSeconds"]


@each_gpu_overlay
def test_the_endpoint_outlives_its_head(overlay: str) -> None:
    service = find(load(overlay), "RayService")
    assert cluster_spec(service)["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    for role in ("head", "worker"):
        budgets = [each["spec"] for each in load(overlay) if each["kind"] == "PodDisruptionBudget"]
        (budget,) = (each for each in budgets if each["selector"]["matchLabels"]["ray.io/node-type"] == role)
        assert budget["minAvailable"] == 1  # Kubernetes takes no other form for these pods


# Overlays


@each_gpu_overlay
def test_a_training_pod_is_a_whole_machine(overlay: str) -> None:
    resources = resources_of(overlay)
    for name in ("pretrain", "finetune", "evaluate"):
        (group,) = cluster_spec(job(overlay, name))["workerGroupSpecs"]
        spec = group["template"]["spec"]
        limits = spec["containers"][0]["resources"]["limits"]
        assert limits[GPU] == "8"
        assert spec["nodeSelector"]["nvidia.com/gpu.present" if overlay != "gpu-spot" else "karpenter.sh/capacity-type"]
        assert GPU in {each["key"] for each in spec["tolerations"]}
        if name != "evaluate":  # it has room for every rank, and CPUs are left for the tasks that read
            assert group["replicas"] * 8 == resources.max_workers * resources.gpus_per_worker
            per_pod = 8 / resources.gpus_per_worker * resources.cpus_per_worker
            assert quantity(limits["cpu"]) > per_pod
    for name in ("ingest", "curate", "release"):
        assert asked(job(overlay, name), GPU) == 0


@each_gpu_overlay
def test_heads_and_the_workspace_take_no_gpu(overlay: str) -> None:
    for resource in ray_resources(load(overlay)):
        for template in pod_templates(resource):
            if template.role == "head" or resource["kind"] == "RayCluster":
                assert GPU not in template.container["resources"]["limits"]
                assert "tolerations" not in template.pod["spec"]


@each_gpu_overlay
def test_the_endpoint_is_pushed_out_last(overlay: str) -> None:
    values = {each["metadata"]["name"]: each["value"] for each in load(overlay) if each["kind"] == "PriorityClass"}
    assert values["warren-endpoint"] > values["warren-training"] > values["warren-batch"]
    for resource in ray_resources(load(overlay)):
        expected = {"RayService": "warren-endpoint", "RayCluster": "warren-batch"}.get(resource["kind"], "warren-batch")
        if resource["metadata"]["name"] in ("warren-pretrain", "warren-finetune"):
            expected = "warren-training"
        assert {each.pod["spec"]["priorityClassName"] for each in pod_templates(resource)} == {expected}


def test_rdma_training_spans_two_machines() -> None:
    assert resources_of("gpu-rdma").max_workers == 16
    for name in ("pretrain", "finetune"):
        (group,) = cluster_spec(job("gpu-rdma", name))["workerGroupSpecs"]
        assert group["replicas"] == 2
        container = group["template"]["spec"]["containers"][0]
        assert any(name.startswith("rdma/") for name in container["resources"]["limits"])
        assert {"NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"} <= {each["name"] for each in container["env"]}


def test_spot_training_is_elastic() -> None:
    resources = resources_of("gpu-spot")
    assert (resources.min_workers, resources.max_workers) == (8, 16)
    (group,) = cluster_spec(job("gpu-spot", "pretrain"))["workerGroupSpecs"]
    assert group["replicas"] == 2
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] <= 120  # no cloud gives more notice


def test_cpu_dev_brings_its_storage_and_asks_for_no_gpu() -> None:
    resources = load("cpu-dev")
    assert "nvidia" not in yaml.safe_dump_all(resources)
    service = find(resources, "Service", "warren-object-storage")
    deployment = find(resources, "Deployment", "warren-object-storage")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    port = service["spec"]["ports"][0]["port"]
    assert settings(resources)["AWS_ENDPOINT_URL"] == f"http://{service['metadata']['name']}:{port}"
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert f"-s3.port={port}" in container["command"]
    bucket = settings(resources)["WARREN_STORAGE"].removeprefix("s3://").split("/")[0]
    assert f"-bucket={bucket}" in container["command"]
    assert {"secretRef": {"name": "warren-object-storage"}} in container["envFrom"]


def test_cpu_dev_asks_for_what_it_says() -> None:
    resources = load("cpu-dev")
    storage = find(resources, "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    jobs = [job("cpu-dev", name) for name in JOBS]
    measured = {
        name: {
            "storage": quantity(storage[name]),
            "workspace": asked(find(resources, "RayCluster"), name),
            "one job": max(asked(each, name) for each in jobs),
            "endpoint": asked(find(resources, "RayService"), name),
        }
        for name in ("cpu", "memory")
    }
    stated = re.findall(r"^#   (\w+(?: \w+)?) +([\d.]+) CPU +([\d.]+) GiB$", DEV.read_text(), re.MULTILINE)
    assert [row[0] for row in stated] == ["storage", "workspace", "one job", "endpoint", "together"]
    for part, cpus, gibibytes in stated:
        expected = {
            name: sum(parts.values()) if part == "together" else parts[part] for name, parts in measured.items()
        }
        assert (float(cpus), float(gibibytes)) == (expected["cpu"], expected["memory"] / 2**30), part
    together = stated[-1]
    assert f"{together[1]} CPUs and {together[2]} GiB" in (REPOSITORY / "infra" / "README.md").read_text()
