"""The part of a Kubernetes API server that Ray's autoscaler speaks with: one RayCluster and its pods, over TLS."""

import copy
import json
import secrets
import ssl
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kuberay_manifests import Resource

NAMESPACE = "default"
ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_CLUSTERS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters"


class PatchError(ValueError):
    """A JSON patch does not apply."""


@dataclass
class KubernetesApi:
    """A stand-in for an API server. It knows no other resource and keeps nothing on disk.

    A patch that replaces what is not there is refused, as servers of today do; some older ones took it for an `add`.

    Args:
        address: The address that it listens on.
        folder: An empty one, for the certificate.
        cluster: The RayCluster.
        list_pods: Returns the pods as Kubernetes would show them.
    """

    address: str
    folder: Path
    cluster: Resource
    list_pods: Callable[[], list[Resource]]
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    _version: int = 1

    def __post_init__(self) -> None:
        self.cluster = copy.deepcopy(self.cluster)
        self.cluster["metadata"] |= {"namespace": NAMESPACE, "resourceVersion": "1"}
        for group in self.cluster["spec"]["workerGroupSpecs"]:
            group.setdefault("replicas", 0)  # the default of the custom resource's definition
        self._lock = threading.Lock()

    def __enter__(self) -> "KubernetesApi":
        self._server = ThreadingHTTPServer((self.address, 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._certificate())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What the kubelet gives to every container."""
        port = str(self._server.server_address[1])
        return {"KUBERNETES_SERVICE_HOST": self.address, "KUBERNETES_SERVICE_PORT_HTTPS": port}

    @property
    def account(self) -> dict[str, str]:
        """The files of a pod's service account."""
        return {"token": self.token, "ca.crt": (self.folder / "tls.crt").read_text(), "namespace": NAMESPACE}

    def group(self, name: str) -> Mapping[str, Any]:
        """Return a worker group as it is now."""
        with self._lock:
            groups = self.cluster["spec"]["workerGroupSpecs"]
            return copy.deepcopy(next(group for group in groups if group["groupName"] == name))

    def get(self, path: str) -> Resource | None:
        """Answer a GET; None for what is not there."""
        if path == f"{_CLUSTERS}/{self.cluster['metadata']['name']}":
            with self._lock:
                return copy.deepcopy(self.cluster)
        pods = self.list_pods()
        if path == _PODS:
            return {"kind": "PodList", "metadata": {"resourceVersion": str(self._version)}, "items": pods}
        return next((pod for pod in pods if path == f"{_PODS}/{pod['metadata']['name']}"), None)

    def patch(self, operations: list[dict[str, Any]]) -> Resource:
        """Apply a JSON patch of replacements to the RayCluster.

        Raises:
            PatchError: It does not apply; nothing is changed.
        """
        with self._lock:
            changed = copy.deepcopy(self.cluster)
            for operation in operations:
                _replace(changed, operation)
            self._version += 1
            changed["metadata"]["resourceVersion"] = str(self._version)
            self.cluster = changed
            return copy.deepcopy(changed)

    def _certificate(self) -> tuple[Path, Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        certificate, key = self.folder / "tls.crt", self.folder / "tls.key"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes"]
        command += ["-addext", f"subjectAltName=IP:{self.address}", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        return certificate, key

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(lambda: api.get(self.path.partition("?")[0]))

            def do_PATCH(self) -> None:
                operations = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(lambda: api.patch(operations) if self.path.startswith(_CLUSTERS) else None)

            def _answer(self, act: Callable[[], Resource | None]) -> None:
                if self.headers.get("Authorization") != f"Bearer {api.token}":
                    return self._send(401, {"message": "Unauthorized"})
                try:
                    body = act()
                except PatchError as error:
                    return self._send(422, {"message": str(error)})
                return self._send(404, {"message": "not found"}) if body is None else self._send(200, body)

            def _send(self, status: int, body: Mapping[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def _replace(resource: Resource, operation: Mapping[str, Any]) -> None:
    if operation["op"] != "replace":
        raise PatchError(f"{operation['op']}: only replacements are known here")
    *parents, last = operation["path"].strip("/").split("/")
    place: Any = resource
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place.get(name)
        if place is None:
            raise PatchError(f"{operation['path']}: {name} is not there")
    if last not in place:
        raise PatchError(f"{operation['path']}: {last} is not there, and a replacement may not create it")
    place[last] = operation["value"]
