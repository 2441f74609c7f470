"""The manifests under `infra/kuberay`, as kustomize renders them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

Resource = dict[str, Any]
Pod = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[1]
KUBERAY = REPOSITORY / "infra" / "kuberay"
BASE = KUBERAY / "base"
OVERLAYS = tuple(sorted(path.name for path in (KUBERAY / "overlays").iterdir()))
GPU_OVERLAYS = tuple(name for name in OVERLAYS if name.startswith("gpu"))
JOBS = ("ingest", "curate", "pretrain", "finetune", "evaluate", "release")

# Where the RayCluster is inside each kind.
CLUSTER_FIELDS = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


class PodTemplate(NamedTuple):
    """A pod template and what KubeRay makes of it."""

    role: str  # head, worker or submitter
    pod: Pod

    @property
    def container(self) -> dict[str, Any]:
        """The Ray container: KubeRay takes the first."""
        container: dict[str, Any] = self.pod["spec"]["containers"][0]
        return container


def load(overlay: str) -> list[Resource]:
    """Return the resources of an overlay."""
    return render(KUBERAY / "overlays" / overlay)


@cache
def render(folder: Path) -> list[Resource]:
    """Run kustomize on `folder`, or skip the test where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on PATH: overlays cannot be rendered")
    result = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return list(yaml.load_all(result.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def cluster_spec(resource: Resource) -> dict[str, Any]:
    """Return the RayCluster's spec inside a RayCluster, RayJob or RayService."""
    field = CLUSTER_FIELDS[resource["kind"]]
    spec: dict[str, Any] = resource["spec"] if field is None else resource["spec"][field]
    return spec


def pod_templates(resource: Resource) -> Iterator[PodTemplate]:
    """Yield every pod template of a KubeRay resource."""
    cluster = cluster_spec(resource)
    yield PodTemplate("head", cluster["headGroupSpec"]["template"])
    for group in cluster["workerGroupSpecs"]:
        yield PodTemplate("worker", group["template"])
    if "submitterPodTemplate" in resource["spec"]:
        yield PodTemplate("submitter", resource["spec"]["submitterPodTemplate"])


def ray_resources(resources: list[Resource]) -> list[Resource]:
    """Return those that KubeRay owns."""
    return [resource for resource in resources if resource["kind"] in CLUSTER_FIELDS]


def find(resources: list[Resource], kind: str, name: str | None = None) -> Resource:
    """Return the only resource of `kind`, or the one of them that is called `name`."""
    (resource,) = (each for each in resources if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return resource


def settings(resources: list[Resource]) -> dict[str, str]:
    """Return what the ConfigMap `warren-environment` says."""
    (data,) = (
        each["data"]
        for each in resources
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("warren-environment")
    )
    return dict(data)


_UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number."""
    matched = re.fullmatch(r"([0-9.]+)(\w*)", text)
    assert matched, text
    return float(matched[1]) * _UNITS[matched[2]]
