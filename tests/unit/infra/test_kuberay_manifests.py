"""Every overlay is accepted by the API server, the operator and Serve, and names in it are those of what it makes."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from crd_schema import CrdSchemas
from kuberay_manifests import (
    BASE,
    JOBS,
    KUBERAY,
    OVERLAYS,
    REPOSITORY,
    Resource,
    cluster_spec,
    find,
    load,
    pod_templates,
    ray_resources,
    render,
    settings,
)
from operator_rules import operator_errors, required_gates
from serve_config import serve_config_errors

KUBERNETES_VERSION = "1.34"
CREDENTIAL_NAME = re.compile(r"secret|token|password|passwd|credential|access_key|api_?key", re.IGNORECASE)
REFERENCE_NAMES = {"secretName", "serviceAccountName", "automountServiceAccountToken", "api_keys_file"}
EMBEDDED_STORAGE = "GCSFaultToleranceEmbeddedStorage"
# Kinds of other operators, whose schemas are not at hand.
UNKNOWN_GROUPS = ("monitoring.coreos.com/",)

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def with_component(tmp_path: Path, component: str, **more: Any) -> list[Resource]:
    """Render an overlay of somebody's own: cpu-dev with one component more."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(KUBERAY / "overlays" / "cpu-dev", tmp_path.resolve())],
        "components": [os.path.relpath(KUBERAY / "components" / component, tmp_path.resolve())] if component else [],
        **more,
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(tmp_path)


@each_overlay
def test_an_overlay_has_every_part(overlay: str) -> None:
    resources = ray_resources(load(overlay))
    assert {(each["kind"], each["metadata"]["name"]) for each in resources} == {
        ("RayCluster", "warren-workspace"),
        ("RayService", "warren-endpoint"),
        *(("RayJob", f"warren-{job}") for job in JOBS),
    }
    assert all(each["kind"] != "PodTemplate" for each in load(overlay))  # those are the source of the pods, no objects


@each_overlay
def test_a_part_is_applied_by_its_label(overlay: str) -> None:
    for resource in load(overlay):
        labels = resource["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "warren"
        if resource["kind"] in ("RayJob", "RayService", "RayCluster"):
            assert resource["metadata"]["name"] == f"warren-{labels['app.kubernetes.io/component']}"


@each_overlay
def test_custom_resources_pass_their_crd(overlay: str, crd_schemas: CrdSchemas) -> None:
    for resource in ray_resources(load(overlay)):
        assert crd_schemas[resource["apiVersion"], resource["kind"]].errors(resource) == []


@each_overlay
def test_core_resources_pass_their_schema(overlay: str) -> None:
    resources = load(overlay)
    for resource in resources:
        if resource not in ray_resources(resources):
            kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)


@each_overlay
def test_pod_templates_pass_the_core_schema(overlay: str) -> None:
    for resource in ray_resources(load(overlay)):
        for role, pod in pod_templates(resource):
            as_pod = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": role, **pod["metadata"]}}
            kubernetes_validate.validate(as_pod, KUBERNETES_VERSION, strict=True)


@each_overlay
def test_the_operator_accepts_them(overlay: str) -> None:
    for resource in ray_resources(load(overlay)):
        assert operator_errors(resource) == []


@each_overlay
def test_gates_of_the_operator_are_documented(overlay: str) -> None:
    gates = set().union(*(required_gates(resource) for resource in ray_resources(load(overlay))))
    assert gates == (set() if overlay == "cpu-dev" else {EMBEDDED_STORAGE})
    readme = (REPOSITORY / "infra" / "README.md").read_text()
    assert all(gate in readme for gate in gates)


@each_overlay
def test_serve_accepts_the_config(overlay: str) -> None:
    assert serve_config_errors(find(load(overlay), "RayService")["spec"]["serveConfigV2"]) == []


@pytest.mark.parametrize("component", ["monitoring", "head-fault-tolerance-redis", "head-fault-tolerance", "priority"])
def test_components_pass_too(component: str, tmp_path: Path, crd_schemas: CrdSchemas) -> None:
    resources = with_component(tmp_path, component)
    for resource in resources:
        if resource in ray_resources(resources):
            assert crd_schemas[resource["apiVersion"], resource["kind"]].errors(resource) == []
            assert operator_errors(resource) == []
        elif not resource["apiVersion"].startswith(UNKNOWN_GROUPS):
            kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)


def test_logs_are_shipped_beside_ray_not_instead_of_it(tmp_path: Path, crd_schemas: CrdSchemas) -> None:
    parts = [KUBERAY / "components" / name for name in ("gpu", "log-shipping", "pods")]
    kustomization = {
        "resources": [os.path.relpath(BASE, tmp_path.resolve())],
        "components": [os.path.relpath(part, tmp_path.resolve()) for part in parts],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    for resource in ray_resources(render(tmp_path)):
        assert crd_schemas[resource["apiVersion"], resource["kind"]].errors(resource) == []
        for role, pod in pod_templates(resource):
            ray, shipper = pod["spec"]["containers"]
            assert (ray["name"], shipper["name"]) == (f"ray-{role}", "fluent-bit")  # the operator takes the first
            assert shipper["securityContext"] == ray["securityContext"]
            mounts = {each["name"]: each["mountPath"] for each in ray["volumeMounts"]}
            (logs,) = (each for each in shipper["volumeMounts"] if each["name"] != "fluent-bit")
            assert logs == {"name": logs["name"], "mountPath": mounts[logs["name"]], "readOnly": True}
            # With an autoscaler the operator mounts `ray-logs` at /tmp/ray of the head, over what /tmp has there.
            assert logs["mountPath"] == ("/tmp/ray" if role == "head" else "/tmp")


def test_prometheus_finds_the_pods_and_reaches_their_ports(tmp_path: Path) -> None:
    resources = with_component(tmp_path, "monitoring")
    policy = find(resources, "NetworkPolicy", "warren-monitoring")
    open_ports = {port["port"] for port in policy["spec"]["ingress"][0]["ports"]}
    for role in ("head", "worker"):
        monitor = find(resources, "PodMonitor", f"warren-{role}s")
        assert monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == role
        names = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        for resource in ray_resources(resources):
            for template in pod_templates(resource):
                if template.role == role:
                    ports = {port["name"]: port["containerPort"] for port in template.container["ports"]}
                    assert names <= ports.keys()
                    assert {ports[name] for name in names} <= open_ports


@each_overlay
def test_storage_is_named_in_one_place(overlay: str) -> None:
    resources = load(overlay)
    storage = settings(resources)["WARREN_STORAGE"]
    assert yaml.safe_dump_all(resources).count(storage) == 1
    for path in KUBERAY.rglob("*.yaml"):
        assert "s3://" not in path.read_text(), path


@each_overlay
def test_credentials_come_only_from_secrets(overlay: str) -> None:
    resources = load(overlay)
    assert all(resource["kind"] != "Secret" for resource in resources)
    for resource in resources:
        assert [*_plain_credentials(resource)] == []


def test_the_secret_example_holds_no_secret() -> None:
    examples = list(yaml.safe_load_all((BASE / "secret.example.yaml").read_text()))
    assert {value for each in examples for value in each["stringData"].values()} == {"replace-me"}
    assert {each["metadata"]["name"]: set(each["stringData"]) for each in examples} == {
        "warren-object-storage": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
        "warren-api-keys": {"digests"},
    }
    assert "secret.example.yaml" not in yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]


def test_renamed_objects_reach_into_custom_resources(tmp_path: Path) -> None:
    secrets = ("warren-object-storage", "warren-api-keys", "warren-registry")
    resources = with_component(
        tmp_path,
        "priority",
        namePrefix="team-",
        secretGenerator=[{"name": name, "literals": ["digests=x"]} for name in secrets],
        configMapGenerator=[{"name": "warren-recipes", "literals": ["mine.yaml=x"]}],
    )
    kinds = ("ConfigMap", "Secret", "ServiceAccount", "PriorityClass")
    made = {item["metadata"]["name"] for item in resources if item["kind"] in kinds}
    used = {name for resource in ray_resources(resources) for name in _references(resource)}
    assert used == made
    assert all(name.startswith("team-") for name in used)


def test_the_overlay_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    (text,) = re.findall(r"```kustomization\n(.*?)```", (REPOSITORY / "infra" / "README.md").read_text(), re.DOTALL)
    kuberay = os.path.relpath(KUBERAY, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(text.replace("[../", f"[{kuberay}/"))
    (tmp_path / "mine.yaml").write_text("extends: demo\n")
    resources = render(tmp_path)
    own = settings(resources)
    assert (own["WARREN_STORAGE"], own["WARREN_RECIPE"]) == ("s3://my-bucket/warren", "/etc/warren/mine.yaml")
    (recipes,) = (each for each in resources if each["metadata"]["name"].startswith("warren-recipes-"))
    for resource in ray_resources(resources):
        for template in pod_templates(resource):
            assert template.container["image"].startswith("registry.mine/warren:")
            volumes = {volume["name"]: volume for volume in template.pod["spec"]["volumes"]}
            assert volumes["recipes"]["configMap"]["name"] == recipes["metadata"]["name"]


@each_overlay
def test_a_cluster_runs_one_pinned_image_of_its_purpose(overlay: str) -> None:
    for resource in ray_resources(load(overlay)):
        (image,) = {template.container["image"] for template in pod_templates(resource)}
        purpose = "serve" if resource["kind"] == "RayService" else "train"
        target = "cpu" if overlay == "cpu-dev" else purpose
        assert re.fullmatch(rf"\S+/warren:\d+\.\d+\.\d+-{target}", image)


@each_overlay
def test_a_changed_setting_reaches_a_running_cluster(overlay: str) -> None:
    assert cluster_spec(find(load(overlay), "RayCluster"))["upgradeStrategy"] == {"type": "Recreate"}


def _plain_credentials(node: Any) -> Iterator[str]:
    """Yield names of variables and keys that look like credentials and carry their value in the open."""
    if isinstance(node, list):
        for item in node:
            yield from _plain_credentials(item)
    elif isinstance(node, dict):
        if CREDENTIAL_NAME.search(str(node.get("name", ""))) and "value" in node:
            yield node["name"]
        for key, value in node.items():
            if key in ("runtimeEnvYAML", "serveConfigV2"):
                yield from _plain_credentials(yaml.safe_load(value))
            elif isinstance(value, str) and CREDENTIAL_NAME.search(key) and key not in REFERENCE_NAMES:
                yield key
            else:
                yield from _plain_credentials(value)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("configMapRef", "secretRef", "configMapKeyRef", "secretKeyRef", "configMap"):
                yield value["name"]
            elif key == "imagePullSecrets":
                yield from (each["name"] for each in value)
            elif key in ("secretName", "serviceAccountName", "priorityClassName"):
                yield value
            else:
                yield from _references(value)
