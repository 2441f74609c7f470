"""What Ray Serve is told when a release rolls in: everything that runs, unchanged, but for one application's release.

A declarative configuration is the whole truth for Serve: applications that it does not name are deleted, and settings
that it does not repeat fall back to their defaults. So what runs is read first, from Serve's REST API
(`GET /api/serve/applications/`, schema `ServeInstanceDetails`), and put back as it was.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from warren.compat.ray_serve import is_redacted, is_shipped_package
from warren.compat.variables import IDLE_THREADS_SLEEP
from warren.config import Resources
from warren.errors import ServiceError

APPLICATION = "chat"  # as in the RayService manifest
IMPORT_PATH = "warren_serve.app:build"
ROUTE = "/"
_INSTANCE_KEYS = ("proxy_location", "http_options", "grpc_options", "target_capacity")

ServeConfig = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What is to be served.

    Attributes:
        uri: An immutable version of a release.
        name: Of the release; what clients call the model, if nobody chose another name.
        packages: Where the cluster stored the code that this job brought; empty where Warren is installed.
        environment: Variables that this job was given; a new endpoint gets them too.
    """

    uri: str
    name: str
    packages: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Instance:
    """A running Serve instance.

    Attributes:
        settings: Proxy location, HTTP and gRPC options, target capacity.
        applications: Configurations of the applications that were deployed declaratively, as they were submitted.
        others: Routes of applications that were not; applying a configuration leaves those alone.
    """

    settings: ServeConfig
    applications: dict[str, ServeConfig]
    others: dict[str, str | None]

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> "Instance | None":
        """Read what runs, from the details that Serve gives; None if Serve does not run.

        Raises:
            ServiceError: An application's configuration cannot be read, so it could not be kept.
        """
        if not details.get("http_options"):
            return None
        found: dict[str, ServeConfig] = {}
        others: dict[str, str | None] = {}
        for name, application in details.get("applications", {}).items():
            config = application.get("deployed_app_config")
            if application.get("status") == "DELETING":
                raise ServiceError(f"the application {name!r} is being deleted: wait until it is gone, then release")
            if application.get("source") == "imperative":
                others[name] = application.get("route_prefix")
            elif not isinstance(config, dict) or is_redacted(config.get("runtime_env")):
                raise ServiceError(
                    f"the configuration of the application {name!r} cannot be read from Serve, so it would be lost: "
                    "nothing is deployed; deploy all applications by hand, with `serve deploy`"
                )
            else:
                found[name] = config
        settings = {key: details[key] for key in _INSTANCE_KEYS if details.get(key) is not None}
        return cls(settings, found, others)

    @property
    def config(self) -> ServeConfig:
        """The configuration that changes nothing."""
        return {**self.settings, "applications": list(self.applications.values())}

    def serving(self, candidate: Candidate, resources: Resources) -> tuple[str, ServeConfig]:
        """Return the application that takes a release, and the configuration in which it does.

        Raises:
            ServiceError: There is no application that can take it, or no place for a new one.
        """
        name = self._endpoint_of(candidate)
        if name is None:
            self._check_free()
            name, changed = APPLICATION, new_application(candidate, resources)
        else:
            changed = _with_release(self.applications[name], candidate)
        applications = {**self.applications, name: changed}
        return name, {**self.settings, "applications": list(applications.values())}

    def _endpoint_of(self, candidate: Candidate) -> str | None:
        """Find the endpoint of a release: the one that serves an earlier version, else the one called `chat`."""
        endpoints = [name for name, config in self.applications.items() if config.get("import_path") == IMPORT_PATH]
        own = [name for name in endpoints if _release_name(self.applications[name]) == candidate.name]
        if len(own) == 1:
            return own[0]
        if APPLICATION in endpoints:
            return APPLICATION
        if len(own) > 1:
            raise ServiceError(
                f"{' and '.join(own)} serve {candidate.name!r}: call the one that is to take releases {APPLICATION!r}"
            )
        return None

    def _check_free(self) -> None:
        if APPLICATION in {**self.applications, **self.others}:
            raise ServiceError(
                f"the application {APPLICATION!r} was not deployed as an endpoint of Warren by a configuration, so its "
                "settings and API keys cannot be kept: delete it, or deploy the release by hand"
            )
        routes = {name: config.get("route_prefix", ROUTE) for name, config in self.applications.items()} | self.others
        taken = [name for name, route in routes.items() if route == ROUTE]
        if taken:
            raise ServiceError(
                f"the application {taken[0]!r} serves the route {ROUTE!r} already: deploy the endpoint by hand, as "
                f"an application called {APPLICATION!r} with another route_prefix; later releases roll into it"
            )


def first_config(candidate: Candidate, resources: Resources, host: str, port: int) -> ServeConfig:
    """Return the configuration of a Serve instance that does not run yet."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "logging_config": {"log_level": "WARNING"},
        "applications": [new_application(candidate, resources)],
    }


def new_application(candidate: Candidate, resources: Resources) -> ServeConfig:
    """Return the configuration of an endpoint with default settings.

    The release is in the application's args: a new one starts new replicas beside the old (`max_surge_percent`), and
    Serve keeps the old ones until the new are healthy.
    """
    runtime_env: ServeConfig = {"env_vars": {**IDLE_THREADS_SLEEP, **candidate.environment}}
    if candidate.packages:
        runtime_env["py_modules"] = list(candidate.packages)
    return {
        "name": APPLICATION,
        "route_prefix": ROUTE,
        "import_path": IMPORT_PATH,
        "runtime_env": runtime_env,
        "logging_config": {"log_level": "WARNING"},
        "args": {
            "release": candidate.uri,
            "model_name": candidate.name,
            "num_cpus": resources.cpus_per_replica,
            "num_gpus": resources.gpus_per_replica,
        },
    }


def _with_release(config: ServeConfig, candidate: Candidate) -> ServeConfig:
    """Change an application's release, and what goes with it, and nothing else."""
    changed = deepcopy(config)
    args = changed.setdefault("args", {})
    if args.get("model_name") == _release_name(config):  # nobody chose another name
        args["model_name"] = candidate.name
    args["release"] = candidate.uri
    runtime_env = changed.get("runtime_env") or {}
    modules = runtime_env.get("py_modules") or []
    kept = [module for module in modules if not is_shipped_package(str(module))]
    if len(kept) < len(modules):  # code that an earlier job brought: the release is of this job's
        runtime_env["py_modules"] = [*kept, *candidate.packages]
    return changed


def _release_name(config: ServeConfig) -> str | None:
    """Return the NAME of `…/releases/NAME/VERSION` that an application serves."""
    parts = str(config.get("args", {}).get("release", "")).rstrip("/").split("/")
    return parts[-2] if len(parts) >= 2 else None
