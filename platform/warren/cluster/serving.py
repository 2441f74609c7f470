"""Putting a release behind the endpoint: a declarative Ray Serve configuration, watched until it serves or fails."""

import os
import socket
import time
from typing import Any

import ray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from warren.cluster.session import job_environment, shipped_packages
from warren.config import Resources
from warren.errors import ServiceError

APPLICATION = "chat"  # as in the RayService manifest
IMPORT_PATH = "warren_serve.app:build"
_POLL_S = 1.0
PORT_VARIABLE, _DEFAULT_PORT = "WARREN_SERVE_PORT", 8000
_HOST_VARIABLE, _DEFAULT_HOST = "WARREN_SERVE_HOST", "127.0.0.1"


def serve_port() -> int:
    """Return the endpoint's port, from `WARREN_SERVE_PORT` (8000)."""
    return int(os.environ.get(PORT_VARIABLE, _DEFAULT_PORT))


def application_config(release_uri: str, model_name: str, resources: Resources) -> dict[str, Any]:
    """Write the Serve configuration of an endpoint.

    The release is in the application's args: a new one starts new replicas beside the old (`max_surge_percent`), and
    Serve keeps the old ones until the new are healthy.
    """
    # Waiting compute threads must not spin: on shared cores that is ten times slower.
    runtime_env: dict[str, Any] = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", **job_environment()}}
    if packages := shipped_packages():
        runtime_env["py_modules"] = packages
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": os.environ.get(_HOST_VARIABLE, _DEFAULT_HOST), "port": serve_port()},
        "logging_config": {"log_level": "WARNING"},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "runtime_env": runtime_env,
                "args": {
                    "release": release_uri,
                    "model_name": model_name,
                    "num_cpus": resources.cpus_per_replica,
                    "num_gpus": resources.gpus_per_replica,
                },
            }
        ],
    }


def deploy(config: dict[str, Any], timeout_s: float = 300.0) -> None:
    """Apply a Serve configuration and wait until the application runs.

    Raises:
        ServiceError: The port is taken, or the application did not come up; an older one keeps serving.
    """
    client = ServeSubmissionClient(dashboard_url())
    if not client.get_serve_details().get("applications"):
        _check_port(config["http_options"]["host"], config["http_options"]["port"])
    client.deploy_applications(config)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status, message = _status(client)
        if status == "RUNNING":
            return
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ServiceError(f"the release did not come up ({status}): {_last_line(message)}")
        time.sleep(_POLL_S)
    raise ServiceError(f"the release was not serving after {timeout_s:.0f} s (status {status}): {_last_line(message)}")


def dashboard_url() -> str:
    """Return the address of the cluster's dashboard, which takes jobs and Serve configurations."""
    url = ray.init(ignore_reinit_error=True, logging_level="ERROR").dashboard_url
    if not url:
        raise ServiceError("this Ray cluster has no dashboard: start it with --include-dashboard=true to deploy to it")
    return url if url.startswith("http") else f"http://{url}"


def _status(client: ServeSubmissionClient) -> tuple[str, str]:
    details = client.get_serve_details()["applications"].get(APPLICATION, {})
    messages = [details.get("message", "")]
    messages += [d.get("message", "") for d in details.get("deployments", {}).values()]
    return details.get("status", "NOT_STARTED"), "\n".join(message for message in messages if message)


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    known = [line for line in lines if "warren.errors." in line]
    return (known or lines or ["no reason was given"])[-1]


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} on {host} is in use ({error.strerror}): set {PORT_VARIABLE} to a free one"
            ) from None
