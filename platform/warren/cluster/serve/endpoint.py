"""Putting a release behind the endpoint: applied to Ray Serve, watched until it serves, undone if it does not."""

import os
import socket
import sys
import time
from typing import Any

import ray

from warren.cluster.serve.endpoint_config import APPLICATION, Candidate, Instance, ServeConfig, first_config
from warren.cluster.session import job_environment, shipped_packages
from warren.compat.ray_serve import dashboard_client, reason_in
from warren.config import Resources
from warren.errors import ServiceError, WarrenError

_POLL_S = 1.0
_UNDO_TIMEOUT_S = 120.0
PORT_VARIABLE, _DEFAULT_PORT = "WARREN_SERVE_PORT", 8000
_HOST_VARIABLE, _DEFAULT_HOST = "WARREN_SERVE_HOST", "127.0.0.1"


def serve_port() -> int:
    """Return the port of a new endpoint, from `WARREN_SERVE_PORT` (8000)."""
    return int(os.environ.get(PORT_VARIABLE, _DEFAULT_PORT))


def roll_in(release_uri: str, release_name: str, resources: Resources, timeout_s: float) -> None:
    """Serve a release in place of the one that serves; everything else that runs stays as it is.

    Args:
        release_uri: An immutable version.
        release_name: What its versions are versions of.
        resources: Of a replica, where no endpoint runs yet; one that runs keeps its own.
        timeout_s: How long it may take to come up before it is undone.

    Raises:
        ServiceError: The port is taken, what runs cannot be kept, or the release did not come up; what served before
            keeps serving.
    """
    endpoint = Endpoint(dashboard_url())
    candidate = Candidate(release_uri, release_name, shipped_packages(), job_environment())
    running = Instance.of(endpoint.details())
    if running is None:
        host, port = os.environ.get(_HOST_VARIABLE, _DEFAULT_HOST), serve_port()
        _check_port(host, port)
        name, config = APPLICATION, first_config(candidate, resources, host, port)
        print(f"endpoint: new, at {host}:{port}, without API keys", file=sys.stderr)
    else:
        name, config = running.serving(candidate, resources)
        _say_where(running.settings["http_options"])
    before = {"applications": []} if running is None else running.config
    try:
        endpoint.apply(config)
        endpoint.wait(name, timeout_s)
    except ServiceError as failure:
        raise ServiceError(f"{failure}; {_undone(endpoint, name, before)}") from None


class Endpoint:
    """A cluster's Serve instance, through its REST API.

    Args:
        url: Of the cluster's dashboard.
    """

    def __init__(self, url: str) -> None:
        self._client = dashboard_client(url)

    def details(self) -> dict[str, Any]:
        """Return what runs (Serve's schema `ServeInstanceDetails`).

        Raises:
            ServiceError: Serve does not say.
        """
        try:
            return dict(self._client.get_serve_details())
        except (RuntimeError, OSError, ValueError) as error:
            raise ServiceError(f"what Ray Serve runs cannot be read: {_last_line(str(error))}") from None

    def apply(self, config: ServeConfig) -> None:
        """Apply a declarative configuration.

        Raises:
            ServiceError: Serve refuses it.
        """
        try:
            self._client.deploy_applications(config)
        except (RuntimeError, OSError) as error:
            raise ServiceError(f"Ray Serve refused the configuration: {_last_line(str(error))}") from None

    def wait(self, name: str, timeout_s: float) -> None:
        """Wait until an application runs.

        Raises:
            ServiceError: It failed, or did not come up in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status, message = self._status(name)
            if status == "RUNNING":
                return
            if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ServiceError(f"the release did not come up ({status}): {_last_line(message)}")
            time.sleep(_POLL_S)
        raise ServiceError(
            f"the release was not serving after {timeout_s:.0f} s (status {status}): {_last_line(message)}"
        )

    def _status(self, name: str) -> tuple[str, str]:
        details = self.details()["applications"].get(name, {})
        messages = [details.get("message", "")]
        messages += [d.get("message", "") for d in details.get("deployments", {}).values()]
        return details.get("status", "NOT_STARTED"), "\n".join(message for message in messages if message)


def dashboard_url() -> str:
    """Return the address of the cluster's dashboard, which takes jobs and Serve configurations."""
    url = ray.init(ignore_reinit_error=True, logging_level="ERROR").dashboard_url
    if not url:
        raise ServiceError("this Ray cluster has no dashboard: start it with --include-dashboard=true to deploy to it")
    return url if url.startswith("http") else f"http://{url}"


def _undone(endpoint: Endpoint, name: str, before: ServeConfig) -> str:
    """Go back to what ran before, and say what serves now."""
    previous = next((each for each in before["applications"] if each["name"] == name), None)
    try:
        endpoint.apply(before)
        if previous is None:
            return "nothing served before, and the failed application was removed"
        endpoint.wait(name, _UNDO_TIMEOUT_S)
    except ServiceError as error:
        return f"what served before could not be put back ({error}): look at it with `serve status`"
    return f"it was undone, and {previous.get('args', {}).get('release')} keeps serving"


def _last_line(message: str) -> str:
    return reason_in(message, WarrenError.__module__)


def _say_where(http_options: dict[str, Any]) -> None:
    """Tell whoever asks for another host or port that those of a running Serve cannot be changed."""
    for variable, key in ((_HOST_VARIABLE, "host"), (PORT_VARIABLE, "port")):
        wanted, runs = os.environ.get(variable), str(http_options.get(key))
        if wanted and wanted != runs:
            print(f"endpoint: {variable}={wanted} has no effect, Serve runs with {key} {runs}", file=sys.stderr)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} on {host} is in use ({error.strerror}): set {PORT_VARIABLE} to a free one"
            ) from None
