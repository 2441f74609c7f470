"""`make bench-recovery`: kill a training worker, and tell whose code runs until the next step.

The way to it is followed from process to process: Ray Train's controller until there is the process of the worker that
trains last, then that process, and once it trains its training thread. Waiting counts for who waits.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warren.testbed.chaos import Chaos

Sample = tuple[float, str, list[tuple[bool, str]]]
REPOSITORY = Path(__file__).parents[2]
RECIPE = (
    "ingest.limit_images=200",
    "pretrain.duration={steps: 80}",
    "pretrain.checkpoint_every_steps=20",
    "pretrain.shuffle_window_samples=256",
)


def measure(scratch: Path) -> dict[str, Any]:
    """Kill a worker once; returns the seconds to the next step, by phase and owner."""
    samples = scratch / "samples"
    samples.mkdir()
    sources = [Path(__file__).parent / "everywhere", REPOSITORY / "platform", REPOSITORY / "serve"]
    os.environ |= {"PYTHONPATH": os.pathsep.join(map(str, sources)), "WARREN_BENCH_SAMPLES": str(samples)}
    chaos = Chaos("demo", RECIPE, ["worker"], scratch)
    [seconds] = chaos.run()["recovery_s"].values()
    [(_, killed)] = chaos.killed
    processes = [read(path, killed, killed + seconds) for path in samples.glob("*.jsonl")]
    return split(processes, killed, seconds)


def read(path: Path, begin: float, end: float) -> list[Sample]:
    """Return a process's samples between two moments; its last line may be cut."""
    lines = [line for line in path.read_text().splitlines() if line.endswith("]]]")]
    return [sample for sample in map(json.loads, lines) if begin <= sample[0] <= end]


def split(processes: Sequence[list[Sample]], killed: float, seconds: float) -> dict[str, Any]:
    """Divide the time since the kill among phases and owners."""
    worker = max((process for process in processes if trains_from(process)), key=trains_from)
    controller = next(process for process in processes if any("TrainController" in title for _, title, _ in process))
    entered = trains_from(worker)
    way = [sample for sample in controller if sample[0] < worker[0][0]] + [s for s in worker if s[0] < entered]
    restart = shares(Counter(busiest(threads) for _, _, threads in way), entered - killed)
    trained = [owner for _, _, threads in worker for trains, owner in threads if trains]
    load = shares(Counter(trained), killed + seconds - entered)
    own = restart.get("warren", 0.0) + load.get("warren", 0.0)
    return {"recovery_s": seconds, "restart_s": restart, "load_s": load, "own_fraction": own / seconds}


def trains_from(process: Sequence[Sample]) -> float:
    """Return when a process began to train; 0 where it did not."""
    return next((moment for moment, _, threads in process if any(trains for trains, _ in threads)), 0.0)


def busiest(threads: Sequence[tuple[bool, str]]) -> str:
    """Return whose code a process is in: Warren's where one thread is, else what is not Ray's, which waits in many."""
    owners = {owner for _, owner in threads}
    return "warren" if "warren" in owners else min(owners - {"ray", "python"}, default="ray")


def shares(owners: Counter[str], seconds: float) -> dict[str, float]:
    """Divide seconds as samples are divided, the most first; small shares but Warren's are put together."""
    total = max(1, owners.total())
    named = Counter({owner: count for owner, count in owners.items() if count > total / 50 or owner == "warren"})
    divided = {owner: seconds * count / total for owner, count in named.most_common()}
    return divided | {"others": seconds * (total - named.total()) / total}


def main() -> None:
    """Measure, print a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="warren-bench-", ignore_cleanup_errors=True) as folder:
            rounds.append(measure(Path(folder)))
    print("| phase | whose | s |\n|---|---|---|")
    for phase in ("restart_s", "load_s"):
        for owner, seconds in rounds[-1][phase].items():
            print(f"| {phase.removesuffix('_s')} | {owner} | {seconds:.2f} |")
    measurements = {name: [round(one[name], 3) for one in rounds] for name in ("recovery_s", "own_fraction")}
    print(json.dumps({**measurements, "own_fraction_max": max(measurements["own_fraction"])}))


if __name__ == "__main__":
    main()
