"""The configuration that Ray Serve gets for a new release: the running one, with one application's release changed.

With an endpoint file, that application gets the file's settings too: then only the file counts, and args and
deployment options that were set otherwise are dropped. The environment variables that it runs with stay.

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
IMPORT_PATH = "warren_serve.app:build"
FRONT_IMPORT_PATH = "warren_serve.front:build"
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

    def config(self, candidate: Candidate, resources: Resources) -> ServeConfig:
        """Return the configuration of the application that serves a release.

        The release is in the application's args: a new one starts new replicas beside the old (`max_surge_percent`),
        and Serve keeps the old ones until the new are healthy.

        Args:
            resources: They say what a replica takes, where the file does not.
        """
        runtime_env: ServeConfig = {"env_vars": {**IDLE_THREADS_SLEEP, **candidate.environment}}
        if candidate.packages:
            runtime_env["py_modules"] = list(candidate.packages)
        return {
            "name": self.application,
            "route_prefix": self.route,
            "import_path": IMPORT_PATH,
            "runtime_env": runtime_env,
            "logging_config": dict(self.instance["logging_config"]),
            "args": {
                "model_name": candidate.name,
                "num_cpus": resources.cpus_per_replica,
                "num_gpus": resources.gpus_per_replica,
                **self.args,
                "release": candidate.uri,
            },
        }


DEFAULT_SPEC = EndpointSpec()


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
        configs: dict[str, ServeConfig] = {}
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
                configs[name] = config
        settings = {key: details[key] for key in _INSTANCE_KEYS if details.get(key) is not None}
        return cls(settings, configs, others)

    @property
    def config(self) -> ServeConfig:
        """The configuration that changes nothing."""
        return {**self.settings, "applications": list(self.applications.values())}

    def serving(
        self, candidate: Candidate, resources: Resources, spec: EndpointSpec | None = None
    ) -> tuple[str, ServeConfig]:
        """Return the application that takes a release, and the configuration in which it does.

        Args:
            spec: What an endpoint file says; None keeps the settings of an application that runs.

        Raises:
            ServiceError: There is no application that can take it, or no place for a new one.
        """
        name = self._endpoint_of(candidate) if spec is None else self._declared(spec)
        if name is None:
            chosen = spec or DEFAULT_SPEC
            self._check_free(chosen)
            name, changed = chosen.application, chosen.config(candidate, resources)
        elif spec is None:
            changed = _with_release(self.applications[name], candidate)
        else:
            self._check_free(spec, but=name)
            changed = _as_declared(self.applications[name], spec.config(candidate, resources))
        applications = {**self.applications, name: changed}
        return name, {**self.settings, "applications": list(applications.values())}

    def rolling_endpoint(self, release_name: str) -> str | None:
        """Return the application that rolls in releases of a name by itself, if there is one."""
        for name, config in self.applications.items():
            parts = str(config.get("args", {}).get("release", "")).rstrip("/").split("/")
            names = parts[:-1] if parts[-1] in ALIASES else parts
            if config.get("import_path") == FRONT_IMPORT_PATH and names and names[-1] == release_name:
                return name
        return None

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

    def _declared(self, spec: EndpointSpec) -> str | None:
        """Return the application that an endpoint file names, if it runs."""
        config = self.applications.get(spec.application, {})
        return spec.application if config.get("import_path") == IMPORT_PATH else None

    def _check_free(self, spec: EndpointSpec, but: str | None = None) -> None:
        """Check that an application can be added, or take another route.

        Args:
            but: The application itself, if it runs.
        """
        if but is None and spec.application in {**self.applications, **self.others}:
            raise ServiceError(
                f"the application {spec.application!r} was not deployed as an endpoint of Warren by a configuration, "
                "so its settings and API keys cannot be kept: delete it, or deploy the release by hand"
            )
        routes = {name: config.get("route_prefix", ROUTE) for name, config in self.applications.items()} | self.others
        taken = [name for name, route in routes.items() if route == spec.route and name != but]
        if taken:
            raise ServiceError(
                f"the application {taken[0]!r} serves the route {spec.route!r} already: take an endpoint file with "
                f"another route_prefix (jobs/release.py --endpoint), or deploy the endpoint by hand, as an application "
                f"called {spec.application!r}; later releases roll into it"
            )


def first_config(
    candidate: Candidate, resources: Resources, host: str, port: int, spec: EndpointSpec = DEFAULT_SPEC
) -> ServeConfig:
    """Return the configuration of a Serve instance that does not run yet.

    Args:
        host: Where it listens; so is `port`.
        spec: What an endpoint file says.
    """
    http_options = {**spec.instance["http_options"], "host": host, "port": port}
    return {**spec.instance, "http_options": http_options, "applications": [spec.config(candidate, resources)]}


def _as_declared(config: ServeConfig, declared: ServeConfig) -> ServeConfig:
    """Return what an endpoint file declares, with what the running application keeps: variables, own modules."""
    running = deepcopy(config.get("runtime_env") or {})
    declared_env = declared["runtime_env"]
    own = [module for module in running.get("py_modules") or [] if not is_shipped_package(str(module))]
    runtime_env = {**running, "env_vars": {**(running.get("env_vars") or {}), **declared_env["env_vars"]}}
    runtime_env.pop("py_modules", None)
    if modules := [*own, *declared_env.get("py_modules", [])]:
        runtime_env["py_modules"] = modules
    return {**declared, "runtime_env": runtime_env}


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
