"""Putting a release behind the endpoint: applied to Ray Serve, watched until it serves, undone if it does not."""

import os
import socket
import sys
import time
from typing import Any

import ray

from warren.cluster.serve.endpoint_config import (
    DEFAULT_SPEC,
    Candidate,
    EndpointSpec,
    Instance,
    ServeConfig,
    first_config,
)
from warren.cluster.session import job_environment, shipped_packages
from warren.compat.ray_core import dashboard_address
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


def roll_in(
    release_uri: str,
    release_name: str,
    resources: Resources,
    timeout_s: float,
    spec: EndpointSpec | None = None,
) -> None:
    """Serve a release in place of the one that serves; everything else that runs stays as it is.

    Args:
        release_uri: An immutable version.
        release_name: What its versions are versions of.
        resources: Of a replica, where no endpoint runs yet; one that runs keeps its own.
        timeout_s: How long it may take to come up before it is undone.
        spec: What an endpoint file says: the endpoint gets these settings; None keeps those of one that runs.

    Raises:
        ServiceError: The port is taken, what runs cannot be kept, or the release did not come up; what served before
            keeps serving.
    """
    endpoint = Endpoint(dashboard_url())
    candidate = Candidate(release_uri, release_name, shipped_packages(), job_environment())
    running = Instance.of(endpoint.details())
    if running is None:
        chosen = spec or DEFAULT_SPEC
        host, port = _listens_at(chosen)
        _check_port(host, port)
        name, config = chosen.application, first_config(candidate, resources, host, port, chosen)
        print(f"endpoint: new, at {host}:{port}, {_keys(chosen)}", file=sys.stderr)
    else:
        name, config = running.serving(candidate, resources, spec)
        _say_what_stays(running.settings, spec)
    before = {"applications": []} if running is None else running.config
    try:
        endpoint.apply(config)
        endpoint.wait(name, timeout_s)
    except ServiceError as failure:
        raise ServiceError(f"{failure}; {_undone(endpoint, name, before)}") from None


def rolling_endpoint(release_name: str) -> str | None:
    """Return the application of the running endpoint that rolls in releases of a name by itself, if there is one.

    Raises:
        ServiceError: Serve does not say what runs.
    """
    running = Instance.of(Endpoint(dashboard_url()).details())
    return None if running is None else running.rolling_endpoint(release_name)


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
    url = ray.init(ignore_reinit_error=True, logging_level="ERROR").dashboard_url or dashboard_address()
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


def _listens_at(spec: EndpointSpec) -> tuple[str, int]:
    """Return host and port of a new endpoint: the endpoint file's, or the environment's."""
    options = spec.instance["http_options"]
    host = options.get("host") or os.environ.get(_HOST_VARIABLE, _DEFAULT_HOST)
    return str(host), int(options.get("port") or serve_port())


def _keys(spec: EndpointSpec) -> str:
    has_keys = spec.args.get("api_keys_env") or spec.args.get("api_keys_file")
    return "with API keys" if has_keys else "without API keys"


def _say_what_stays(running: ServeConfig, spec: EndpointSpec | None) -> None:
    """Warn that options which differ from those of a running Serve have no effect."""
    http_options = running["http_options"]
    for variable, key in ((_HOST_VARIABLE, "host"), (PORT_VARIABLE, "port")):
        requested, current = os.environ.get(variable), str(http_options.get(key))
        declared = spec.instance["http_options"].get(key) if spec else None
        if declared is None and requested and requested != current:
            print(f"endpoint: {variable}={requested} has no effect, Serve runs with {key} {current}", file=sys.stderr)
    if spec is None:
        return
    for key, value in {**spec.instance["http_options"], "proxy_location": spec.instance["proxy_location"]}.items():
        kept = running.get(key) if key == "proxy_location" else http_options.get(key)
        if kept is not None and kept != value:
            print(
                f"endpoint: {key} {value} has no effect, Serve runs with {kept}; a new Serve instance takes it",
                file=sys.stderr,
            )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} on {host} is in use ({error.strerror}): set {PORT_VARIABLE} to a free one"
            ) from None
