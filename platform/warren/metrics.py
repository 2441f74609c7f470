"""Every metric that Warren exports, with its type, unit, labels and meaning: `python -m warren.metrics`.

A module that exports metrics takes names and texts from here, so docs/reference/metrics.md, which this module writes,
has them all. It knows neither Ray nor Prometheus' client.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MetricKind = Literal["gauge", "counter", "histogram"]
_ANSWER_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(frozen=True)
class MetricSpec:
    """The declaration of one metric.

    Attributes:
        name: As Prometheus' client takes it: a counter's `_total` is left out.
        unit: What one is of, in words.
        labels: What tells its series apart; their values are never a client's text.
        buckets: Upper bounds, of a histogram.
    """

    name: str
    kind: MetricKind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> str:
        """The name that a query has; a histogram has it with `_bucket`, `_sum` and `_count`."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _requests(
    name: str,
    kind: MetricKind,
    unit: str,
    meaning: str,
    labels: tuple[str, ...] = (),
    buckets: tuple[float, ...] = (),
) -> MetricSpec:
    return MetricSpec(f"warren_{name}", kind, unit, meaning, labels, buckets)


IN_FLIGHT = _requests("requests_in_flight", "gauge", "requests", "HTTP requests being answered.")
REQUESTS = _requests("requests", "counter", "requests", "HTTP requests answered.", ("route", "status"))
REQUEST_ERRORS = _requests(
    "request_errors",
    "counter",
    "requests",
    "Requests that were refused or failed, by the code of the error that the client got. A stream that broke after it "
    "had begun counts here, although its status is 200.",
    ("reason",),
)
REQUEST_SECONDS = _requests(
    "request_seconds",
    "histogram",
    "seconds",
    "From the request's head to the last byte of the answer.",
    ("route",),
    _ANSWER_BUCKETS_S,
)
PROMPT_TOKENS = _requests("prompt_tokens", "counter", "tokens", "Tokens of answered prompts.")
ANSWER_TOKENS = _requests("answer_tokens", "counter", "tokens", "Tokens of answers.")
FIRST_TOKEN_SECONDS = _requests(
    "time_to_first_token_seconds",
    "histogram",
    "seconds",
    "From the read request to the first tokens of a streamed answer.",
    buckets=_ANSWER_BUCKETS_S,
)
INTER_TOKEN_SECONDS = _requests(
    "inter_token_seconds",
    "histogram",
    "seconds",
    "Between two tokens of a streamed answer; tokens that come together share their time.",
    buckets=_TOKEN_BUCKETS_S,
)
REQUEST_METRICS = (
    IN_FLIGHT,
    REQUESTS,
    REQUEST_ERRORS,
    REQUEST_SECONDS,
    PROMPT_TOKENS,
    ANSWER_TOKENS,
    FIRST_TOKEN_SECONDS,
    INTER_TOKEN_SECONDS,
)


def _engine(kind: MetricKind, name: str, unit: str, meaning: str) -> MetricSpec:
    return MetricSpec(f"warren_engine_{name}", kind, unit, meaning)


ENGINE_STATS = (
    _engine("gauge", "slots", "requests", "Requests that can generate at the same time."),
    _engine("gauge", "running", "requests", "Slots in use."),
    _engine("gauge", "waiting", "requests", "Requests that wait for a slot."),
    _engine("gauge", "kv_bytes", "bytes", "Memory of the slots' keys and values."),
    _engine("gauge", "kv_used_tokens", "tokens", "Tokens held in slots."),
    _engine("gauge", "kv_capacity_tokens", "tokens", "Tokens that fit into the slots."),
    _engine("gauge", "image_cache_bytes", "bytes", "Visual features kept for repeated images."),
    _engine("counter", "image_cache_hits", "images", "Images whose features were kept."),
    _engine("counter", "image_cache_misses", "images", "Images that were encoded."),
    _engine("counter", "prompt_tokens", "tokens", "Prompt tokens read."),
    _engine("counter", "generated_tokens", "tokens", "Tokens generated."),
    _engine("counter", "finished", "requests", "Requests that ended by themselves."),
    _engine("counter", "cancelled", "requests", "Requests whose reader left."),
    _engine("counter", "failed", "requests", "Requests that failed."),
)
ENGINE_RELEASE = MetricSpec(
    "warren_engine_release",
    "gauge",
    "1",
    "1 for the version of the release that this engine replica serves; its sum by version counts replicas.",
    ("version",),
)
ENGINE_METRICS = (*ENGINE_STATS, ENGINE_RELEASE)


def _rollout(
    name: str, unit: str, meaning: str, labels: tuple[str, ...] = (), kind: MetricKind = "gauge"
) -> MetricSpec:
    return MetricSpec(f"warren_rollout_{name}", kind, unit, meaning, labels)


ROLLOUT_WEIGHT = _rollout("weight", "fraction", "Fraction of the traffic by version.", ("version",))
ROLLOUT_PHASE = _rollout("phase", "1", "1 for the phase of the rollout, 0 for those before it.", ("phase",))
ROLLOUT_VERSION = _rollout(
    "version", "1", "1 for the version that is `stable`, and for the one that is `candidate`.", ("role", "version")
)
ROLLOUT_STEP = _rollout("step", "steps", "Index into the policy's steps while traffic moves.")
ROLLOUT_PAUSED = _rollout("paused", "1", "1 while a person holds the rollout.")
ROLLOUT_REFUSED = _rollout("refused_versions", "versions", "Versions that were undone and are not tried again.")
ROLLOUT_GATE = _rollout("gate_refuses", "1", "1 while the gate's verdict keeps the alias `candidate` from rolling in.")
ROLLOUT_SUPERSEDED = _rollout("superseded", "1", "1 once another controller took over and this one stopped.")
ROLLOUT_ROLLBACKS = _rollout("rollbacks", "rollouts", "Candidates that were undone.", kind="counter")
ROLLOUT_METRICS = (
    ROLLOUT_WEIGHT,
    ROLLOUT_PHASE,
    ROLLOUT_VERSION,
    ROLLOUT_STEP,
    ROLLOUT_PAUSED,
    ROLLOUT_REFUSED,
    ROLLOUT_GATE,
    ROLLOUT_SUPERSEDED,
    ROLLOUT_ROLLBACKS,
)


def _train(name: str, unit: str, meaning: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"warren_train_{name}", "gauge", unit, meaning, ("run", *labels))


STEP_METRICS = (
    _train("step", "steps", "Index of the newest step."),
    _train("epoch", "epochs", "Its epoch."),
    _train("loss", "nats per token", "Mean loss over the supervised tokens of its global batch."),
    _train("grad_norm", "norm", "Norm of its gradient before clipping."),
    _train("learning_rate", "1", "Its learning rate."),
    _train("loss_scale", "1", "The loss scale; in fp16 only."),
    _train("validation_loss", "nats per token", "Loss on held-out samples, of the newest step that measured it."),
    _train("validation_s", "seconds", "How long measuring it took."),
    _train("samples", "samples", "Samples of its global batch."),
    _train("images", "images", "Images of its global batch."),
    _train("tokens", "tokens", "Tokens of its global batch, image tokens included."),
    _train("supervised_tokens", "tokens", "Tokens that the loss is over."),
    _train("keys_sum", "checksum", "Sum of the checksums of its samples' keys; the same in every run of one recipe."),
    _train("padding_fraction", "fraction", "Fraction of the computed tokens that are padding."),
    _train("samples_quarantined", "samples", "Samples since the run's beginning that could not be read."),
    _train("samples_cut", "samples", "Samples since the run's beginning that were longer than the context."),
    _train("supervised_tokens_cut", "tokens", "Supervised tokens since the run's beginning that were cut off."),
    _train("step_s", "seconds", "From the end of the step before to its own end."),
    _train("data_wait_s", "seconds", "What the slowest rank waited for data."),
    _train("checkpoint_stall_s", "seconds", "What a rank waited for a checkpoint, on average."),
    _train("rank_skew_s", "seconds", "Between the first and the last rank's end of the forward pass."),
    _train("slowest_rank", "rank", "The rank that came last."),
    _train("samples_per_s", "samples/s", "Samples per second of that step, over all ranks."),
    _train("tokens_per_s", "tokens/s", "Tokens per second of that step, over all ranks."),
    _train("tflops_per_s", "TFLOP/s", "Model operations per second and rank, vision tower included."),
    _train("tflops_per_s_text", "TFLOP/s", "The same for the language model alone."),
    _train("mfu", "fraction", "`tflops_per_s` of the device's peak, where that is known."),
    _train("mfu_text", "fraction", "`tflops_per_s_text` of the device's peak."),
)
TRAIN_NUM_STEPS = _train("num_steps", "steps", "Steps of the whole run.")
TRAIN_CHECKPOINT_TIME = _train(
    "checkpoint_time_s",
    "Unix time",
    "When the newest checkpoint was committed; before the job's first one, when the job began.",
)
TRAIN_CHECKPOINT_STEP = _train("checkpoint_step", "steps", "Steps that the newest checkpoint of this job contains.")
TRAIN_CHECKPOINTS = _train("checkpoints", "checkpoints", "Checkpoints that this job has committed.")
TRAIN_CHECKPOINT_FAILURES = _train(
    "checkpoint_failures", "checkpoints", "Checkpoints that this job could not write or commit."
)
TRAIN_RECOVERIES = _train("recoveries", "recoveries", "How often this job went on after its workers were lost.")
TRAIN_RECOVERY_S = _train("recovery_s", "seconds", "From the last step before the newest loss to the first step after.")
TRAIN_WITHOUT_WORKERS_S = _train(
    "without_workers_s", "seconds", "For how long the job has had no workers; 0 with some."
)
TRAIN_EVALUATED_STEP = _train("evaluated_step", "steps", "Step of the checkpoint that was evaluated last.")
TRAIN_SCORE = _train("evaluation_score", "1", "A score of the checkpoint that was evaluated last.", "score")
RUN_METRICS = (
    TRAIN_NUM_STEPS,
    TRAIN_CHECKPOINT_TIME,
    TRAIN_CHECKPOINT_STEP,
    TRAIN_CHECKPOINTS,
    TRAIN_CHECKPOINT_FAILURES,
    TRAIN_RECOVERIES,
    TRAIN_RECOVERY_S,
    TRAIN_WITHOUT_WORKERS_S,
    TRAIN_EVALUATED_STEP,
    TRAIN_SCORE,
)

SERVE_METRICS = (*REQUEST_METRICS, *ENGINE_METRICS, *ROLLOUT_METRICS)
TRAINING_METRICS = (*STEP_METRICS, *RUN_METRICS)
ALL_METRICS = (*SERVE_METRICS, *TRAINING_METRICS)

_PATH = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
_HEAD = """# Metrics

Everything that Warren exports. `python -m warren.metrics` writes this page from
[`platform/warren/metrics.py`](../../platform/warren/metrics.py). [observability.md](../observability.md) has the
dashboards, and what to do when an alert fires.

Prometheus reads the metrics port of every Ray node, where **each name begins with `ray_`**:
`ray_warren_requests_total`. Everything is a gauge there, because Ray's counters cannot be set. Functions such as
`rate` and `histogram_quantile` work all the same. The endpoint's `/metrics` has the serving metrics without that
prefix, with their types.
"""
_SECTIONS = (
    ("Requests", "One set for each ingress replica.", REQUEST_METRICS),
    ("Engines", "One set for each engine replica.", ENGINE_METRICS),
    ("Rollout", "Of the controller of an endpoint that is `warren_serve.front:build`.", ROLLOUT_METRICS),
    ("Training: the newest step", "One set for each run while its job lives.", STEP_METRICS),
    ("Training: the run", "The same; counts begin with the job.", RUN_METRICS),
)
_TABLE = "\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n"


def reference() -> str:
    """Return the page in Markdown: a table for each part of Warren."""
    parts = [_HEAD]
    for title, text, specs in _SECTIONS:
        parts.append(f"\n## {title}\n\n{text}\n{_table(specs)}")
    return "".join(parts)


def _table(specs: Sequence[MetricSpec]) -> str:
    rows = [
        f"| `{spec.series}` | {spec.kind} | {spec.unit} | {', '.join(f'`{one}`' for one in spec.labels)} "
        f"| {spec.meaning} |"
        for spec in specs
    ]
    return _TABLE + "\n".join(rows) + "\n"


if __name__ == "__main__":
    _PATH.write_text(reference())
