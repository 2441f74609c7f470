"""The API server that `make test-cluster` gives to Ray's autoscaler answers as one of Kubernetes would."""

import ssl
from pathlib import Path

import httpx

from kuberay_manifests import REPOSITORY, find, render
from pods.kubernetes_api import KubernetesApi

CLUSTER = "/apis/ray.io/v1/namespaces/default/rayclusters/warren-workspace"
PODS = "/api/v1/namespaces/default/pods"


def test_it_keeps_the_workspace_and_applies_the_autoscalers_patches(tmp_path: Path) -> None:
    workspace = find(render(REPOSITORY / "tests" / "pods" / "overlay"), "RayCluster")
    pod = {"metadata": {"name": "p1"}}

    def patch(part: str, value: object) -> list[dict[str, object]]:
        return [{"op": "replace", "path": f"/spec/workerGroupSpecs/0/{part}", "value": value}]

    with KubernetesApi("127.0.0.1", tmp_path, workspace, lambda: [pod]) as api:
        url = f"https://127.0.0.1:{api.environment['KUBERNETES_SERVICE_PORT_HTTPS']}"
        trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
        with httpx.Client(base_url=url, verify=trusted, trust_env=False) as client:
            assert client.get(CLUSTER).status_code == 401
            client.headers["Authorization"] = f"Bearer {api.account['token']}"
            assert client.get(CLUSTER).json()["spec"]["workerGroupSpecs"][0]["replicas"] == 0
            assert client.patch(CLUSTER, json=patch("replicas", 2)).status_code == 200
            assert api.group("workers")["replicas"] == 2
            assert client.patch(CLUSTER, json=patch("scaleStrategy", {"workersToDelete": ["p1"]})).status_code == 200
            # The manifest has `scaleStrategy` for this reason: a patch may not create what it replaces.
            assert client.patch(CLUSTER, json=patch("absent", 1)).status_code == 422
            assert api.group("workers")["scaleStrategy"] == {"workersToDelete": ["p1"]}
            assert client.get(f"{PODS}?labelSelector=ray.io%2Fcluster%3Dwarren-workspace").json()["items"] == [pod]
            assert [client.get(f"{PODS}/{name}").status_code for name in ("p1", "p2")] == [200, 404]
