"""An endpoint on a cluster's Ray Serve: deployed as its file declares it, undone if it does not come up, deleted."""

import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

import ray

from warren.cluster.capacity import lacks, size_of, waiting
from warren.cluster.serve.endpoint_config import (
    APPLICATION,
    EndpointSource,
    EndpointSpec,
    Instance,
    ServeConfig,
    first_config,
)
from warren.cluster.session import job_environment, shipped_packages
from warren.compat.ray_core import dashboard_address
from warren.compat.ray_serve import dashboard_client, reason_in
from warren.config import Resources
from warren.config.names import ENGINE_MARK
from warren.errors import ServiceError, WarrenError

_POLL_S = 1.0
_UNDO_TIMEOUT_S = 120.0
PORT_VARIABLE, _DEFAULT_PORT = "WARREN_SERVE_PORT", 8000
_HOST_VARIABLE, _DEFAULT_HOST = "WARREN_SERVE_HOST", "127.0.0.1"
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def serve_port() -> int:
    """Return the port of a new endpoint, from `WARREN_SERVE_PORT` (8000)."""
    return int(os.environ.get(PORT_VARIABLE, _DEFAULT_PORT))


@dataclass
class DeployedEndpoint:
    """An endpoint that runs, or was just deployed.

    Attributes:
        application: Its name.
        args: The application's args.
        before: The configuration to go back to if what was applied fails; None if nothing was applied.
    """

    endpoint: "Endpoint"
    application: str
    args: dict[str, Any]
    before: ServeConfig | None = None

    def is_running(self) -> bool:
        """Tell whether its application runs. It does once a release answers.

        Raises:
            ServiceError: What was applied failed; it was undone.
        """
        status, message = self.endpoint.status(self.application)
        if status == "RUNNING":
            # It came up, so a failure from now on is not the new configuration's: nothing to undo any more.
            self.before = None
        elif status in _FAILED and self.before is not None:
            undone = _undone(self.endpoint, self.application, self.before)
            raise ServiceError(f"the endpoint did not come up ({status}): {_last_line(message)}; {undone}")
        return status == "RUNNING"

    def waits_for_room(self, version: str) -> str:
        """Say what the engines of a version wait for, if they do not run and the cluster has no place for one."""
        if self.endpoint.status(f"{self.application}{ENGINE_MARK}{version}")[0] != "DEPLOYING":
            return ""
        cpus, gpus = float(self.args.get("num_cpus", 1.0)), float(self.args.get("num_gpus", 0.0))
        return waiting(size_of(1, "engine replicas", cpus, gpus)) if lacks(cpus, gpus) else ""


def ensure_endpoint(
    folder: str, release_name: str, resources: Resources, spec: EndpointSpec, keeps_settings: bool = False
) -> DeployedEndpoint:
    """Deploy the endpoint of a release, unless it runs as it is declared. Everything else that runs stays as it is.

    Args:
        folder: URI of the release's folder, without a version.
        release_name: What its versions are versions of.
        resources: Of an engine replica, where the file does not say.
        spec: What an endpoint file says.
        keeps_settings: Whether an endpoint of this release that runs is taken as it is, whatever `spec` says.

    Raises:
        ServiceError: The port is taken, or what runs cannot be kept.
    """
    endpoint = Endpoint(dashboard_url())
    running = Instance.of(endpoint.details())
    source = EndpointSource(folder, release_name, shipped_packages(), job_environment())
    if running is None:
        host, port = _listens_at(spec)
        _check_port(host, port)
        print(f"endpoint: new, at {host}:{port}, {_keys(spec)}", file=sys.stderr)
        endpoint.apply(first_config(source, resources, host, port, spec))
        args = spec.config(source, resources)["args"]
        return DeployedEndpoint(endpoint, spec.application, args, {"applications": []})
    name = running.rolling_endpoint(release_name) if keeps_settings else None
    if name is not None:
        print(f"endpoint: {name} runs, and keeps its settings", file=sys.stderr)
        return DeployedEndpoint(endpoint, name, running.applications[name].get("args", {}))
    _say_what_stays(running.settings, spec)
    deployment = running.deploying(source, resources, spec)
    args = spec.config(source, resources)["args"]
    # No change: applying the configuration would restart replicas for nothing.
    if deployment.changes == ():
        return DeployedEndpoint(endpoint, spec.application, args)
    print(f"endpoint: {_what_changes(spec, deployment.changes)}", file=sys.stderr)
    endpoint.apply(deployment.config)
    return DeployedEndpoint(endpoint, spec.application, args, running.config)


def delete_endpoint(application: str = APPLICATION, timeout_s: float = 600.0) -> list[str]:
    """Delete an endpoint and the applications of its engines; running answers end first. Return what was deleted.

    The endpoint goes first, because its controller would start its engines again.

    Raises:
        ServiceError: Serve does not do it in time, or what else runs could not be kept.
    """
    from ray import serve  # late: whoever releases has no need of it

    endpoint = Endpoint(dashboard_url())
    running = Instance.of(endpoint.details())
    if running is None:
        return []
    if application in running.applications:
        endpoint.apply(running.without(application))
        endpoint.wait_until_gone(application, timeout_s)
    # Read again: the controller may have started engines until it was gone.
    engines = [name for name in endpoint.details()["applications"] if name.startswith(f"{application}{ENGINE_MARK}")]
    for name in engines:
        serve.delete(name)
        endpoint.wait_until_gone(name, timeout_s)
    return [*([application] if application in running.applications else []), *engines]


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
            status, message = self.status(name)
            if status == "RUNNING":
                return
            if status in _FAILED:
                raise ServiceError(f"{name} did not come up ({status}): {_last_line(message)}")
            time.sleep(_POLL_S)
        raise ServiceError(
            f"{name} does not run after {timeout_s:.0f} s (status {status}): {_last_line(message)}; "
            "see `serve status`, and the replicas' logs in the dashboard"
        )

    def wait_until_gone(self, name: str, timeout_s: float) -> None:
        """Wait until an application is deleted.

        Raises:
            ServiceError: It is still there.
        """
        deadline = time.monotonic() + timeout_s
        while name in self.details()["applications"]:
            if time.monotonic() > deadline:
                raise ServiceError(f"the application {name!r} is still there after {timeout_s:.0f} s: try again")
            time.sleep(_POLL_S)

    def status(self, name: str) -> tuple[str, str]:
        """Return an application's status, and what Serve says of it and its deployments."""
        details = self.details()["applications"].get(name, {})
        messages = [details.get("message", "")]
        # An application's own message is often empty; its deployments say what failed.
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
            return "there was none before, so it was removed"
        endpoint.wait(name, _UNDO_TIMEOUT_S)
    except ServiceError as error:
        return f"what ran before could not be put back ({error}): look at it with `serve status`"
    return "it was undone, and the endpoint keeps its former settings"


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


def _what_changes(spec: EndpointSpec, changes: tuple[str, ...] | None) -> str:
    """Say what becomes of an endpoint, and what its users notice."""
    if changes is None:
        return f"{spec.application} is new, at {spec.route}, {_keys(spec)}"
    return (
        f"{spec.application} changes {', '.join(changes)}: its ingress, controller and accounts are replaced without "
        "failing requests, keys' counts start again; engines keep their settings until the next release"
    )


def _say_what_stays(running: ServeConfig, spec: EndpointSpec) -> None:
    """Warn that options which differ from those of a running Serve have no effect."""
    http_options = running["http_options"]
    for variable, key in ((_HOST_VARIABLE, "host"), (PORT_VARIABLE, "port")):
        requested, current = os.environ.get(variable), str(http_options.get(key))
        declared = spec.instance["http_options"].get(key)
        if declared is None and requested and requested != current:
            print(f"endpoint: {variable}={requested} has no effect, Serve runs with {key} {current}", file=sys.stderr)
    for key, value in {**spec.instance["http_options"], "proxy_location": spec.instance["proxy_location"]}.items():
        kept = running.get(key) if key == "proxy_location" else http_options.get(key)
        if kept is not None and kept != value:
            print(
                f"endpoint: {key} {value} has no effect, Serve runs with {kept}; a new Serve instance takes it",
                file=sys.stderr,
            )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        # A port that was just closed (TIME_WAIT) is free for Serve, so it is for this probe.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} on {host} is in use ({error.strerror}): set {PORT_VARIABLE} to a free one"
            ) from None
