"""One contestant as a training worker: takes batches, and tells what they cost. Started by `bench.py`."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
from loaders import CONTESTANTS, Task, begins_early, import_for, prepare

_IDLE_S = 8.0


def main() -> None:
    """Measure from batch `first` to batch `last`: between them every loader is in its steady state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("task", type=Path)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--last", type=int, required=True)
    parser.add_argument("--cluster", default="", help="folder of the Ray cluster whose processes count, too")
    parser.add_argument("--only-begin", action="store_true", help="end with the second batch")
    parser.add_argument("--profile", action="store_true", help="show the CPU seconds of the cluster's processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scratch-") as scratch:
        task = Task.read(options.task, Path(scratch))
        import_for(options.contestant)
        idle_cpus = _join(options.cluster) if options.cluster else 0.0
        print(json.dumps(_measure(options, task, idle_cpus)), flush=True)
        os._exit(0)  # loaders end with their process; some of them slowly


def _measure(options: argparse.Namespace, task: Task, idle_cpus: float) -> dict[str, float]:
    begin_s, begin_cpu_s = time.perf_counter(), _cpu_s(options.cluster)
    prepare(options.contestant, task)
    result: dict[str, float] = {"prepare_s": time.perf_counter() - begin_s}
    batches = CONTESTANTS[options.contestant](task) if begins_early(options.contestant) else None
    result |= {"load_s": _load_what_trains()}
    begin_s = time.perf_counter()
    if batches is None:
        batches = CONTESTANTS[options.contestant](task)
    peak_bytes = images = 0
    for number, batch in enumerate(batches):
        if number == 0:
            result["first_batch_s"] = time.perf_counter() - begin_s
            result["first_batch_cpu_s"] = sum(_cpu_s(options.cluster)) - sum(begin_cpu_s)
        if number == 1:
            result["second_batch_s"] = time.perf_counter() - begin_s
            if options.only_begin:
                return result
        if options.first < number <= options.last:
            images += len(batch["pixels"])
        if number % 8 == 0 or number == options.last:
            peak_bytes = max(peak_bytes, _memory_bytes())
        if number in (options.first, options.last) and options.profile and options.cluster:
            for process in _cluster_processes(options.cluster):
                name, spent = " ".join(process.cmdline())[:70], sum(process.cpu_times()[:2])
                print(f"batch {number}: {spent:7.2f} s  {process.pid} {name}", file=sys.stderr)
        if number == options.first:
            start_s, start_cpu_s = time.perf_counter(), _cpu_s(options.cluster)
        if number == options.last:
            break
    wall_s, stop_cpu_s = time.perf_counter() - start_s, _cpu_s(options.cluster)
    worker_s, cluster_s = (stop - start for stop, start in zip(stop_cpu_s, start_cpu_s, strict=True))
    return {
        **result,
        "images": images,
        "images_per_s": images / wall_s,
        "cpu_ms_per_image": 1e3 * (worker_s + cluster_s) / images,
        "worker_cpu_ms_per_image": 1e3 * worker_s / images,
        "loading_cpu_ms_per_image": 1e3 * (worker_s + cluster_s - idle_cpus * wall_s) / images,
        "peak_memory_mb": peak_bytes / 1e6,
    }


def _load_what_trains() -> float:
    """Import what every training worker imports, whatever loads its data; weights would come on top. Return seconds."""
    start_s = time.perf_counter()
    for name in ("warren.models", "warren.train.loop"):
        importlib.import_module(name)
    return time.perf_counter() - start_s


def _join(cluster: str) -> float:
    """Join the cluster; return how many CPUs it uses while nothing is asked of it, as under any training there.

    Two actors that Ray Data keeps for as long as a cluster lives are started here, because Ray Train's controller has
    started them by the time a training worker asks for its batches.
    """
    import ray

    from warren.cluster.session import quieten
    from warren.compat.ray_data import start_lasting_actors

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    quieten()
    start_lasting_actors()
    time.sleep(_IDLE_S)  # until what it starts has started
    begin_s, (_, begin_cpu_s) = time.perf_counter(), _cpu_s(cluster)
    time.sleep(_IDLE_S)
    return (_cpu_s(cluster)[1] - begin_cpu_s) / (time.perf_counter() - begin_s)


def _cpu_s(cluster: str) -> tuple[float, float]:
    """Return the CPU seconds so far of this process with its children, and of the cluster's processes."""
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return _sum_cpu_s(mine), _sum_cpu_s(_cluster_processes(cluster)) if cluster else 0.0


def _sum_cpu_s(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _cluster_processes(folder: str) -> list[psutil.Process]:
    mine = os.getpid()
    roots = [
        p for p in psutil.process_iter(["cmdline"]) if p.pid != mine and folder in " ".join(p.info["cmdline"] or ())
    ]
    processes = {process.pid: process for root in roots for process in [root, *_children(root)]}
    return [process for pid, process in processes.items() if pid != mine]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def _memory_bytes() -> int:
    """Return what the worker and its children hold: shared pages count once."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
