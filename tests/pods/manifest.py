"""What the kubelet and KubeRay make of a rendered pod template: process, environment, volumes and probes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kuberay_manifests import Resource, find, quantity

GCS_FOLDER = "/var/lib/ray-gcs"
AGENT_PORT = 52365
RAY_MEMORY_SHARE = 0.3  # ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
_GCS_PORT = 6379
_METRICS_PORT = 8080


@dataclass(frozen=True)
class Volume:
    """A folder of a pod.

    Attributes:
        path: Where the container sees it.
        size_bytes: Its limit if it is in memory; 0 for one on disk.
        files: What a ConfigMap or Secret puts there; None for a folder that the pod writes.
    """

    path: str
    size_bytes: int = 0
    files: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Probe:
    """A question to a port of a pod; without a path it only connects."""

    port: int
    path: str | None
    period_s: float
    timeout_s: float
    failures: int
    initial_delay_s: float


@dataclass(frozen=True)
class PodPlan:
    """One pod as it is to run.

    Attributes:
        group: What its name begins with.
        pre_stop: The command that runs before the pod is asked to end; empty for none.
        grace_s: How long it may take to leave, `pre_stop` included.
    """

    group: str
    command: Sequence[str]
    environment: Mapping[str, str]
    working_dir: str
    user: int
    read_only_root: bool
    volumes: Sequence[Volume]
    liveness: Probe | None
    readiness: Probe | None
    pre_stop: Sequence[str]
    grace_s: float


@dataclass(frozen=True)
class RayNodePlan:
    """What KubeRay knows of a Ray node beyond its template.

    Attributes:
        cluster: Name of the RayCluster.
        group: Name of its group, `headgroup` for the head.
        head: Name of the head's service.
        token: What clients must send.
    """

    cluster: str
    group: str
    head: str
    token: str

    @property
    def is_head(self) -> bool:
        return self.group == "headgroup"


@dataclass(frozen=True)
class Manifests:
    """Rendered resources, and the Secrets that the operator or a person makes."""

    resources: Sequence[Resource]
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def values(self, reference: Mapping[str, Any], kind: str) -> Mapping[str, str]:
        """Return what a ConfigMap or Secret holds, nothing for an optional one that is missing.

        Raises:
            LookupError: It is missing and not optional; Kubernetes would never start the pod.
        """
        name = reference.get("secretName", reference.get("name"))
        for resource in self.resources:
            if resource["kind"] == kind and resource["metadata"]["name"] == name:
                return dict(resource["data"])
        if kind == "Secret" and name in self.secrets:
            return self.secrets[str(name)]
        if reference.get("optional"):
            return {}
        raise LookupError(
            f"there is no {kind} {name!r}: a pod that needs it never starts; look at the rendered overlay"
        )


def deployment_plan(manifests: Manifests, name: str) -> PodPlan:
    """Return the pod of a Deployment."""
    spec = find(list(manifests.resources), "Deployment", name)["spec"]["template"]["spec"]
    container = spec["containers"][0]
    return _plan(manifests, name, spec, tuple(container["command"]), _environment(manifests, container))


def ray_node_plan(manifests: Manifests, cluster: Mapping[str, Any], node: RayNodePlan) -> PodPlan:
    """Return the pod that KubeRay makes of a group of a RayCluster's spec."""
    group = cluster["headGroupSpec"] if node.is_head else _worker_group(cluster, node.group)
    spec = group["template"]["spec"]
    container = spec["containers"][0]
    environment = {**_environment(manifests, container), **_kuberay_environment(cluster, node)}
    words = ["ray", "start", *(["--head"] if node.is_head else []), *ray_start_flags(cluster, group, node)]
    command = ("bash", "-c", f"ulimit -n 65536; {' '.join(words)}")
    kept = [Volume(GCS_FOLDER)] if node.is_head and _gcs_backend(cluster) == "rocksdb" else []
    return _plan(manifests, f"{node.cluster}-{node.group}", spec, command, environment, kept)


def ray_start_flags(cluster: Mapping[str, Any], group: Mapping[str, Any], node: RayNodePlan) -> list[str]:
    """Return the flags of `ray start`: `rayStartParams`, and what KubeRay derives from the container's limits.

    The size of the object store is the one Ray itself takes in a container of that size. Here no limit of memory is set
    on the process, so it would take the machine's.
    """
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    memory = int(quantity(limits["memory"]))
    flags = {
        "num-cpus": str(math.ceil(quantity(limits["cpu"]))),
        "memory": str(memory),
        "object-store-memory": str(int(RAY_MEMORY_SHARE * memory)),
        "metrics-export-port": str(_METRICS_PORT),
        "dashboard-agent-listen-port": str(AGENT_PORT),
        "block": "true",
    }
    if "nvidia.com/gpu" in limits:
        flags["num-gpus"] = limits["nvidia.com/gpu"]
    if not node.is_head:
        flags["address"] = f"{node.head}:{_GCS_PORT}"
    elif cluster.get("enableInTreeAutoscaling"):
        flags["no-monitor"] = "true"
    flags.update(group["rayStartParams"])
    return [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(flags.items())]


def _kuberay_environment(cluster: Mapping[str, Any], node: RayNodePlan) -> dict[str, str]:
    host = "127.0.0.1" if node.is_head else node.head
    environment = {
        "RAY_CLUSTER_NAME": node.cluster,
        "RAY_NODE_TYPE_NAME": node.group,
        "RAY_ADDRESS": f"{host}:{_GCS_PORT}",
        "RAY_PORT": str(_GCS_PORT),
        "FQ_RAY_IP": node.head,
    }
    if cluster.get("authOptions", {}).get("mode") == "token":
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": node.token}
    if cluster.get("autoscalerOptions", {}).get("version") == "v2":
        environment["RAY_enable_autoscaler_v2"] = "1"
    if _gcs_backend(cluster) == "rocksdb":
        environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "600"
        if node.is_head:
            environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": GCS_FOLDER}
    return environment


def _gcs_backend(cluster: Mapping[str, Any]) -> str | None:
    backend: str | None = cluster.get("gcsFaultToleranceOptions", {}).get("backend")
    return backend


def _worker_group(cluster: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    groups: dict[str, Mapping[str, Any]] = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return groups[name]


def _environment(manifests: Manifests, container: Mapping[str, Any]) -> dict[str, str]:
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            environment |= manifests.values(source["configMapRef"], "ConfigMap")
        else:
            environment |= manifests.values(source["secretRef"], "Secret")
    return environment | {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}


def _volumes(manifests: Manifests, spec: Mapping[str, Any]) -> Iterator[Volume]:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in spec["containers"][0]["volumeMounts"]:
        volume, path = volumes[mount["name"]], mount["mountPath"]
        if "configMap" in volume:
            yield Volume(path, files=manifests.values(volume["configMap"], "ConfigMap"))
        elif "secret" in volume:
            yield Volume(path, files=manifests.values(volume["secret"], "Secret"))
        elif volume.get("emptyDir", {}).get("medium") == "Memory":
            yield Volume(path, size_bytes=int(quantity(volume["emptyDir"]["sizeLimit"])))
        else:
            yield Volume(path)


def _probe(container: Mapping[str, Any], name: str) -> Probe | None:
    probe = container.get(name)
    if probe is None:
        return None
    target = probe.get("httpGet") or probe["tcpSocket"]
    return Probe(
        port=target["port"],
        path=target.get("path"),
        period_s=probe.get("periodSeconds", 10),
        timeout_s=probe.get("timeoutSeconds", 1),
        failures=probe.get("failureThreshold", 3),
        initial_delay_s=probe.get("initialDelaySeconds", 0),
    )


def _plan(
    manifests: Manifests,
    group: str,
    spec: Mapping[str, Any],
    command: Sequence[str],
    environment: Mapping[str, str],
    kept: Sequence[Volume] = (),
) -> PodPlan:
    container = spec["containers"][0]
    return PodPlan(
        group=group,
        command=command,
        environment=environment,
        working_dir=container.get("workingDir", "/opt/warren"),  # that of the image
        user=spec["securityContext"]["runAsUser"],
        read_only_root=container["securityContext"]["readOnlyRootFilesystem"],
        volumes=(*_volumes(manifests, spec), *kept),
        liveness=_probe(container, "livenessProbe"),
        readiness=_probe(container, "readinessProbe"),
        pre_stop=tuple(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ())),
        grace_s=spec.get("terminationGracePeriodSeconds", 30),
    )
