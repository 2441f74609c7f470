"""The endpoint file: an endpoint's settings, how releases roll in, and Ray Serve's own options, in one YAML file.

    # my-endpoint.yaml
    extends: laptop
    settings: {web_page: true, max_replicas: 4, api_keys_file: /etc/warren/keys}
    rollout: {steps: [0.1, 1.0], step_s: 60}
    serve: {http: {port: 9000}}

`jobs/release.py --endpoint my-endpoint.yaml` deploys it. A Serve configuration names it in the application's args:
`args: {endpoint: kuberay, release: demo}`. Named files are in `jobs/endpoints/`.
"""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from warren.compat.ray_serve import SERVE_BY_HAPROXY
from warren.config import Config, RolloutPolicy, load_config
from warren.config.folders import config_folders
from warren.config.names import EndpointName, Name
from warren.errors import ConfigError
from warren_serve.settings import EndpointSettings


class HttpOptions(Config):
    """Where Serve's proxies listen. Fixed as long as Serve runs."""

    host: str | None = Field(
        default=None, min_length=1, description="Address to listen on; null takes `WARREN_SERVE_HOST`, or 127.0.0.1."
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Port to listen on; null takes `WARREN_SERVE_PORT`, or 8000."
    )
    root_path: str = Field(default="", description="Prefix that a proxy in front removes from the path.")
    request_timeout_s: float | None = Field(
        default=None, gt=0, description="Serve's own limit; null leaves it to the setting `request_timeout_s`."
    )
    keep_alive_timeout_s: int = Field(default=90, gt=0, description="How long an idle connection is kept.")
    ssl_keyfile: str | None = Field(default=None, min_length=1, description="Key of the certificate; null: no TLS.")
    ssl_certfile: str | None = Field(default=None, min_length=1, description="Certificate; it goes with the key.")
    ssl_ca_certs: str | None = Field(default=None, min_length=1, description="Authorities of clients' certificates.")

    @model_validator(mode="after")
    def _key_has_certificate(self) -> "HttpOptions":
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("ssl_keyfile and ssl_certfile go together: give both, or neither")
        return self


class LoggingOptions(Config):
    """What Serve's processes write."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="WARNING", description="Least level that is written."
    )
    encoding: Literal["TEXT", "JSON"] = Field(default="TEXT", description="Form of a line.")
    enable_access_log: bool = Field(default=True, description="Write a line for each request, at the level INFO.")


class ServeOptions(Config):
    """Ray Serve's own options. All but `logging` are fixed as long as Serve runs."""

    proxy_location: Literal["HeadOnly", "EveryNode", "Disabled"] = Field(
        default="HeadOnly", description="The nodes that have a proxy; `EveryNode` is those with a replica."
    )
    haproxy: bool = Field(
        default=False,
        description="Ask for Serve's HAProxy. Serve takes it from an environment variable of its nodes, which must "
        "have been started with it; a cluster without it is refused, and the error names the variable.",
    )
    http: HttpOptions = Field(default=HttpOptions(), description="Where the proxies listen.")
    logging: LoggingOptions = Field(default=LoggingOptions(), description="What Serve writes to its logs.")

    def to_config(self) -> dict[str, Any]:
        """Return the keys of a Serve configuration that say this; host and port only where they are given."""
        return {
            "proxy_location": self.proxy_location,
            "http_options": self.http.model_dump(mode="json", exclude_unset=True, exclude_none=True),
            "logging_config": self.logging.model_dump(mode="json"),
        }


class EndpointFile(Config):
    """One endpoint: which release it serves, how, and under which of Serve's options."""

    noun: ClassVar[str] = "endpoint"

    name: Name = Field(description="What it is called; the file's name where the file does not say.")
    description: str = Field(default="", description="For people.")
    release: Name | None = Field(
        default=None, description="Name of the release whose versions it serves; null takes the recipe's."
    )
    application: EndpointName = Field(
        default="chat",
        description="Name of the Serve application. It has no `-engine-` in it, because the engines of a version are "
        "the application `NAME-engine-VERSION`.",
    )
    route_prefix: str = Field(default="/", pattern=r"^/\S*$", description="Path below which it answers.")
    settings: EndpointSettings = Field(
        default=EndpointSettings(), description="The settings of [endpoint.md](endpoint.md), without the release."
    )
    rollout: RolloutPolicy = Field(
        default=RolloutPolicy(), description="How candidates roll in ([rollout.md](../rollout.md))."
    )
    serve: ServeOptions = Field(default=ServeOptions(), description="Ray Serve's own options.")

    def require_release(self, default: str | None = None) -> str:
        """Return the name of the release that it serves.

        Args:
            default: The recipe's release; None where there is no recipe.

        Raises:
            ConfigError: It names none and there is no default, or names another than the default.
        """
        if self.release is None and default is None:
            raise ConfigError(f"endpoint {self.name!r} names no release: add `release: NAME` to its file")
        if self.release is not None and default not in (None, self.release):
            raise ConfigError(
                f"endpoint {self.name!r} serves releases of {self.release!r}, but the recipe releases {default!r}: "
                "take the endpoint of that release, or set endpoint.release"
            )
        return self.release or default or ""

    def application_args(self) -> dict[str, Any]:
        """Return the application's `args`, without the release: what the file and `--set` say, and no defaults."""
        args = self.settings.model_dump(mode="json", exclude_unset=True)
        policy = self.rollout.model_dump(mode="json", exclude_unset=True)
        return {**args, "rollout": policy} if policy else args

    def check_haproxy(self) -> None:
        """Check that the cluster's nodes were started with Serve's HAProxy, if it is asked for.

        Raises:
            ConfigError: They were not.
        """
        missing = [f"{name}={value}" for name, value in SERVE_BY_HAPROXY.items() if os.environ.get(name) != value]
        if self.serve.haproxy and missing:
            raise ConfigError(
                f"endpoint {self.name!r} asks for HAProxy (serve.haproxy), which Ray Serve takes from the environment "
                f"of its nodes: start them with {' '.join(missing)}, or set endpoint.serve.haproxy=false"
            )


def with_endpoint_file(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return an application's args with what the endpoint file says that they name as `endpoint`; the args go first.

    Args:
        args: As a Serve configuration has them; the file is named or a path on the head node.

    Raises:
        ConfigError: There is no such file, or it names no release and neither do the args.
    """
    own = dict(args)
    named = own.pop("endpoint", None)
    if named is None:
        return own
    if not isinstance(named, str):
        raise ConfigError(f"the endpoint's args: endpoint must be the name or path of an endpoint file, not {named!r}")
    file = load_config(EndpointFile, named, config_folders("endpoints"))
    return {"release": own.get("release") or file.require_release(), **file.application_args(), **own}
