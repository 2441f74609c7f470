"""`make bench-order`: what planning costs, and how far the two-level shuffle is from a permutation of everything."""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from warren.data.mixture import Mixture
from warren.data.order import Order, WindowTask

ROWS_PER_GROUP = 64
GROUPS_PER_SHARD = 512
WINDOW = 4096
SIZES = (10**6, 10**8, 10**9)
RUN = 2048
"""Samples that follow each other in storage and are alike: one source, one crawl, one subject."""


def cost(num_samples: int) -> dict[str, Any]:
    """Plan an epoch of so many samples in this process, and time it."""
    num_groups = -(-num_samples // ROWS_PER_GROUP)
    shards = [[ROWS_PER_GROUP] * GROUPS_PER_SHARD] * (num_groups // GROUPS_PER_SHARD)
    before = _resident_bytes()
    began = time.perf_counter()
    order = Order(Mixture([shards], seed=1), WINDOW)
    built = time.perf_counter()
    order.window(0, 0)
    planned = time.perf_counter()
    windows = range(1, order.num_windows, max(1, order.num_windows // 500))
    for window in windows:
        WindowTask(1, 0, window, 0, 0, 1, order.window(0, window))
    ended = time.perf_counter()
    return {
        "samples": order.num_samples,
        "mixture_s": round(built - began, 3),
        "epoch_s": round(planned - built, 3),
        "window_ms": round(1000 * (ended - planned) / len(windows), 3),
        "peak_bytes_per_sample": round(
            (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / num_samples, 3
        ),
    }


def mixing(num_samples: int, window: int) -> dict[str, float]:
    """Compare neighbours and batches in the order with those of a permutation of everything.

    Returns:
        Chance that two samples that follow each other come from the same run; and how much more the share of a source
        of a tenth varies from batch to batch, as a ratio of standard deviations (1: as much as by chance).
    """
    shards = [[ROWS_PER_GROUP] * GROUPS_PER_SHARD] * (num_samples // ROWS_PER_GROUP // GROUPS_PER_SHARD)
    order = Order(Mixture([shards], seed=1), window)
    places = np.concatenate([_places(order, number) for number in range(min(order.num_windows, 64))])
    same_run = float(np.mean(places[1:] // RUN == places[:-1] // RUN))
    batches = (places[: len(places) // 128 * 128] < num_samples // 10).reshape(-1, 128).sum(axis=1)
    by_chance = np.sqrt(128 * 0.1 * 0.9)
    return {
        "same_run": round(same_run, 5),
        "same_run_by_chance": round(RUN / num_samples, 5),
        "batch_spread": round(float(batches.std() / by_chance), 3),
    }


def _places(order: Order, window: int) -> np.ndarray:
    """Return where a window's samples are stored, counted through the dataset, in training order."""
    task = WindowTask(order.seed, 0, window, 0, 0, order.window_samples, order.window(0, window))
    rows = task.batches(1)
    starts = [(s.shard * GROUPS_PER_SHARD + s.row_group) * ROWS_PER_GROUP for s in task.slices]
    return np.array([starts[row.slice] + row.row for [row] in rows])


def _resident_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print both, and one JSON object on the last line."""
    if len(sys.argv) > 1:
        print(json.dumps(cost(int(sys.argv[1]))))
        return
    costs = []
    for size in SIZES:  # each in a process of its own: a peak is a process's
        done = subprocess.run([sys.executable, "-m", "benchmarks.order", str(size)], capture_output=True, check=True)
        costs.append(json.loads(done.stdout))
        print(costs[-1], flush=True)
    mixed = {str(window): mixing(2**21, window) for window in (1024, 4096, 16384)}
    print(json.dumps(mixed, indent=1))
    print(json.dumps({"cost": costs, "mixing": mixed}))


if __name__ == "__main__":
    main()
