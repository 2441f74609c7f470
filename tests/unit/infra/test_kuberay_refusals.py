"""The validators can fail: each case breaks a good manifest in one place and is refused for that reason."""

import copy
from typing import Any

import kubernetes_validate
import pytest

from crd_schema import HAS_CEL, CrdSchemas
from kuberay_manifests import Resource, find, load
from operator_rules import operator_errors, required_gates
from serve_config import serve_config_errors

ABSENT = object()
JOB_CLUSTER = "spec.rayClusterSpec"
JOB_WORKERS = f"{JOB_CLUSTER}.workerGroupSpecs.0"
JOB_HEAD_POD = f"{JOB_CLUSTER}.headGroupSpec.template.spec"
HEAD_CONTAINER = f"{JOB_HEAD_POD}.containers.0"
HEAD_SERVICE = "spec.rayClusterConfig.headGroupSpec.headService"
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
UPGRADE = "spec.upgradeStrategy"
RULES = "spec.deletionStrategy.deletionRules"

needs_cel = pytest.mark.skipif(not HAS_CEL, reason="cel-python is not installed: CEL rules are not checked")


def broken(kind: str, path: str, value: Any) -> Resource:
    """Return cpu-dev's resource of `kind` with the dotted `path` set to `value`, or removed if `ABSENT`."""
    name = "warren-pretrain" if kind == "RayJob" else None
    resource = copy.deepcopy(find(load("cpu-dev"), kind, name))
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    node: Any = resource
    for part in parents:
        node = node[part]
    if value is ABSENT:
        del node[last]
    else:
        node[last] = value
    return resource


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("RayJob", "spec.shutdownAfterJobFinish", True, "'shutdownAfterJobFinish' was unexpected"),
        ("RayJob", "spec.ttlSecondsAfterFinished", "10", "'10' is not of type 'integer'"),
        ("RayJob", "spec.backoffLimit", 2**31, "is greater than the maximum"),
        ("RayJob", "spec.preRunningDeadlineSeconds", 0, "is less than the minimum"),
        ("RayJob", "metadata.lables", {"a": "b"}, "'lables' was unexpected"),
        ("RayJob", f"{JOB_CLUSTER}.headGroupSpec", ABSENT, "'headGroupSpec' is a required property"),
        ("RayJob", f"{JOB_CLUSTER}.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("RayJob", f"{JOB_WORKERS}.minReplica", 1, "'minReplica' was unexpected"),
        ("RayJob", f"{HEAD_CONTAINER}.name", ABSENT, "'name' is a required property"),
        ("RayJob", f"{HEAD_CONTAINER}.resources.limits.cpu", "two", "'two' does not match"),
        ("RayJob", f"{HEAD_CONTAINER}.livenessProbe.timeout", 5, "'timeout' was unexpected"),
        ("RayJob", f"{HEAD_CONTAINER}.ports.1.containerPort", "8265", "'8265' is not of type 'integer'"),
        ("RayJob", f"{HEAD_CONTAINER}.env", [{"name": "A", "value": 1}], "1 is not of type 'string'"),
        ("RayCluster", "spec.autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("RayCluster", "spec.authOptions.mode", "password", "'password' is not one of"),
        ("RayCluster", "spec.idleTerminationOptions", {}, "'idleTerminationOptions' was unexpected"),
        ("RayService", "spec.serveConfigV2", {"applications": []}, "is not of type 'string'"),
        ("RayService", "spec.rayClusterConfig", ABSENT, "'rayClusterConfig' is a required property"),
        (
            "RayService",
            f"{UPGRADE}.clusterUpgradeOptions",
            {"gatewayClassName": "x"},
            "is a required property",
        ),
    ],
)
def test_the_crd_refuses(kind: str, path: str, value: Any, message: str, crd_schemas: CrdSchemas) -> None:
    resource = broken(kind, path, value)
    errors = crd_schemas[resource["apiVersion"], kind].errors(resource)
    assert len(errors) >= 1
    assert any(message in error for error in errors), errors


def test_the_crd_refuses_two_ports_that_are_one(crd_schemas: CrdSchemas) -> None:
    port = {"name": "again", "containerPort": 6379, "protocol": "TCP"}
    resource = broken("RayJob", f"{HEAD_CONTAINER}.ports.1", port)
    (error,) = crd_schemas["ray.io/v1", "RayJob"].errors(resource)
    assert "(6379, 'TCP') is given 2 times" in error  # the other one leaves the protocol to its default


@needs_cel
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.managedBy", "me", "managedBy field value must be either"),
        ("spec.deletionStrategy", {}, "deletionStrategy requires either"),
        (
            "spec.deletionStrategy",
            {
                "deletionRules": [
                    {
                        "policy": "DeleteCluster",
                        "condition": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"},
                    }
                ]
            },
            "JobStatus and JobDeploymentStatus cannot be used together",
        ),
    ],
)
def test_cel_rules_refuse(path: str, value: Any, message: str, crd_schemas: CrdSchemas) -> None:
    errors = crd_schemas["ray.io/v1", "RayJob"].errors(broken("RayJob", path, value))
    assert any(message in error for error in errors), errors


def test_what_the_server_prunes_or_fills_in_is_accepted(crd_schemas: CrdSchemas) -> None:
    schema = crd_schemas["ray.io/v1", "RayJob"]
    assert schema.errors(broken("RayJob", "spec.jobId", None)) == []
    # Required by the CRD, and defaulted by it.
    assert schema.errors(broken("RayJob", f"{JOB_WORKERS}.minReplicas", ABSENT)) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("RayCluster", "metadata.name", "w" * 54, "at most 53"),
        ("RayJob", "metadata.name", "w" * 48, "at most 47"),
        ("RayService", "metadata.name", "w" * 48, "at most 47"),
        ("RayJob", "metadata.name", "1-warren", "DNS-1035"),
        ("RayJob", "spec.rayClusterSpec", ABSENT, "one of rayClusterSpec and clusterSelector"),
        ("RayJob", "spec.submissionMode", "HttpMode", "submissionMode 'HttpMode' is none of"),
        ("RayJob", "spec.ttlSecondsAfterFinished", 10, "ttlSecondsAfterFinished needs"),
        ("RayJob", "spec.backoffLimit", -1, "backoffLimit must not be negative"),
        ("RayJob", "spec.clusterSelector", {"ray.io/cluster": "x"}, "DeleteWorkers needs a cluster of the job's own"),
        ("RayJob", "spec.shutdownAfterJobFinishes", True, "deletionRules excludes"),
        ("RayJob", f"{JOB_CLUSTER}.enableInTreeAutoscaling", True, "DeleteWorkers and the autoscaler"),
        ("RayJob", f"{RULES}.1.condition.jobStatus", "SUCCEEDED", "DeleteWorkers stands twice for SUCCEEDED"),
        ("RayJob", f"{RULES}.0.condition.ttlSeconds", 3601, "workers must go before the cluster"),
        ("RayJob", "spec.runtimeEnvYAML", "env_vars: [", "runtimeEnvYAML is not YAML"),
        ("RayJob", "spec.runtimeEnvYAML", "env_vars", "must be a mapping, got str"),
        ("RayJob", f"{JOB_WORKERS}.minReplicas", 3, "minReplicas 3 > maxReplicas 2"),
        ("RayJob", f"{JOB_WORKERS}.replicas", 3, "outside of minReplicas and maxReplicas"),
        ("RayJob", f"{JOB_CLUSTER}.rayVersion", "2.51.0", "token auth needs Ray 2.52"),
        ("RayJob", f"{JOB_CLUSTER}.rayVersion", ABSENT, "token auth needs rayVersion"),
        ("RayJob", f"{JOB_HEAD_POD}.containers", [], "no container"),
        (
            "RayCluster",
            "spec.workerGroupSpecs.0.template.spec.restartPolicy",
            "Always",
            "restartPolicy Never",
        ),
        ("RayCluster", "spec.headGroupSpec.resources", {"CPU": "1"}, "both in rayStartParams and beside it"),
        ("RayCluster", "spec.headGroupSpec.rayStartParams.labels", "a=b", "not in it"),
        ("RayService", f"{UPGRADE}.type", "BlueGreen", "'BlueGreen' is none of"),
        ("RayService", f"{UPGRADE}.type", INCREMENTAL, "needs clusterUpgradeOptions"),
        ("RayService", HEAD_SERVICE, {"metadata": {"name": "head"}}, "must not be set in a RayService"),
    ],
)
def test_the_operator_refuses(kind: str, path: str, value: Any, message: str) -> None:
    errors = operator_errors(broken(kind, path, value))
    assert any(message in error for error in errors), errors


def test_the_operator_refuses_retries_without_a_cluster() -> None:
    resource = broken("RayJob", "spec.clusterSelector", {"ray.io/cluster": "x"})
    resource["spec"] |= {"backoffLimit": 1, "deletionStrategy": {}}
    (error,) = operator_errors(resource)
    assert "backoffLimit needs a cluster" in error


@pytest.mark.parametrize(
    ("field", "value", "gate"),
    [
        ("gcsFaultToleranceOptions", {"backend": "rocksdb"}, "GCSFaultToleranceEmbeddedStorage"),
        ("gcsFaultToleranceOptions", {"backend": "redis"}, None),
        ("networkPolicy", {"mode": "DenyAll"}, "RayClusterNetworkPolicy"),
    ],
)
def test_fields_that_need_a_gate_are_told(field: str, value: Any, gate: str | None) -> None:
    assert required_gates(broken("RayJob", f"{JOB_CLUSTER}.{field}", value)) == ({gate} if gate else set())


# What an overlay of somebody's own may add to the application.
DEPLOYMENTS = """
  deployments:
  - name: Ingress
    max_surge_percent: 100
    autoscaling_config: {min_replicas: 1, max_replicas: 2}
    ray_actor_options: {num_cpus: 1}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("applications:", "aplications:", "aplications: unknown field"),
        ("http_options:", "http_options: []\nhttp_option:", "http_option: unknown field"),
        ("port: 8000", "prt: 8000", "http_options.prt: unknown field"),
        ("port: 8000", "port: http", "unable to parse string as an integer"),
        ("proxy_location: EveryNode", "proxy_location: SomeNodes", "proxy_location"),
        ("import_path:", "import_pth:", "applications[0].import_pth: unknown field"),
        ("warren_serve.front:build", "warren_serve", "import_path"),
        ("route_prefix: /", "route_prefix: chat", "route_prefix"),
        ("min_replicas: 1", "min_replica: 1", "autoscaling_config.min_replica: unknown field"),
        ("min_replicas: 1", "min_replicas: 3", "max_replicas"),
        ("max_surge_percent: 100", "max_surge_percent: 101", "less than or equal to 100"),
        ("max_surge_percent: 100", "max_surge: 100", "deployments[0].max_surge: unknown field"),
        ("num_cpus: 1", "num_cpu: 1", "ray_actor_options.num_cpu: unknown field"),
        ("num_cpus: 1", "num_cpus: many", "num_cpus"),
        ("applications:", "applications: [", "is not YAML"),
    ],
)
def test_serve_refuses(old: str, new: str, message: str) -> None:
    text = find(load("cpu-dev"), "RayService")["spec"]["serveConfigV2"] + DEPLOYMENTS
    assert serve_config_errors(text) == []
    assert old in text
    errors = serve_config_errors(text.replace(old, new, 1))
    assert any(message in error for error in errors), errors


def test_serve_refuses_what_is_not_a_mapping() -> None:
    assert serve_config_errors("- applications") == ["serveConfigV2 must be a mapping, got list"]


@pytest.mark.parametrize(("field", "value"), [("minAvailabel", 1), ("minAvailable", [1])])
def test_the_core_schema_refuses(field: str, value: Any) -> None:
    resource = copy.deepcopy(find(load("gpu"), "PodDisruptionBudget", "warren-endpoint"))
    resource["spec"][field] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, "1.34", strict=True)
