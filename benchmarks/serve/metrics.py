"""From timelines to metrics, a table and an image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.serve.load import Timeline

GOOD_FIRST_S, GOOD_TOKEN_S = 2.0, 0.2
"""An answer counts as good when it begins within so long and a token takes no longer than that on average."""

_COLUMNS = {
    "tokens_per_s": "tokens/s",
    "first_p50_s": "TTFT p50 s",
    "first_p99_s": "p99",
    "gap_p50_s": "ITL p50 s",
    "gap_p99_s": "p99",
    "good_fraction": "goodput",
    "num_failed": "failed",
}

Metrics = dict[str, float]


def metrics_of(timelines: Sequence[Timeline]) -> Metrics:
    """Sum up one load."""
    done = [one for one in timelines if one.error is None]
    start = min(one.sent_s for one in timelines)
    end = max((one.chunks_s[-1] for one in done), default=start + 1.0)
    firsts = [one.time_to_first_s for one in done] or [float("nan")]
    gaps = [gap for one in done for gap in one.gaps_s] or [float("nan")]
    good = [one for one in done if one.time_to_first_s <= GOOD_FIRST_S and one.seconds_per_token <= GOOD_TOKEN_S]
    return {
        "tokens_per_s": sum(one.num_tokens for one in done) / (end - start),
        "requests_per_s": len(done) / (end - start),
        "first_p50_s": float(np.percentile(firsts, 50)),
        "first_p99_s": float(np.percentile(firsts, 99)),
        "gap_p50_s": float(np.percentile(gaps, 50)),
        "gap_p99_s": float(np.percentile(gaps, 99)),
        "good_fraction": len(good) / len(timelines),
        "num_failed": len(timelines) - len(done),
    }


def middle(rounds: Sequence[Metrics]) -> Metrics:
    """Return the median of each metric over the rounds."""
    return {name: float(np.median([metrics[name] for metrics in rounds])) for name in rounds[0]}


def table(results: Mapping[str, Mapping[int, Metrics]]) -> str:
    """Write the metrics as a Markdown table."""
    lines = [
        f"| engine | clients | {' | '.join(_COLUMNS.values())} |",
        f"|---|{'---|' * (len(_COLUMNS) + 1)}",
    ]
    for mode, by_clients in results.items():
        for clients, metrics in by_clients.items():
            cells = [f"{metrics[name]:.3g}" for name in _COLUMNS]
            lines.append(f"| {mode} | {clients} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Mapping[str, Mapping[int, Metrics]], path: Path) -> None:
    """Draw throughput, time to first token and gaps over the number of clients."""
    panels: Any = (
        ("tokens_per_s", "output tokens/s", "linear"),
        ("first_p50_s", "time to first token, median, s", "log"),
        ("gap_p99_s", "gap between pieces, 99th percentile, s", "log"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained")
    for axis, (name, title, scale) in zip(axes, panels, strict=True):
        for mode, by_clients in results.items():
            axis.plot(list(by_clients), [metrics[name] for metrics in by_clients.values()], marker="o", label=mode)
        axis.set(title=title, xlabel="clients", xscale="log", yscale=scale, xticks=list(next(iter(results.values()))))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
