"""What every pod keeps: it is confined, sized, watched, and leaves without cutting what runs on it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from kuberay_manifests import (
    OVERLAYS,
    PodTemplate,
    Resource,
    cluster_spec,
    find,
    load,
    pod_templates,
    quantity,
    ray_resources,
    settings,
)

FAILURE_DETECTION = {
    "RAY_grpc_client_keepalive_time_ms",
    "RAY_grpc_client_keepalive_timeout_ms",
    "RAY_health_check_period_ms",
    "RAY_health_check_timeout_ms",
    "RAY_health_check_failure_threshold",
}
RAY_MEMORY_SHARE = 0.3  # ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
CONFINED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
RESTRICTED_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def pods(overlay: str) -> Iterator[tuple[Resource, PodTemplate]]:
    for resource in ray_resources(load(overlay)):
        for template in pod_templates(resource):
            yield resource, template


def pod_specs(overlay: str) -> Iterator[dict[str, Any]]:
    """Every pod of an overlay, Ray's or not."""
    yield from (template.pod["spec"] for _, template in pods(overlay))
    yield from (each["spec"]["template"]["spec"] for each in load(overlay) if each["kind"] == "Deployment")


def mounted(template: PodTemplate) -> dict[str, dict[str, Any]]:
    """The volumes by where they are mounted."""
    volumes = {volume["name"]: volume for volume in template.pod["spec"]["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in template.container["volumeMounts"]}


@each_overlay
def test_pods_are_of_the_restricted_profile(overlay: str) -> None:
    for spec in pod_specs(overlay):
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"] > 0) == (True, True)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert all(volume.keys() - {"name"} <= RESTRICTED_VOLUMES for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == CONFINED
    for resource in ray_resources(load(overlay)):
        if options := cluster_spec(resource).get("autoscalerOptions"):
            assert options["securityContext"] == CONFINED


@each_overlay
def test_what_a_read_only_root_needs_to_write_is_mounted(overlay: str) -> None:
    for resource, template in pods(overlay):
        volumes = mounted(template)
        assert all("emptyDir" in volumes[path] for path in ("/tmp", "/home/warren", "/dev/shm"))
        if template.role == "head" and "autoscalerOptions" in cluster_spec(resource):
            beside = {mount["mountPath"] for mount in cluster_spec(resource)["autoscalerOptions"]["volumeMounts"]}
            assert beside == {"/tmp", "/home/warren"}


@each_overlay
def test_pods_ask_for_what_they_use(overlay: str) -> None:
    for spec in pod_specs(overlay):
        (container,) = spec["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        # More memory or disk than requested is taken from a neighbour, and the kernel or kubelet picks who pays.
        for name in requests.keys() - {"cpu"}:
            assert requests[name] == limits[name], name
        assert {"cpu", "memory", "ephemeral-storage"} <= requests.keys()
        folders = [volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume]
        on_disk = sum(quantity(folder["sizeLimit"]) for folder in folders if folder.get("medium") != "Memory")
        assert on_disk < quantity(requests["ephemeral-storage"])  # and something for the container's log


@each_overlay
def test_the_object_store_is_in_memory(overlay: str) -> None:
    for _, template in pods(overlay):
        shared = mounted(template)["/dev/shm"]["emptyDir"]
        assert shared["medium"] == "Memory"
        memory = quantity(template.container["resources"]["limits"]["memory"])
        # Ray's check takes 5 % off what it sees in /dev/shm.
        assert RAY_MEMORY_SHARE * memory < 0.95 * quantity(shared["sizeLimit"]) < 0.5 * memory


@each_overlay
def test_the_cache_of_models_fits_into_its_volume(overlay: str) -> None:
    cache = int(settings(load(overlay)).get("WARREN_CACHE_BYTES", 16 << 30))
    for _, template in pods(overlay):
        if template.role == "worker":
            assert 2 * cache < quantity(mounted(template)["/tmp"]["emptyDir"]["sizeLimit"])


@each_overlay
def test_probes_bear_a_busy_node(overlay: str) -> None:
    for _, template in pods(overlay):
        container = template.container
        assert container["livenessProbe"]["timeoutSeconds"] >= 5  # shorter ones kill busy pods
        assert container["readinessProbe"]["httpGet"]["path"] in ("/api/healthz", "/-/healthz")


@each_overlay
def test_endpoint_workers_are_ready_when_their_proxy_is(overlay: str) -> None:
    for role, pod in pod_templates(find(load(overlay), "RayService")):
        if role == "worker":
            probe = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]
            assert (probe["path"], probe["port"]) == ("/-/healthz", 8000)


@each_overlay
def test_a_worker_that_leaves_is_drained_first(overlay: str) -> None:
    for resource, template in pods(overlay):
        if template.role == "head":
            continue
        script = template.container["lifecycle"]["preStop"]["exec"]["command"][-1]
        (deadline_s,) = (int(text) for text in re.findall(r"--deadline-remaining-seconds (\d+)", script))
        (tries, pause_s), port = re.findall(r"seq (\d+).*?sleep (\d+)", script, re.DOTALL)[0], "52365"
        if resource["kind"] == "RayService":
            port = "8000"
        assert f"/dev/tcp/127.0.0.1/{port}" in script
        assert "timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION" in script
        waited_s = int(tries) * int(pause_s)
        assert waited_s <= deadline_s < template.pod["spec"]["terminationGracePeriodSeconds"]


@each_overlay
def test_every_container_notices_a_lost_node(overlay: str) -> None:
    data = {item["metadata"]["name"]: item["data"] for item in load(overlay) if item["kind"] == "ConfigMap"}
    for resource in ray_resources(load(overlay)):
        sources = [template.container["envFrom"] for template in pod_templates(resource)]
        if "autoscalerOptions" in cluster_spec(resource):
            sources.append(cluster_spec(resource)["autoscalerOptions"]["envFrom"])
        for env_from in sources:
            names = [item["configMapRef"]["name"] for item in env_from if "configMapRef" in item]
            assert set().union(*(data[name] for name in names)) >= FAILURE_DETECTION


@each_overlay
def test_pods_know_where_storage_is_and_have_its_keys(overlay: str) -> None:
    (name,) = (
        item["metadata"]["name"]
        for item in load(overlay)
        if item["kind"] == "ConfigMap" and item["metadata"]["name"].startswith("warren-environment")
    )
    for _, template in pods(overlay):
        assert {"configMapRef": {"name": name}} in template.container["envFrom"]
        # Optional, because pods may have an identity of the cloud's instead.
        assert {"secretRef": {"name": "warren-object-storage", "optional": True}} in template.container["envFrom"]


@each_overlay
def test_only_an_autoscaler_speaks_to_the_api_server(overlay: str) -> None:
    resources = load(overlay)
    assert not [each for each in resources if "Role" in each["kind"]]  # the operator's Role for the autoscaler is all
    accounts = {
        each["metadata"]["name"]: each["automountServiceAccountToken"]
        for each in resources
        if each["kind"] == "ServiceAccount"
    }
    used = set()
    for resource, template in pods(overlay):
        account, autoscaled = template.pod["spec"]["serviceAccountName"], "autoscalerOptions" in cluster_spec(resource)
        has_token = template.pod["spec"].get("automountServiceAccountToken", accounts[account])
        assert has_token == (autoscaled and template.role == "head")
        if has_token:  # an account of its own: rights that are bound to it are nobody else's
            assert account not in used
        used.add(account)


@each_overlay
def test_private_registries_and_node_autoscalers_are_heeded(overlay: str) -> None:
    for resource, template in pods(overlay):
        assert template.pod["spec"]["imagePullSecrets"] == [{"name": "warren-registry"}]
        moves = resource["kind"] == "RayService" and template.role == "worker"
        annotations = template.pod["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == ("true" if moves else "false")
        assert ("karpenter.sh/do-not-disrupt" in annotations) != moves


@each_overlay
def test_every_pod_is_under_a_network_policy(overlay: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in load(overlay) if each["kind"] == "NetworkPolicy"}
    default = policies["warren-default"]
    assert "ingress" not in default
    assert set(default["policyTypes"]) == {"Ingress", "Egress"}
    assert "169.254.0.0/16" in str(default["egress"])  # no metadata service
    for _, template in pods(overlay):
        labels = template.pod["metadata"]["labels"]
        assert default["podSelector"]["matchLabels"].items() <= labels.items()
        own = policies[f"warren-{labels['app.kubernetes.io/component']}"]
        assert own["podSelector"]["matchLabels"] == labels
        assert own["egress"] == [{"to": [{"podSelector": own["podSelector"]}]}]
        assert own["ingress"][0] == {"from": [{"podSelector": own["podSelector"]}]}
