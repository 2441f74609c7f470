"""Every manifest is accepted by the API server, the operator and Serve, and keeps the platform's promises."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from crd_schema import CrdSchemas
from kuberay_manifests import (
    BASE,
    KUBERAY,
    OVERLAYS,
    REPOSITORY,
    SOURCES,
    Resource,
    cluster_spec,
    find,
    load,
    pod_templates,
    ray_resources,
    render,
)
from operator_rules import operator_errors
from serve_config import serve_config_errors

KUBERNETES_VERSION = "1.34"
CREDENTIAL_NAME = re.compile(r"secret|token|password|passwd|credential|access_key|api_?key", re.IGNORECASE)
FAILURE_DETECTION = {
    "RAY_grpc_client_keepalive_time_ms",
    "RAY_grpc_client_keepalive_timeout_ms",
    "RAY_health_check_period_ms",
    "RAY_health_check_timeout_ms",
    "RAY_health_check_failure_threshold",
}
UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}

each_source = pytest.mark.parametrize("source", SOURCES)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@each_source
def test_custom_resources_pass_their_crd(source: str, crd_schemas: CrdSchemas) -> None:
    resources = ray_resources(load(source))
    assert {resource["kind"] for resource in resources} == {"RayCluster", "RayJob", "RayService"}
    for resource in resources:
        assert crd_schemas[resource["apiVersion"], resource["kind"]].errors(resource) == []


@each_source
def test_core_resources_pass_their_schema(source: str) -> None:
    resources = load(source)
    for resource in resources:
        if resource not in ray_resources(resources):
            kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)


@each_source
def test_pod_templates_pass_the_core_schema(source: str) -> None:
    for resource in ray_resources(load(source)):
        for role, pod in pod_templates(resource):
            as_pod = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": role, **pod["metadata"]}}
            kubernetes_validate.validate(as_pod, KUBERNETES_VERSION, strict=True)


@each_source
def test_the_operator_accepts_them(source: str) -> None:
    for resource in ray_resources(load(source)):
        assert operator_errors(resource) == []


@each_source
def test_serve_accepts_the_config(source: str) -> None:
    assert serve_config_errors(find(load(source), "RayService")["spec"]["serveConfigV2"]) == []


@each_source
def test_the_endpoint_has_room_for_a_rollout(source: str) -> None:
    service = find(load(source), "RayService")
    (group,) = cluster_spec(service)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for resource, name in (("num_cpus", "cpu"), ("num_gpus", "nvidia.com/gpu")):
        needed = 0.0
        for deployment in _deployments(service):
            replicas = deployment["autoscaling_config"]["max_replicas"] * (1 + deployment["max_surge_percent"] / 100)
            needed += replicas * deployment["ray_actor_options"].get(resource, 0)
        assert group["maxReplicas"] * _quantity(limits.get(name, "0")) >= needed


@each_source
def test_no_stream_is_cut_by_a_shutdown(source: str) -> None:
    service = find(load(source), "RayService")
    longest_stream_s = max(each["graceful_shutdown_timeout_s"] for each in _deployments(service))
    assert service["spec"]["rayClusterDeletionDelaySeconds"] >= longest_stream_s
    for group in cluster_spec(service)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        drain_s = int(re.findall(r"--deadline-remaining-seconds (\d+)", script)[0])
        assert longest_stream_s <= drain_s < pod["terminationGracePeriodSeconds"]


@each_source
def test_pods_are_confined_and_sized(source: str) -> None:
    for resource in ray_resources(load(source)):
        for role, pod in pod_templates(resource):
            security = pod["spec"]["securityContext"]
            assert (security["runAsNonRoot"], security["runAsUser"] > 0) == (True, True)
            for container in pod["spec"]["containers"]:
                confined = container["securityContext"]
                assert confined == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
                requests, limits = container["resources"]["requests"], container["resources"]["limits"]
                # More memory than requested is taken from a neighbour, and the kernel picks who pays.
                assert requests["memory"] == limits["memory"], role
                assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), role


@each_source
def test_ray_nodes_have_shared_memory_and_probes(source: str) -> None:
    for resource in ray_resources(load(source)):
        for template in pod_templates(resource):
            if template.role == "submitter":
                continue
            container = template.container
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in template.pod["spec"]["volumes"]}
            shared = volumes[mounts["/dev/shm"]]["emptyDir"]
            assert shared["medium"] == "Memory"
            assert _quantity(shared["sizeLimit"]) < _quantity(container["resources"]["limits"]["memory"])
            assert container["livenessProbe"]["timeoutSeconds"] >= 5  # shorter ones kill busy pods
            assert container["readinessProbe"]["httpGet"]["path"] in ("/api/healthz", "/-/healthz")


@each_source
def test_endpoint_workers_are_ready_when_their_proxy_is(source: str) -> None:
    service = find(load(source), "RayService")
    for role, pod in pod_templates(service):
        if role == "worker":
            probe = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]
            assert (probe["path"], probe["port"]) == ("/-/healthz", 8000)


@each_overlay
def test_every_container_notices_a_lost_node(overlay: str) -> None:
    resources = render(KUBERAY / overlay)
    settings = {item["metadata"]["name"]: item["data"] for item in resources if item["kind"] == "ConfigMap"}
    for resource in ray_resources(resources):
        sources = [template.container["envFrom"] for template in pod_templates(resource)]
        if "autoscalerOptions" in cluster_spec(resource):
            sources.append(cluster_spec(resource)["autoscalerOptions"]["envFrom"])
        for env_from in sources:
            names = [item["configMapRef"]["name"] for item in env_from if "configMapRef" in item]
            assert set().union(*(settings[name] for name in names)) >= FAILURE_DETECTION


@each_overlay
def test_ray_nodes_know_where_storage_is(overlay: str) -> None:
    resources = render(KUBERAY / overlay)
    (environment,) = (
        item
        for item in resources
        if item["kind"] == "ConfigMap" and item["metadata"]["name"].startswith("warren-environment")
    )
    assert environment["data"].keys() == {"WARREN_STORAGE", "AWS_REGION", "AWS_ENDPOINT_URL"}
    for resource in ray_resources(resources):
        for template in pod_templates(resource):
            if template.role == "submitter":
                continue
            env_from = template.container["envFrom"]
            assert {"configMapRef": {"name": environment["metadata"]["name"]}} in env_from
            assert {"secretRef": {"name": "warren-object-storage"}} in env_from


@each_overlay
def test_credentials_come_only_from_secrets(overlay: str) -> None:
    resources = render(KUBERAY / overlay)
    assert all(resource["kind"] != "Secret" for resource in resources)
    for resource in resources:
        assert [*_plain_credentials(resource)] == []


def test_the_secret_example_holds_no_secret() -> None:
    example = yaml.safe_load((BASE / "secret.example.yaml").read_text())
    assert set(example["stringData"].values()) == {"replace-me"}
    assert example["stringData"].keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert "secret.example.yaml" not in yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]


def test_renamed_objects_reach_into_custom_resources(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [os.path.relpath(KUBERAY / "overlays/cpu-dev", tmp_path.resolve())],
                "namePrefix": "team-",
                "secretGenerator": [{"name": "warren-object-storage", "literals": ["AWS_ACCESS_KEY_ID=x"]}],
            }
        )
    )
    resources = render(tmp_path)
    made = {item["metadata"]["name"] for item in resources if item["kind"] in ("ConfigMap", "Secret")}
    used = {name for resource in ray_resources(resources) for name in _references(resource)}
    assert used == made
    assert all(name.startswith("team-") for name in used)


@each_overlay
def test_images_are_pinned_and_equal(overlay: str) -> None:
    images = {
        template.container["image"]
        for resource in ray_resources(render(KUBERAY / overlay))
        for template in pod_templates(resource)
    }
    assert len(images) == 1
    if overlay != "base":
        assert re.fullmatch(r"\S+/warren:\d+\.\d+\.\d+-(cpu|gpu)", images.pop())


def test_the_gpu_overlay_trains_on_eight_gpus() -> None:
    resources = render(KUBERAY / "overlays/gpu")
    (group,) = cluster_spec(find(resources, "RayJob"))["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 8
    for resource in ray_resources(resources):
        for role, pod in pod_templates(resource):
            gpus = pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            tolerated = [toleration["key"] for toleration in pod["spec"].get("tolerations", [])]
            assert (gpus, tolerated) == (("1", ["nvidia.com/gpu"]) if role == "worker" else (None, []))


def test_the_cpu_overlay_asks_for_no_gpu() -> None:
    assert "nvidia" not in yaml.safe_dump_all(render(KUBERAY / "overlays/cpu-dev"))


@each_source
def test_the_entrypoint_exists(source: str) -> None:
    program, script, *options = shlex.split(find(load(source), "RayJob")["spec"]["entrypoint"])
    assert program == "python"
    assert (REPOSITORY / script).is_file()
    named = dict(zip(options[::2], options[1::2], strict=True))
    assert (REPOSITORY / "jobs" / "recipes" / f"{named['--recipe']}.yaml").is_file()
    assert (REPOSITORY / "jobs" / "resources" / f"{named['--resources']}.yaml").is_file()


def _deployments(service: Resource) -> list[dict[str, Any]]:
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert [deployment["name"] for deployment in application["deployments"]] == ["Ingress", "Engine"]
    return list(application["deployments"])


def _quantity(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def _plain_credentials(node: Any) -> Iterator[str]:
    """Yield names of variables and keys that look like credentials and carry their value in the open."""
    if isinstance(node, list):
        for item in node:
            yield from _plain_credentials(item)
    elif isinstance(node, dict):
        if CREDENTIAL_NAME.search(str(node.get("name", ""))) and "value" in node:
            yield node["name"]
        for key, value in node.items():
            if key == "runtimeEnvYAML":
                yield from _plain_credentials(yaml.safe_load(value))
            elif isinstance(value, str) and CREDENTIAL_NAME.search(key) and key != "secretName":
                yield key
            else:
                yield from _plain_credentials(value)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("configMapRef", "secretRef", "configMapKeyRef", "secretKeyRef"):
                yield value["name"]
            else:
                yield from _references(value)
