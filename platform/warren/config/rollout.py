"""The policy of a rollout: the steps in which traffic moves to a candidate, and what turns it back."""

import math
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from warren.config.layered_config import Config


class RolloutPolicy(Config):
    """How a candidate takes over from the serving release. Every rollout ends within `total_timeout_s`."""

    steps: tuple[float, ...] = Field(
        default=(0.01, 0.1, 0.5, 1.0),
        description="Fractions of the traffic that the candidate gets, one step after the other; the last is 1.0.",
    )
    step_s: float = Field(default=60.0, ge=0, description="Shortest time of a step.")
    min_requests: int = Field(
        default=20,
        ge=1,
        le=2000,
        description="Requests that the candidate must have answered in a step before it is judged by them.",
    )
    max_step_s: float = Field(
        default=600.0,
        ge=0,
        description="With too little traffic to judge by, a step ends after this time and counts as passed.",
    )
    start_timeout_s: float = Field(
        default=900.0,
        gt=0,
        description="Time for the candidate's engines to start and to answer the sanity questions; then it is undone.",
    )
    total_timeout_s: float = Field(
        default=7200.0,
        gt=0,
        description="Time for a whole rollout, pauses left out; then the candidate is undone.",
    )
    unready_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="How long the candidate's engines may be away in the middle of a rollout before it is undone. "
        "Meanwhile the serving release answers everything.",
    )
    max_engine_losses: int = Field(
        default=2,
        ge=0,
        description="How often engines of the candidate may die in the middle of one rollout before it is undone.",
    )
    drain_s: float = Field(
        default=3.0,
        ge=1.0,
        description="Time between an engine's last traffic and its removal; more than an ingress replica needs to "
        "learn new weights. Running answers have their own time to end.",
    )
    max_restarts: int = Field(
        default=10,
        ge=1,
        description="How often the controller may start again in the middle of one rollout before it is undone.",
    )
    sticky: Literal["key", "session", "none"] = Field(
        default="key",
        description="What keeps a client on one release while weights stand still: `session` is the header "
        "`x-session-id`; `key` is that header or else the API key; `none` draws each request.",
    )
    false_alarm: float = Field(
        default=0.01,
        gt=0,
        le=0.2,
        description="Probability that the statistical tests of one whole rollout undo a candidate that is as good as "
        "the serving release.",
    )
    max_extra_errors: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Fraction of failed requests that the candidate may have beyond the serving release's.",
    )
    max_extra_bad_answers: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="The same for empty answers, for answers that repeat themselves, for answers in another language "
        "than their question, and for answers to the sanity questions that are of another length.",
    )
    max_extra_wrong_answers: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="The same for wrong answers to those sanity questions whose answers are known.",
    )
    max_length_ratio: float = Field(
        default=3.0,
        gt=1,
        description="How many times longer or shorter an answer may be than the serving release's; in traffic, the "
        "median answer.",
    )
    min_agreement: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Fraction of the sanity questions that both releases must answer alike; 0 only reports it.",
    )
    max_slowdown: float = Field(
        default=2.0,
        gt=1,
        description="How many times slower the candidate's median may be: time to first token, gap between tokens, "
        "tokens per second.",
    )
    poll_s: float = Field(default=5.0, gt=0, le=600, description="How often the registry is looked at.")

    @field_validator("steps")
    @classmethod
    def _ascend(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps or steps[-1] != 1.0:
            raise ValueError(f"{list(steps)} does not end at 1.0, so the candidate would never get all traffic")
        if not steps[0] > 0 or not all(low < high for low, high in pairwise(steps)):
            raise ValueError(f"{list(steps)} does not ascend from above 0 to 1.0")
        return steps

    @model_validator(mode="before")
    @classmethod
    def _steps_from_yaml(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("steps"), list):
            return {**values, "steps": tuple(values["steps"])}
        return values

    @model_validator(mode="after")
    def _can_end(self) -> "RolloutPolicy":
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; it must be finite, or a rollout might never end")
        if self.max_step_s < self.step_s:
            raise ValueError(f"max_step_s ({self.max_step_s:g}) is less than step_s ({self.step_s:g})")
        longest_s = self.max_step_s * len(self.steps)
        if self.total_timeout_s <= longest_s:
            raise ValueError(
                f"total_timeout_s ({self.total_timeout_s:g}) must be more than the {len(self.steps)} steps of up to "
                f"{self.max_step_s:g} s (max_step_s), or no rollout with little traffic could finish"
            )
        return self
