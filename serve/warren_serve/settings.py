"""What a deployment of the endpoint is told: strict, typed, and passed as `args` of the Serve application."""

import json
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from warren.config import Config
from warren.data.images import MAX_PIXELS
from warren.errors import ConfigError
from warren.inference import EngineOptions
from warren_serve.ratelimit import RateLimits

_MIB = 1 << 20
_DRAIN_MARGIN_S = 10.0
_HOST = re.compile(r"(\*\.)?[\w.-]+(:[0-9]{1,5})?")


class ServeSettings(Config):
    """The endpoint's settings; each has a default but the release.

    Attributes:
        release: URI of a release's version, or of an alias, which is resolved once when the application is
            built: so replicas that start later serve the same version.
        model_name: What clients call it; None for the release's name.
        engine: `transformers`, or `vllm` where it is installed (an extra with an environment of its own).
        num_slots: Requests that generate at the same time in one replica.
        max_context_tokens: Prompt and answer together; None for what the model allows.
        prefill_budget_tokens: Prompt tokens read at most between two tokens of running answers, images in proportion.
        step_budget_tokens: The same while answers run, each of which counts as two; None for 96 on a CPU, and for no
            bound but the former on a GPU. Small keeps gaps between tokens short, large starts answers sooner.
        image_cache_bytes: Visual features kept for repeated images.
        max_kv_bytes: Refuse to start with slots that need more.
        stream_interval_s: A streamed answer's tokens are sent on at most so often, the first at once.
        max_ongoing_requests: Requests that one engine replica takes at a time; None for a few more than its slots, so
            that the rest waits where a new replica can take it.
        max_queued_requests: Requests that wait in one ingress replica when all engines are full; more get 429.
        max_new_tokens: Highest `max_tokens` a client may ask for.
        default_max_new_tokens: Used when a client gives none; less where the context is nearly full.
        request_timeout_s: From the last byte of the request to the last of the answer.
        body_timeout_s: For the body to arrive.
        max_body_bytes: Counted as it arrives.
        max_image_pixels: Width times height of one image, checked before it is decoded.
        image_decode_timeout_s: CPU time that decoding a request's images may take; more is a 400.
        max_text_chars: Of all messages together, checked before they are tokenised.
        api_keys_env: Name of the variable with SHA-256 hex digests of API keys, separated by commas. None for
            no keys.
        api_keys_file: File with one such digest a line; read again when it changes.
        requests_per_minute: Of one key (of everybody together where no keys are asked for); None for no limit.
        tokens_per_minute: The same, prompts and answers together; reserved before work, the unused given back.
        max_concurrent_requests: Of one key at a time; more get 429.
        image_hosts: Hosts that images may be fetched from: `host`, `host:port`, `*.domain`, or `*` for every public
            one. Empty: URLs are refused. Redirects are checked too.
        image_networks: CIDR blocks that may be fetched from although they are not public, as of an own image store.
        image_fetch_timeout_s: For one image, redirects included.
        max_image_bytes: Of one fetched image.
        cors_origins: Origins whose pages may call the endpoint from a browser; `*` for all. Empty: none.
        web_page: Serve a chat page at `/`; it asks for an API key where one is needed.
        num_cpus: Per engine replica, may be a fraction; its whole part bounds the compute threads.
        num_gpus: Per engine replica, may be a fraction.
        min_replicas: Never fewer engines; 0 scales to zero.
        max_replicas: Never more engines.
        target_ongoing_requests: Running and waiting ones per engine replica, what autoscaling aims at; None for
            `num_slots`.
        upscale_delay_s: Load must be higher for so long; of both deployments.
        downscale_delay_s: Load must be lower for so long; of both deployments.
        downscale_to_zero_delay_s: For the last engine, where `min_replicas` is 0; None for `downscale_delay_s`.
        load_window_s: Load is averaged over so long.
        ingress_num_cpus: Per ingress replica.
        ingress_min_replicas: Never fewer; at least 1, for something must hold the connections.
        ingress_max_replicas: Never more.
        ingress_max_ongoing_requests: HTTP requests that one ingress replica holds; more get 429. Autoscaling aims at
            a quarter.
    """

    release: str = Field(min_length=1)
    model_name: str | None = Field(default=None, min_length=1, max_length=200)
    engine: Literal["transformers", "vllm"] = "transformers"
    num_slots: int = Field(default=8, ge=1, le=256)
    max_context_tokens: int | None = Field(default=None, ge=2)
    prefill_budget_tokens: int = Field(default=512, ge=1)
    step_budget_tokens: int | None = Field(default=None, ge=1)
    image_cache_bytes: int = Field(default=256 * _MIB, ge=0)
    max_kv_bytes: int | None = Field(default=None, ge=1)
    stream_interval_s: float = Field(default=0.04, ge=0)
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    max_queued_requests: int = Field(default=128, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1)
    default_max_new_tokens: int = Field(default=256, ge=1)
    request_timeout_s: float = Field(default=120.0, gt=0)
    body_timeout_s: float = Field(default=20.0, gt=0)
    max_body_bytes: int = Field(default=20 * _MIB, ge=1024)
    max_messages: int = Field(default=64, ge=1)
    max_images: int = Field(default=8, ge=0)
    max_image_pixels: int = Field(default=20_000_000, ge=1, le=MAX_PIXELS)
    image_decode_timeout_s: float = Field(default=5.0, gt=0)
    max_text_chars: int = Field(default=100_000, ge=1)
    max_choices: int = Field(default=4, ge=1)
    api_keys_env: str | None = Field(default=None, min_length=1)
    api_keys_file: str | None = Field(default=None, min_length=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_concurrent_requests: int | None = Field(default=None, ge=1)
    image_hosts: tuple[str, ...] = ()
    image_networks: tuple[str, ...] = ()
    image_fetch_timeout_s: float = Field(default=5.0, gt=0)
    max_image_bytes: int = Field(default=10 * _MIB, ge=1024)
    cors_origins: tuple[str, ...] = ()
    web_page: bool = False
    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    load_window_s: float = Field(default=30.0, gt=0)
    ingress_num_cpus: float = Field(default=0.25, ge=0)
    ingress_min_replicas: int = Field(default=1, ge=1)
    ingress_max_replicas: int = Field(default=1, ge=1)
    ingress_max_ongoing_requests: int = Field(default=512, ge=1)

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

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> "ServeSettings":
        """Validate the application's `args`.

        Raises:
            ConfigError: A key is unknown or a value does not fit. One line.
        """
        try:
            # Through JSON: strict mode then takes what YAML gives, but never "3" for 3.
            settings = cls.model_validate_json(json.dumps(dict(args)))
        except (ValidationError, TypeError, ValueError) as error:
            raise ConfigError(f"the endpoint's args: {_explain(error)}") from None
        for prefix in ("", "ingress_"):
            low, high = (getattr(settings, f"{prefix}{end}_replicas") for end in ("min", "max"))
            if low > high:
                raise ConfigError(f"{prefix}min_replicas ({low}) is more than {prefix}max_replicas ({high})")
        return settings

    @property
    def engine_options(self) -> EngineOptions:
        """The size of one replica's engine."""
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
        """What one key may use."""
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
        """How long a replica that is removed may finish its answers: longer than any of them can take."""
        return self.request_timeout_s + self.body_timeout_s + _DRAIN_MARGIN_S


def _explain(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
