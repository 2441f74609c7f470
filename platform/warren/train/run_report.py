"""The report of a run in `report/` of its folder: its metrics, plots, recoveries and record, in Markdown."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from warren.data.plots import new_figure, to_png
from warren.storage import Location
from warren.train.checkpoint import METRICS_FILE, RANKS_FOLDER
from warren.train.checkpoint_scores import CheckpointScores, EvaluatedCheckpoint, newest_scores
from warren.train.recovery_time import Recovery, recovery_table
from warren.train.run import Run
from warren.train.run_record import RunRecord
from warren.train.step_metrics import StepMetrics, from_json_lines

REPORT = "report.md"
_MAX_PLOTTED_SCORES = 8
_PLOTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss", "validation_loss"), "loss"),
    ("learning-rate", ("learning_rate",), "learning rate"),
    ("gradient-norm", ("grad_norm",), "gradient norm before clipping"),
    ("throughput", ("tokens_per_s",), "tokens/s"),
    ("waits", ("data_wait_s", "checkpoint_stall_s", "rank_skew_s"), "seconds of a step"),
)


def read_metrics(run: Run) -> list[StepMetrics]:
    """Return the metrics of every step of a run, from its newest checkpoint.

    The last step before a checkpoint that was evaluated has its scores.

    Raises:
        CheckpointError: There is no checkpoint yet.
    """
    ranks = run.checkpoints.part(run.newest_checkpoint(), RANKS_FOLDER)
    rows = from_json_lines((ranks.folder / METRICS_FILE).read_bytes())
    for step, checkpoint in newest_scores(CheckpointScores(run.folder).read()).items():
        if checkpoint.scores and 0 < step <= len(rows):
            rows[step - 1]["scores"] = checkpoint.scores
    return rows


def write_report(run: Run, record: RunRecord, recoveries: Sequence[Recovery]) -> Location:
    """Write a run's report and return its location; an older report is replaced."""
    rows = read_metrics(run)
    folder = run.folder / "report"
    for name, columns, label in _PLOTS:
        _replace(folder / f"{name}.png", _plot(rows, columns, label))
    checkpoints = list(newest_scores(CheckpointScores(run.folder).read()).values())
    text = _markdown(run, record, rows, recoveries, checkpoints)
    if any(checkpoint.scores for checkpoint in checkpoints):
        _replace(folder / "scores.png", _plot_scores(checkpoints))
    _replace(folder / REPORT, text.encode())
    return folder / REPORT


def summary(rows: Sequence[StepMetrics]) -> dict[str, float]:
    """Return the metrics of a whole run; times leave out its first step, in which everything is built."""
    steady = rows[1:] or rows
    seconds = sum(row["step_s"] for row in steady)
    metrics = {
        "steps": len(rows),
        "samples": sum(row["samples"] for row in rows),
        "samples_quarantined": rows[-1].get("samples_quarantined", 0),
        "samples_cut": rows[-1].get("samples_cut", 0),
        "supervised_tokens": sum(row["supervised_tokens"] for row in rows),
        "supervised_tokens_cut": rows[-1].get("supervised_tokens_cut", 0),
        "tokens": sum(row["tokens"] for row in rows),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "steps_left_out": sum(bool(row["skipped"]) for row in rows),
        "samples_per_s": sum(row["samples"] for row in steady) / seconds,
        "tokens_per_s": sum(row["tokens"] for row in steady) / seconds,
        "median_step_s": statistics.median(row["step_s"] for row in steady),
        "data_wait_fraction": sum(row["data_wait_s"] for row in steady) / seconds,
        "checkpoint_stall_fraction": sum(row["checkpoint_stall_s"] for row in steady) / seconds,
        "mean_rank_skew_s": statistics.mean(row["rank_skew_s"] for row in steady),
        "tflops_per_s_per_worker": statistics.mean(row["tflops_per_s"] for row in steady),
        "tflops_per_s_per_worker_text": statistics.mean(row["tflops_per_s_text"] for row in steady),
    }
    names: tuple[Literal["mfu", "mfu_text"], ...] = ("mfu", "mfu_text")
    for name in names:
        if name in rows[-1]:
            metrics[name] = statistics.mean(row[name] for row in steady if name in row)
    return metrics


def losses_of_data(name: str, row: StepMetrics) -> list[str]:
    """Return a sentence for each kind of training data that was not used, from the metrics of a run's last step."""
    sentences = []
    if row.get("samples_quarantined"):
        sentences.append(
            f"{row['samples_quarantined']} samples could not be used: their keys and reasons are in quarantine/"
        )
    if row.get("samples_cut"):
        sentences.append(
            f"{row['samples_cut']} samples were longer than max_length_tokens and lost {row['supervised_tokens_cut']} "
            f"supervised tokens: to train on them, begin a new run with a larger max_length_tokens"
        )
    return [f"{name}: {sentence}" for sentence in sentences]


def _evaluations(checkpoints: Sequence[EvaluatedCheckpoint]) -> list[str]:
    """Return the section on the checkpoints that were evaluated; nothing where none was."""
    if not checkpoints:
        return []
    names = list(dict.fromkeys(name for each in checkpoints for name in sorted(each.scores)))
    lines = ["", "## Evaluations", ""]
    if names:
        lines += ["![scores of the checkpoints](scores.png)", ""]
    lines += [f"| step | {' | '.join([*names, 'release'])} |", "|---:" * (len(names) + 1) + "|---|"]
    for each in checkpoints:
        values = [f"{each.scores[name]:.4g}" if name in each.scores else "" for name in names]
        outcome = each.outcome
        released = "" if outcome is None else outcome.version or f"refused: {outcome.reason}"
        lines.append(f"| {' | '.join([str(each.step), *values, released.replace('|', '/')])} |")
    failures = [(each.step, failure) for each in checkpoints for failure in each.failures.values()]
    for step, failure in failures:
        lines += ["", f"Step {step}: {failure.evaluation} failed: {failure.reason}. To run it again:", ""]
        lines += [f"    {failure.command}"]
    return lines


def _markdown(
    run: Run,
    record: RunRecord,
    rows: Sequence[StepMetrics],
    recoveries: Sequence[Recovery],
    checkpoints: Sequence[EvaluatedCheckpoint],
) -> str:
    lines = [f"# Run {run.name}", "", "| what | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in summary(rows).items()]
    lines += [
        "",
        "TFLOP/s and MFU count what the model needs (warren/train/flops.py says how); `text` leaves the vision tower "
        "and the projector out.",
        "",
    ]
    lines += [f"* {sentence}" for sentence in losses_of_data(run.name, rows[-1])] + [""]
    lines += [f"![{label}]({name}.png)" for name, _, label in _PLOTS]
    lines += _evaluations(checkpoints)
    skipped = [row for row in rows if row["skipped"]]
    if skipped:
        lines += ["", "## Steps left out", "", "| step | why |", "|---|---|"]
        lines += [f"| {row['step']} | {row['skipped']} |" for row in skipped]
    if recoveries:
        lines += ["", "## Recoveries", "", *recovery_table(recoveries)]
    lines += ["", "## What it was", "", "```json", json.dumps(record, indent=2, sort_keys=True), "```", ""]
    return "\n".join(lines)


def _plot_scores(checkpoints: Sequence[EvaluatedCheckpoint]) -> bytes:
    """Plot the scores over the steps; of many, those of whole evaluations, which have the shortest names."""
    names = {name for each in checkpoints for name in each.scores}
    shown = sorted(names, key=lambda name: (name.count("/"), name))[:_MAX_PLOTTED_SCORES]
    return _plot([{"step": each.step, **each.scores} for each in checkpoints], shown, "score")


def _plot(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], label: str) -> bytes:
    figure = new_figure(7, 3)
    axes = figure.add_subplot(xlabel="step", ylabel=label)
    for column in columns:
        points = [(row["step"], row[column]) for row in rows if column in row and math.isfinite(row[column])]
        if points:
            axes.plot(*zip(*points, strict=True), label=column, marker="." if len(points) < 20 else "")
    if len(columns) > 1 and axes.lines:
        axes.legend(loc="upper right")
    return to_png(figure, dpi=110)


def _replace(target: Location, data: bytes) -> None:
    target.store.delete(target.key)
    target.create_bytes(data)
