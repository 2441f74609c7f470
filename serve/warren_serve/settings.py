"""Settings of the endpoint: strict, typed, and passed as the `args` of the Serve application.

An endpoint file has them as `settings` (`warren_serve.endpoint_file`).
"""

import json
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from warren.config import Config
from warren.data.images import MAX_PIXELS
from warren.errors import ConfigError
from warren.inference import EngineOptions
from warren_serve.ratelimit import RateLimits

_MIB = 1 << 20
_DRAIN_MARGIN_S = 10.0
_HOST = re.compile(r"(\*\.)?[\w.-]+(:[0-9]{1,5})?")


class EndpointSettings(Config):
    """The endpoint's settings without the release; each has a default.

    docs/reference/endpoint.md is made of the descriptions here: `python -m warren_serve.settings_reference`.
    """

    model_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The model's name for clients; null takes the release's name.",
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="`transformers`, or `vllm` where it is installed (an extra with an environment of its own).",
    )
    require_parity: bool = Field(
        default=False,
        description="Refuse a release that was published without golden cases ([parity.md](../parity.md)). If false, "
        "it is served unchecked, with a warning in the log.",
    )
    num_slots: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Requests that generate at the same time in one engine replica.",
    )
    max_context_tokens: int | None = Field(
        default=None,
        ge=2,
        description="Most tokens of prompt and answer together; null takes the model's own limit.",
    )
    prefill_budget_tokens: int = Field(
        default=512,
        ge=1,
        description="Prompt tokens that one step of the engine may read; an image counts as the tokens that take "
        "as long.",
    )
    step_budget_tokens: int | None = Field(
        default=None,
        ge=1,
        description="The same while answers run, each of which counts as two tokens. Small values keep the gaps "
        "between tokens short, large ones start new answers sooner. Null is 96 on a CPU, and on a "
        "GPU `prefill_budget_tokens`.",
    )
    image_cache_bytes: int = Field(
        default=256 * _MIB,
        ge=0,
        description="Memory for the visual features of repeated images, per engine replica.",
    )
    max_kv_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Upper limit of the key/value cache; an engine that needs more does not start. Null sets none.",
    )
    stream_interval_s: float = Field(
        default=0.04,
        ge=0,
        description="Shortest time between two chunks of a streamed answer; the first is sent at once.",
    )
    max_ongoing_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests that one engine replica takes at a time. Null takes a quarter more than "
        "`num_slots`, so that the others wait where a new replica can take them.",
    )
    max_queued_requests: int = Field(
        default=128,
        ge=1,
        description="Requests that wait in one ingress replica while all engines are full; more get 429.",
    )
    max_new_tokens: int = Field(default=1024, ge=1, description="Ceiling of `max_tokens`.")
    strict_max_tokens: bool = Field(
        default=False,
        description="Refuse a `max_tokens` above the ceiling or the free context with 400, instead of lowering it.",
    )
    default_max_new_tokens: int = Field(
        default=256,
        ge=1,
        description="`max_tokens` of requests without one; lower where less of the context is free.",
    )
    request_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="From the last byte of the request to the last byte of the answer; then 504.",
    )
    body_timeout_s: float = Field(default=20.0, gt=0, description="Time for a request's body to arrive; then 408.")
    max_body_bytes: int = Field(
        default=20 * _MIB,
        ge=1024,
        description="Size of a request's body, counted as it arrives; more is 413.",
    )
    max_messages: int = Field(default=64, ge=1, description="Messages of one request.")
    max_images: int = Field(default=8, ge=0, description="Images of one request.")
    max_image_pixels: int = Field(
        default=20_000_000,
        ge=1,
        le=MAX_PIXELS,
        description="Width times height of one image, checked before it is decoded.",
    )
    image_decode_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="CPU time for decoding a request's images; more is 400.",
    )
    max_text_chars: int = Field(
        default=100_000,
        ge=1,
        description="Characters of all messages together, checked before they are tokenised.",
    )
    max_choices: int = Field(default=4, ge=1, description="Ceiling of `n`.")
    api_keys_env: str | None = Field(
        default=None,
        min_length=1,
        description="Name of an environment variable with SHA-256 hex digests of API keys, separated by commas. "
        "Null for none.",
    )
    api_keys_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with one SHA-256 hex digest of an API key a line; it is read again when it changes. "
        "Null for none.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests of one key, or of all clients together where no keys are required. Null sets no limit.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of one key, prompts and answers together. They are reserved before a request runs, "
        "and unused ones are given back. Null sets no limit.",
    )
    max_concurrent_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests of one key at the same time; more get 429. Null sets no limit.",
    )
    image_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts that images may be fetched from: `host`, `host:port`, `*.domain`, or `*` for every "
        "public host. Redirects are checked too. If empty, image URLs are refused.",
    )
    image_networks: tuple[str, ...] = Field(
        default=(),
        description="CIDR blocks that images may be fetched from although they are not public, as those of your "
        "own image store.",
    )
    image_fetch_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="Time for fetching one image, redirects included.",
    )
    max_image_bytes: int = Field(default=10 * _MIB, ge=1024, description="Size of one fetched image.")
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins whose pages may call the endpoint from a browser; `*` allows all. If empty, none may.",
    )
    web_page: bool = Field(
        default=False,
        description="Serve a chat page at `/`; it asks for an API key where one is required.",
    )
    num_cpus: float = Field(
        default=1.0,
        gt=0,
        description="CPUs per engine replica, also fractions; the whole part is the number of compute threads.",
    )
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs per engine replica, also fractions.")
    min_replicas: int = Field(default=1, ge=0, description="Fewest engine replicas; 0 scales to zero.")
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        description="Most engine replicas. Null takes as many as the nodes have room for when the application is "
        "built, less one, so that the next release has room to start; set it where the cluster adds nodes.",
    )
    target_ongoing_requests: float | None = Field(
        default=None,
        gt=0,
        description="Running and waiting requests per engine replica that autoscaling aims at; null takes `num_slots`.",
    )
    upscale_delay_s: float = Field(
        default=10.0,
        ge=0,
        description="Time for which load must be higher before replicas are added; of both deployments.",
    )
    downscale_delay_s: float = Field(
        default=300.0,
        ge=0,
        description="Time for which load must be lower before replicas are removed; of both deployments.",
    )
    downscale_to_zero_delay_s: float | None = Field(
        default=None,
        ge=0,
        description="The same before the last engine replica is removed, if `min_replicas` is 0; null takes "
        "`downscale_delay_s`.",
    )
    load_window_s: float = Field(default=30.0, gt=0, description="Time over which load is averaged.")
    ingress_num_cpus: float = Field(default=0.25, ge=0, description="CPUs per ingress replica.")
    ingress_min_replicas: int = Field(
        default=1,
        ge=1,
        description="Fewest ingress replicas; at least 1, because they hold the connections.",
    )
    ingress_max_replicas: int = Field(default=1, ge=1, description="Most ingress replicas.")
    ingress_max_ongoing_requests: int = Field(
        default=512,
        ge=1,
        description="HTTP requests that one ingress replica holds; more get 429. Autoscaling aims at a quarter.",
    )

    @field_validator("image_hosts")
    @classmethod
    def _are_hosts(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if entry != "*" and not _HOST.fullmatch(entry):
                raise ValueError(f"{entry!r} is not a host, host:port, *.domain or *")
        return entries

    @field_validator("image_networks")
    @classmethod
    def _are_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            ip_network(entry)
        return entries

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for prefix in ("", "ingress_"):
            low, high = (getattr(self, f"{prefix}{end}_replicas") for end in ("min", "max"))
            if high is not None and low > high:
                raise ValueError(f"{prefix}min_replicas ({low}) is more than {prefix}max_replicas ({high})")
        return self


class ServeSettings(EndpointSettings):
    """The settings of what serves one version: the endpoint's, and the version, which alone has no default."""

    release: str = Field(
        min_length=1,
        description="URI of a release's version; `NAME/VERSION` is below `WARREN_STORAGE`.",
    )

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> Self:
        """Validate the application's `args`.

        Raises:
            ConfigError: A key is unknown or a value does not fit. One line.
        """
        try:
            # Through JSON, because strict mode then takes YAML's lists for tuples, but never "3" for 3.
            return cls.model_validate_json(json.dumps(dict(args)))
        except (ValidationError, TypeError, ValueError) as error:
            raise ConfigError(f"the endpoint's args: {_explain(error)}") from None

    @property
    def engine_options(self) -> EngineOptions:
        """The size of one engine."""
        return EngineOptions(
            num_slots=self.num_slots,
            max_context_tokens=self.max_context_tokens,
            prefill_budget_tokens=self.prefill_budget_tokens,
            step_budget_tokens=self.step_budget_tokens,
            max_waiting=self.requests_per_engine * self.max_choices,
            image_cache_bytes=self.image_cache_bytes,
            max_kv_bytes=self.max_kv_bytes,
        )

    @property
    def limits(self) -> RateLimits:
        """The limits of one key."""
        return RateLimits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            concurrent_requests=self.max_concurrent_requests,
            lease_s=self.drain_timeout_s,
        )

    @property
    def requests_per_engine(self) -> int:
        """How many requests one engine replica takes at a time."""
        return self.max_ongoing_requests or self.num_slots + max(1, self.num_slots // 4)

    @property
    def drain_timeout_s(self) -> float:
        """How long a removed replica may finish its answers; longer than any answer can take."""
        return self.request_timeout_s + self.body_timeout_s + _DRAIN_MARGIN_S


def _explain(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problems = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
    return "; ".join(f"{where}: {message}" if where else message for where, message in problems)
