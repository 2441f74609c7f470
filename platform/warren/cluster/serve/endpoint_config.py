"""The configuration that deploys an endpoint: everything that Ray Serve runs, unchanged, and that one application.

An endpoint's configuration names a release and no version, so it changes only when its file or the code does; versions
roll in without it (`warren_serve.front`). An endpoint file replaces what was set in another way (the
application's args, options of its deployments). The environment variables of the running application stay.

A declarative configuration is the whole truth for Serve: applications that it does not name are deleted, and settings
that it does not repeat fall back to their defaults. So what runs is read first, from Serve's REST API
(`GET /api/serve/applications/`, schema `ServeInstanceDetails`), and put back as it was.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from warren.compat.environment_variables import IDLE_THREADS_SLEEP
from warren.compat.ray_serve import is_redacted, is_shipped_package
from warren.config import Resources
from warren.errors import ServiceError
from warren.release import ALIASES

APPLICATION = "chat"  # as in the RayService manifest
FRONT_IMPORT_PATH = "warren_serve.front:build"
ROUTE = "/"
_INSTANCE_KEYS = ("proxy_location", "http_options", "grpc_options", "target_capacity")

ServeConfig = dict[str, Any]


@dataclass(frozen=True)
class EndpointSource:
    """What an endpoint gets from the job that deploys it.

    Attributes:
        folder: URI of the release's folder, without a version.
        name: Of the release; what clients call the model, if nobody chose another name.
        packages: Where the cluster stored the code that the job brought; empty where Warren is installed.
        environment: Variables that the job was given; a new endpoint gets them too.
    """

    folder: str
    name: str
    packages: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointSpec:
    """An endpoint as its file declares it, in the words of Ray Serve.

    Attributes:
        application: Name of the Serve application.
        route: Path below which it answers.
        args: The application's, without the release.
        instance: Proxy location, HTTP options and logging of the Serve instance.
    """

    application: str = APPLICATION
    route: str = ROUTE
    args: Mapping[str, Any] = field(default_factory=dict)
    instance: Mapping[str, Any] = field(
        default_factory=lambda: {
            "proxy_location": "HeadOnly",
            "http_options": {},
            "logging_config": {"log_level": "WARNING"},
        }
    )

    def config(self, source: EndpointSource, resources: Resources) -> ServeConfig:
        """Return the application's configuration.

        Args:
            resources: They say what an engine replica takes, where the file does not.
        """
        runtime_env: ServeConfig = {"env_vars": {**IDLE_THREADS_SLEEP, **source.environment}}
        if source.packages:
            runtime_env["py_modules"] = list(source.packages)
        return {
            "name": self.application,
            "route_prefix": self.route,
            "import_path": FRONT_IMPORT_PATH,
            "runtime_env": runtime_env,
            "logging_config": dict(self.instance["logging_config"]),
            "args": {
                "model_name": source.name,
                "num_cpus": resources.cpus_per_replica,
                "num_gpus": resources.gpus_per_replica,
                **self.args,
                "release": source.folder,
            },
        }


@dataclass(frozen=True)
class Deployment:
    """The change that makes an endpoint what its file declares.

    Attributes:
        application: Its name.
        config: The configuration to apply.
        changes: What changes in a running application, as dotted keys; None if it is a new one.
    """

    application: str
    config: ServeConfig
    changes: tuple[str, ...] | None


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
        # Where Serve does not run, Ray returns an empty schema, without HTTP options.
        if not details.get("http_options"):
            return None
        configs: dict[str, ServeConfig] = {}
        others: dict[str, str | None] = {}
        for name, application in details.get("applications", {}).items():
            config = application.get("deployed_app_config")
            if application.get("source") == "imperative":
                others[name] = application.get("route_prefix")
            elif application.get("status") == "DELETING":
                raise ServiceError(f"the application {name!r} is being deleted: wait until it is gone, then release")
            elif not isinstance(config, dict) or is_redacted(config.get("runtime_env")):
                raise ServiceError(
                    f"the configuration of the application {name!r} cannot be read from Serve, so it would be lost: "
                    "nothing is deployed; deploy all applications by hand, with `serve deploy`"
                )
            else:
                configs[name] = config
        settings = {key: details[key] for key in _INSTANCE_KEYS if details.get(key) is not None}
        return cls(settings, configs, others)

    @property
    def config(self) -> ServeConfig:
        """The configuration that changes nothing."""
        return {**self.settings, "applications": list(self.applications.values())}

    def without(self, application: str) -> ServeConfig:
        """Return the configuration that deletes an application and changes nothing else."""
        kept = [config for name, config in self.applications.items() if name != application]
        return {**self.settings, "applications": kept}

    def deploying(self, source: EndpointSource, resources: Resources, spec: EndpointSpec) -> Deployment:
        """Return the change that makes an endpoint what its file declares.

        Raises:
            ServiceError: Something else has its name or its route.
        """
        running = self.applications.get(spec.application)
        if running is not None and running.get("import_path") == FRONT_IMPORT_PATH:
            changed = _as_declared(running, spec.config(source, resources))
            changes = _changes(running, changed)
        elif spec.application in {**self.applications, **self.others}:
            raise ServiceError(
                f"the application {spec.application!r} was not deployed as a rolling endpoint ({FRONT_IMPORT_PATH}) by "
                "a configuration, so its settings and API keys cannot be kept: delete it, or name another one with "
                "--set endpoint.application=NAME and a route of its own"
            )
        else:
            changed, changes = spec.config(source, resources), None
        self._check_route(spec)
        applications = {**self.applications, spec.application: changed}
        config = {**self.settings, "applications": list(applications.values())}
        return Deployment(spec.application, config, changes)

    def rolling_endpoint(self, release_name: str) -> str | None:
        """Return the application that rolls in releases of a name, if there is one.

        Raises:
            ServiceError: There are several.
        """
        matching = []
        for name, config in self.applications.items():
            # `…/releases/NAME` or `…/releases/NAME/ALIAS`.
            parts = str(config.get("args", {}).get("release", "")).rstrip("/").split("/")
            names = parts[:-1] if parts[-1] in ALIASES else parts
            if config.get("import_path") == FRONT_IMPORT_PATH and names and names[-1] == release_name:
                matching.append(name)
        if len(matching) > 1:
            raise ServiceError(
                f"{' and '.join(matching)} roll in releases of {release_name!r}: "
                "name the one to wait for with --endpoint"
            )
        return matching[0] if matching else None

    def _check_route(self, spec: EndpointSpec) -> None:
        routes = {name: config.get("route_prefix", ROUTE) for name, config in self.applications.items()} | self.others
        taken = [name for name, route in routes.items() if route == spec.route and name != spec.application]
        if taken:
            raise ServiceError(
                f"the application {taken[0]!r} already serves the route {spec.route!r}: give the endpoint another one, "
                "with route_prefix in its file or --set endpoint.route_prefix=/…"
            )


def first_config(source: EndpointSource, resources: Resources, host: str, port: int, spec: EndpointSpec) -> ServeConfig:
    """Return the configuration of a Serve instance that does not run yet.

    Args:
        host: Where it listens; so is `port`.
        spec: What an endpoint file says.
    """
    http_options = {**spec.instance["http_options"], "host": host, "port": port}
    return {**spec.instance, "http_options": http_options, "applications": [spec.config(source, resources)]}


def _as_declared(config: ServeConfig, declared: ServeConfig) -> ServeConfig:
    """Return what an endpoint file declares, with what the running application keeps: variables, own modules."""
    running = deepcopy(config.get("runtime_env") or {})
    declared_env = declared["runtime_env"]
    # The job's own package replaces the one of the job before; modules that a person added stay.
    own = [module for module in running.get("py_modules") or [] if not is_shipped_package(str(module))]
    runtime_env = {**running, "env_vars": {**(running.get("env_vars") or {}), **declared_env["env_vars"]}}
    runtime_env.pop("py_modules", None)
    if modules := [*own, *declared_env.get("py_modules", [])]:
        runtime_env["py_modules"] = modules
    return {**declared, "runtime_env": runtime_env}


def _changes(running: ServeConfig, declared: ServeConfig) -> tuple[str, ...]:
    """Return the dotted keys in which a declared application differs from the running one.

    Serve adds defaults to the logging options that it was given, so only those that are declared are compared.
    """
    logging = {key: (running.get("logging_config") or {}).get(key) for key in declared["logging_config"]}
    before, after = {**running, "logging_config": logging}, declared
    changed: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if key in ("args", "runtime_env") and isinstance(old, dict) and isinstance(new, dict):
            prefix = "" if key == "args" else f"{key}."
            changed += [f"{prefix}{each}" for each in sorted({*old, *new}) if old.get(each) != new.get(each)]
        elif old != new:
            changed.append(key)
    return tuple(changed)
