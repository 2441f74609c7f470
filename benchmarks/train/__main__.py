"""`make bench-train`: how fast a step is. Contestants alternate; each sees the same samples in the same order.

a  padded          a plain loop: padding to the longest, logits over the vocabulary at every place (as Bunny's trainer)
b  hugging_face    the same under Hugging Face's trainer and DeepSpeed
c  warren          recipe to Ray Data to Ray Train to DeepSpeed, packed; decoding and tokenising included
d  bare_deepspeed  Warren's objective and packed batches in DeepSpeed's plainest loop, batches in memory
e  warren_compiled Warren with `compile: true`
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.train import workload
from benchmarks.train.loops import LOOPS, peak_bytes
from warren.config import Resources

Metrics = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
WARREN = {"warren": workload.PACKED, "warren_compiled": workload.PACKED.model_copy(update={"compile": True})}
NAMES = (*WARREN, *LOOPS)


def run_loop(name: str, folder: Path, steps: int) -> Metrics:
    """Run one of the loops in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(workload.NUM_THREADS)}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.train.loops", name, str(folder), str(steps)]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: Metrics = json.loads(done.stdout.splitlines()[-1])
    return result


def run_warren(resources: Resources, folder: Path, steps: int, name: str) -> Metrics:
    """Train through Ray; a step's time is all that passes from the end of the one before."""
    from warren.cluster.train.stage import train_stage
    from warren.train.checkpoint import METRICS_FILE

    peaks: list[int] = [0]
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(peaks, ended), daemon=True)
    watcher.start()
    run = train_stage(workload.recipe(steps), "pretrain", resources, workload.root_of(folder), name)
    ended.set()
    watcher.join()
    latest = run.checkpoints.latest()
    assert latest is not None
    entry = next(file for file in latest.files if file.path.endswith(METRICS_FILE))
    lines = (run.checkpoints.at(latest.step) / entry.path).read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        tokenizer.write_bytes((run.folder / "tokenizer.json").read_bytes())
    seconds = [row["step_s"] for row in rows][1:]
    padding = statistics.mean(row["padding_fraction"] for row in rows)
    return {"step_s": seconds, "peak_bytes": max(peaks), "padding_fraction": padding}


def _watch(peaks: list[int], ended: threading.Event) -> None:
    """Keep the largest size of a training worker of this cluster."""
    from ray.util.state import list_actors

    workers: set[int] = set()
    while not ended.wait(0.5):
        if not workers:  # asked no longer than needed: every answer costs the cluster some CPU time
            actors = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
            workers = {actor.pid for actor in actors if actor.pid}
        for pid in workers:
            with suppress(FileNotFoundError, ProcessLookupError, StopIteration):  # it has ended
                peaks.append(peak_bytes(pid))


def measure(folder: Path, steps: int, rounds: int, names: Sequence[str]) -> dict[str, Metrics]:
    """Run these contestants `rounds` times in turn; the first step of each warms up and is not counted."""
    from warren.cluster.session import connect
    from warren.testbed import RayHead

    workload.write_samples(workload.root_of(folder))
    results: dict[str, list[Metrics]] = {}
    sources = os.pathsep.join(str(REPOSITORY / name) for name in ("platform", "serve"))
    environment = {"OMP_NUM_THREADS": str(workload.NUM_THREADS), "PYTHONPATH": sources}
    os.environ["PYTHONPATH"] = sources
    with RayHead(folder / "ray", 3, environment, object_store_bytes=400_000_000) as head:
        os.environ.update({**head.environment, "RAY_ADDRESS": head.driver_address})
        connect()
        for number in range(rounds):
            for name in names:
                began = time.monotonic()
                if name in WARREN:
                    one = run_warren(WARREN[name], folder, steps, f"{name}-{number}")
                else:
                    one = run_loop(name, folder, steps)
                results.setdefault(name, []).append(one)
                median = statistics.median(one["step_s"])
                print(
                    f"round {number} {name}: {median:.2f} s a step, {time.monotonic() - began:.0f} s in all", flush=True
                )
    return {name: _together(metrics) for name, metrics in results.items()}


def _together(metrics: list[Metrics]) -> Metrics:
    seconds = [second for one in metrics for second in one["step_s"]]
    mean = statistics.mean(seconds)
    return {**metrics[0], "step_s": mean, "samples_per_s": workload.BATCH / mean} | {
        "peak_bytes": max(one["peak_bytes"] for one in metrics)
    }


def main() -> None:
    """Measure, print a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, help="Warren always runs: it makes the others' tokenizer"
    )
    options = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="warren-bench-", ignore_cleanup_errors=True) as folder:
        names = [name for name in NAMES if name == "warren" or name in options.only]
        results = measure(Path(folder), options.steps, options.rounds, names)
    print("| | s a step | samples/s | peak memory |\n|---|---|---|---|")
    for name, one in results.items():
        print(f"| {name} | {one['step_s']:.2f} | {one['samples_per_s']:.2f} | {one['peak_bytes'] / 2**30:.2f} GiB |")
    print(json.dumps({key: round(value, 3) for key, value in _summary(results).items()}))


def _summary(results: dict[str, Metrics]) -> dict[str, float]:
    warren = results["warren"]
    took = {name: one["step_s"] / warren["step_s"] for name, one in results.items()}
    summary = {"padding_fraction": warren["padding_fraction"]}
    if "padded" in results:
        summary["speedup_vs_padded_full_logits"] = took["padded"]
        summary["peak_memory_ratio"] = warren["peak_bytes"] / results["padded"]["peak_bytes"]
    if "hugging_face" in results:
        summary["speedup_vs_hf_trainer"] = took["hugging_face"]
    if "bare_deepspeed" in results:
        summary["overhead_vs_bare_deepspeed"] = 1 / took["bare_deepspeed"] - 1
    if "warren_compiled" in results:
        summary["speedup_by_compile"] = 1 / took["warren_compiled"]
    return summary


if __name__ == "__main__":
    main()
