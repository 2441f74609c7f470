"""The metrics of one training step, as they are reported, logged and written: one JSON object a line."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast


class SpeedMetrics(TypedDict):
    """Throughput and times of a step, over all ranks. MFU needs a device whose peak is known."""

    tokens: int
    images: int
    keys_sum: int
    time: float
    step_s: float
    data_wait_s: float
    checkpoint_stall_s: float
    rank_skew_s: float
    slowest_rank: int
    samples_per_s: float
    tokens_per_s: float
    tflops_per_s: float
    tflops_per_s_text: float
    mfu: NotRequired[float]
    mfu_text: NotRequired[float]


CumulativeMetric = Literal["samples_quarantined", "samples_cut", "supervised_tokens_cut"]
"""Metrics that count from the run's beginning."""


class OccasionalMetrics(TypedDict, total=False):
    """The loss scale, in fp16 only; the loss on held-out samples, only in steps in which it is due.

    `scores` are those of the checkpoint that follows the step, by name. They are measured later, and joined on reading.
    """

    scores: dict[str, float]
    loss_scale: float
    validation_loss: float
    validation_s: float


class StepMetrics(SpeedMetrics, OccasionalMetrics):
    """Everything about one step.

    `skipped` is why the step was left out, or empty. Rows of earlier versions may lack the cumulative metrics.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    samples: int
    samples_quarantined: int
    samples_cut: int
    supervised_tokens_cut: int
    supervised_tokens: int
    padding_fraction: float
    skipped: str


def numbers(row: StepMetrics) -> dict[str, float]:
    """Return the metrics that can be plotted over the steps."""
    values: Mapping[str, Any] = row
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and name not in ("step", "time") and math.isfinite(value)
    }


def to_json_lines(rows: Iterable[StepMetrics]) -> str:
    """Write metrics as `metrics.jsonl` holds them."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def from_json_lines(text: str | bytes) -> list[StepMetrics]:
    """Read what `to_json_lines` wrote."""
    return [cast(StepMetrics, json.loads(line)) for line in text.splitlines()]
