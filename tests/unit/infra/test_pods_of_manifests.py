"""What `make test-cluster` makes of the rendered manifests: what runs in a pod is what the manifest says."""

import copy
from typing import Any

import pytest

from kuberay_manifests import REPOSITORY, Resource, cluster_spec, find, load, render
from pods.manifest import GCS_FOLDER, Manifests, PodPlan, RayNodePlan, deployment_plan, ray_node_plan, ray_start_flags

OVERLAY = REPOSITORY / "tests" / "pods" / "overlay"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
SECRETS = {"warren-object-storage": KEYS, "warren-api-keys": {"digests": "digest"}}


def node(kind: str, name: str, group: str, resources: list[Resource] | None = None) -> PodPlan:
    manifests = Manifests(resources or render(OVERLAY), SECRETS)
    spec = cluster_spec(find(list(manifests.resources), kind, name))
    return ray_node_plan(manifests, spec, RayNodePlan("c", group, "c-head-svc", "token"))


def ray_start(plan: PodPlan) -> list[str]:
    """The words of `ray start` in a plan's command."""
    shell, option, script = plan.command
    assert (shell, option) == ("bash", "-c")
    return str(script).partition("; ")[2].split()


def test_limits_become_flags_and_parameters_go_before_them() -> None:
    head, worker = (ray_start(node("RayJob", "warren-pretrain", group)) for group in ("headgroup", "workers"))
    assert head[:3] == ["ray", "start", "--head"]
    assert {"--num-cpus=0", f"--memory={3 << 30}", "--dashboard-host=0.0.0.0", "--block"} <= set(head)
    assert {"--num-cpus=2", f"--memory={4 << 30}", "--address=c-head-svc:6379"} <= set(worker)
    assert "--no-monitor" not in head  # a job's cluster does not autoscale
    assert "--no-monitor" in ray_start(node("RayService", "warren-endpoint", "headgroup"))


def test_gpus_and_parts_of_cpus_become_flags() -> None:
    (group,) = cluster_spec(find(load("gpu"), "RayService"))["workerGroupSpecs"]
    assert "--num-gpus=1" in ray_start_flags({}, group, RayNodePlan("c", group["groupName"], "h", "t"))
    group = copy.deepcopy(group)
    group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1500m"
    assert "--num-cpus=2" in ray_start_flags({}, group, RayNodePlan("c", group["groupName"], "h", "t"))


def test_the_object_store_fits_into_shared_memory() -> None:
    for kind, name, group in (("RayJob", "warren-pretrain", "workers"), ("RayService", "warren-endpoint", "replicas")):
        plan = node(kind, name, group)
        (size,) = (int(word.partition("=")[2]) for word in ray_start(plan) if word.startswith("--object-store-memory="))
        (shared,) = (volume for volume in plan.volumes if volume.path == "/dev/shm")
        assert 0 < size < shared.size_bytes


def test_the_environment_is_that_of_config_maps_secrets_and_kuberay() -> None:
    environment = node("RayJob", "warren-pretrain", "workers").environment
    assert environment["WARREN_RECIPE"] == "/etc/warren/small.yaml"
    assert environment["RAY_grpc_client_keepalive_time_ms"] == "2000"
    assert environment["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == ("token", "token")
    assert environment["RAY_ADDRESS"] == "c-head-svc:6379"
    assert "RAY_gcs_storage" not in environment


def test_a_head_that_is_replaced_keeps_its_state_in_a_volume() -> None:
    head, replica = (node("RayService", "warren-endpoint", group) for group in ("headgroup", "replicas"))
    assert (head.environment["RAY_gcs_storage"], head.environment["RAY_gcs_storage_path"]) == ("rocksdb", GCS_FOLDER)
    assert GCS_FOLDER in {volume.path for volume in head.volumes}
    assert GCS_FOLDER not in {volume.path for volume in replica.volumes}
    assert replica.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"


def test_user_folders_probes_and_the_way_out_are_the_manifests() -> None:
    plan = node("RayService", "warren-endpoint", "replicas")
    assert (plan.user, plan.read_only_root, plan.working_dir, plan.grace_s) == (1000, True, "/opt/warren", 660)
    volumes = {volume.path: volume for volume in plan.volumes}
    assert volumes["/etc/warren-api-keys"].files == {"digests": "digest"}
    assert "small.yaml" in (volumes["/etc/warren"].files or {})
    assert (volumes["/tmp"].size_bytes, volumes["/tmp"].files) == (0, None)
    assert plan.readiness is not None
    assert (plan.readiness.path, plan.readiness.port, plan.readiness.failures) == ("/-/healthz", 8000, 1)
    assert plan.liveness is not None
    assert plan.liveness.timeout_s == 10
    assert "drain-node" in plan.pre_stop[-1]


def test_storage_runs_as_its_deployment_says() -> None:
    plan = deployment_plan(Manifests(render(OVERLAY), SECRETS), "warren-object-storage")
    assert plan.command[0] == "weed"
    assert plan.environment["AWS_ACCESS_KEY_ID"] == "key"
    assert {volume.path for volume in plan.volumes} == {"/data", "/tmp"}
    assert plan.readiness is not None
    assert (plan.readiness.port, plan.readiness.path) == (9000, None)


def test_a_pod_whose_config_map_has_another_name_never_starts() -> None:
    def renamed(resource: Resource) -> dict[str, Any]:
        return {**resource, "metadata": {**resource["metadata"], "name": resource["metadata"]["name"] + "-2"}}

    resources = [renamed(each) if each["kind"] == "ConfigMap" else each for each in render(OVERLAY)]
    with pytest.raises(LookupError, match="there is no ConfigMap 'warren-environment-"):
        node("RayJob", "warren-pretrain", "workers", resources)
