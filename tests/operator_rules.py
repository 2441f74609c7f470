"""Rules that KubeRay's operator enforces and its CRDs do not: the API server accepts what breaks them.

Source: `ray-operator/controllers/ray/utils/validation.go` of KubeRay 1.7, as far as these manifests go.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from kuberay_manifests import Resource, cluster_spec

_MAX_NAME_LENGTH = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_UPGRADE_STRATEGIES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
_RAY_START_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}
_TOKEN_AUTH_SINCE = (2, 52)
_AUTOSCALER_VARIABLE = "RAY_enable_autoscaler_v2"
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
# Fields of a RayCluster that KubeRay 1.7 refuses unless the operator runs with a feature gate that is off by default.
_GATED_FIELDS = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}


def operator_errors(resource: Resource) -> list[str]:
    """Return why the operator would refuse `resource`, which its CRD accepts; empty if it would not."""
    errors = [*_name_errors(resource)]
    if resource["kind"] == "RayJob":
        errors += _job_errors(resource["spec"])
        if "rayClusterSpec" not in resource["spec"]:
            return errors
    if resource["kind"] == "RayService":
        errors += _service_errors(resource["spec"])
    return [*errors, *_cluster_errors(cluster_spec(resource))]


def required_gates(resource: Resource) -> set[str]:
    """Return the feature gates, off by default, without which the operator refuses `resource`."""
    cluster = cluster_spec(resource)
    gates = {gate for name, gate in _GATED_FIELDS.items() if name in cluster}
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        gates.add("GCSFaultToleranceEmbeddedStorage")
    return gates


def _name_errors(resource: Resource) -> Iterator[str]:
    name, limit = resource["metadata"]["name"], _MAX_NAME_LENGTH[resource["kind"]]
    if len(name) > limit:
        yield f"name '{name}' has {len(name)} characters, at most {limit} are allowed"
    if not _DNS_1035_LABEL.fullmatch(name):
        yield f"name '{name}' is not a DNS-1035 label"


def _job_errors(spec: dict[str, Any]) -> Iterator[str]:
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    mode = spec.get("submissionMode", "K8sJobMode")
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "one of rayClusterSpec and clusterSelector must be set"
    if mode not in _SUBMISSION_MODES:
        yield f"submissionMode '{mode}' is none of {_SUBMISSION_MODES}"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    if shutdown and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionRules excludes shutdownAfterJobFinishes"
    yield from _deletion_errors(spec)
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"
    if spec.get("backoffLimit", 0) > 0 and (spec.get("clusterSelector") or mode == "InteractiveMode"):
        yield "backoffLimit needs a cluster of the job's own and a mode that submits"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds must be positive"
    if mode == "SidecarMode" and spec.keys() & {"submitterPodTemplate", "submitterConfig", "clusterSelector"}:
        yield "SidecarMode has no submitter pod and no clusterSelector"
    yield from _runtime_env_errors(spec.get("runtimeEnvYAML", ""))


def _deletion_errors(spec: dict[str, Any]) -> Iterator[str]:
    waits: dict[str, dict[str, int]] = {}
    for rule in spec.get("deletionStrategy", {}).get("deletionRules", []):
        policy, condition = rule.get("policy"), rule.get("condition", {})
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        if spec.get("clusterSelector") and policy in _DELETION_ORDER[:2]:
            yield f"{policy} needs a cluster of the job's own"
        if policy == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield "DeleteWorkers and the autoscaler exclude each other"
        if policy in waits.setdefault(status, {}):
            yield f"{policy} stands twice for {status}"
        waits[status][policy] = condition.get("ttlSeconds", 0)
    for status, by_policy in waits.items():
        ordered = [by_policy[policy] for policy in _DELETION_ORDER if policy in by_policy]
        if ordered != sorted(ordered):
            yield f"{status}: workers must go before the cluster, and the cluster before the job"


def _runtime_env_errors(text: str) -> Iterator[str]:
    try:
        runtime_env = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML is not YAML: {error}"
        return
    if not isinstance(runtime_env, dict):
        yield f"runtimeEnvYAML must be a mapping, got {type(runtime_env).__name__}"


def _service_errors(spec: dict[str, Any]) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
    if strategy not in _UPGRADE_STRATEGIES:
        yield f"upgradeStrategy.type '{strategy}' is none of {_UPGRADE_STRATEGIES}"
    if strategy == "NewClusterWithIncrementalUpgrade":
        yield from _incremental_upgrade_errors(spec)
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds must not be negative"
    head_service = cluster_spec({"kind": "RayService", "spec": spec})["headGroupSpec"].get("headService", {})
    if head_service.get("metadata", {}).get("name"):
        yield "headService.metadata.name must not be set in a RayService"


def _incremental_upgrade_errors(spec: dict[str, Any]) -> Iterator[str]:
    options = spec["upgradeStrategy"].get("clusterUpgradeOptions")
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    if options is None:
        yield "an incremental upgrade needs clusterUpgradeOptions"
    elif not (0 <= options["stepSizePercent"] <= options.get("maxSurgePercent", 100) <= 100):
        yield "clusterUpgradeOptions: 0 <= stepSizePercent <= maxSurgePercent <= 100 does not hold"
    elif options["intervalSeconds"] <= 0:
        yield "clusterUpgradeOptions.intervalSeconds must be positive"


def _cluster_errors(cluster: dict[str, Any]) -> Iterator[str]:
    autoscaled = cluster.get("enableInTreeAutoscaling", False)
    version = cluster.get("autoscalerOptions", {}).get("version")
    head, groups = cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])
    yield from _token_auth_errors(cluster)
    for name, group in [("head", head), *((group["groupName"], group) for group in groups)]:
        parameters, pod = group.get("rayStartParams", {}), group["template"]["spec"]
        if not pod["containers"]:
            yield f"group '{name}' has no container"
        if "labels" in parameters:
            yield f"group '{name}': labels belong beside rayStartParams, not in it"
        if group.get("resources") and parameters.keys() & _RAY_START_RESOURCES:
            yield f"group '{name}': resources are given both in rayStartParams and beside it"
        if autoscaled and version == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield f"group '{name}': autoscaler v2 needs restartPolicy Never"
    for group in groups:
        yield from _group_errors(group, autoscaled=autoscaled, version=version)
    containers = head["template"]["spec"]["containers"]
    variables = {item["name"] for container in containers[:1] for item in container.get("env", [])}
    if version is not None and _AUTOSCALER_VARIABLE in variables:
        yield f"autoscalerOptions.version and {_AUTOSCALER_VARIABLE} are both set"
    if cluster.get("gcsFaultToleranceOptions") and variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}:
        yield "gcsFaultToleranceOptions and Redis variables are both set"


def _group_errors(group: dict[str, Any], *, autoscaled: bool, version: str | None) -> Iterator[str]:
    name = group["groupName"]
    if group["minReplicas"] > group["maxReplicas"]:
        yield f"group '{name}': minReplicas {group['minReplicas']} > maxReplicas {group['maxReplicas']}"
    if "replicas" in group and not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"group '{name}': replicas {group['replicas']} is outside of minReplicas and maxReplicas"
    if "idleTimeoutSeconds" in group and version != "v2":
        yield f"group '{name}': idleTimeoutSeconds needs autoscaler v2"
    if group.get("suspend") and autoscaled:
        yield f"group '{name}': suspend and the autoscaler exclude each other"


def _token_auth_errors(cluster: dict[str, Any]) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") != "token":
        return
    ray_version = cluster.get("rayVersion", "")
    if not re.fullmatch(r"\d+\.\d+\.\d+", ray_version):
        yield f"token auth needs rayVersion, got '{ray_version}'"
    elif tuple(int(part) for part in ray_version.split(".")[:2]) < _TOKEN_AUTH_SINCE:
        yield f"token auth needs Ray 2.52, rayVersion is {ray_version}"
