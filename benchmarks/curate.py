"""`make bench-curate`: what Bunny's coreset costs on two cores, beside a plain version with numpy and faiss.

Embeddings are synthetic, with planted duplicates. Warren's tasks run in two processes, without Ray, so that time and
memory are the tasks' own. The plain version holds everything in memory and uses both cores through faiss and numpy.
Costs are compared by CPU seconds, which other work on the machine changes less than the time that passes.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from warren.config.curate import ClusterStep, NearDuplicatesStep
from warren.curate.array_files import pack
from warren.curate.bands import keep_band
from warren.curate.cluster_steps import keep_in_clusters
from warren.curate.clusters import cluster
from warren.curate.ranking import band_ranks
from warren.curate.row_mask import RowSet
from warren.curate.sample_vectors import ComputedVectors, clip_scores
from warren.curate.tasks import Task, Workspace
from warren.curate.vector_math import unit
from warren.storage import Location

WIDTH = 64
PER_CLUSTER = 1000
PIECE = 50_000
THRESHOLD = 0.86
BANDS = {"score": (0.4, 0.6), "cosine": (0.15, 0.35)}
TASK_BYTES = 64 << 20
CORES = 2


def piece(number: int, count: int, concepts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and text embeddings; every fifth row is a near duplicate of the one before it."""
    centres = unit(np.random.default_rng(0).standard_normal((concepts, WIDTH), np.float32))
    random = np.random.default_rng([1, number])
    near = centres[random.integers(0, concepts, count)]
    image = unit(near + 0.1 * random.standard_normal((count, WIDTH), np.float32))
    image[4::5] = unit(image[3::5] + 0.01 * random.standard_normal(image[4::5].shape, np.float32))
    text = unit(image + 0.25 * random.standard_normal((count, WIDTH), np.float32))
    return image.astype(np.float16), text.astype(np.float16)


def write(folder: Path, samples: int) -> list[ComputedVectors]:
    """Write embeddings as Warren's actors do."""
    made = []
    for number, start in enumerate(range(0, samples, PIECE)):
        count = min(PIECE, samples - start)
        image, text = piece(number, count, max(8, samples // PER_CLUSTER))
        rows = np.arange(start, start + count, dtype=np.uint32)
        (folder / f"{number}").write_bytes(pack({"row": rows, "image": image, "text": text}))
        made.append(ComputedVectors(Location(str(folder / f"{number}"))))
    return made


def _do(work: Workspace, task: Task) -> tuple[int, float]:
    """Run a task, and return the process's largest memory and the task's CPU seconds."""
    began = time.process_time()
    work.put(task.name, task.compute())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time() - began


def warren(folder: Path, samples: int) -> dict[str, Any]:
    """Run Warren's steps; `kept` is what near-duplicate removal keeps."""
    pieces = [ComputedVectors(Location(str(folder / f"{n}"))) for n in range(-(-samples // PIECE))]
    peak, cpu_s = 0, 0.0
    work = Workspace(Location(str(folder / "work")))
    alive = work.folder / "alive"
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:

        def run(where: Workspace, tasks: Sequence[Task]) -> None:
            nonlocal peak, cpu_s
            for largest, seconds in pool.map(_do, [where] * len(tasks), tasks):
                peak, cpu_s = max(peak, largest), cpu_s + seconds

        list(pool.map(_warm, range(CORES)))  # imports are not measured
        began, began_cpu = time.perf_counter(), time.process_time()
        alive.put_bytes(RowSet.full(samples).to_bytes())
        scored = [file.location for file in clip_scores(run, work / "scores", pieces)]
        step = ClusterStep(step="cluster", num_clusters=max(8, samples // PER_CLUSTER))
        clusters = cluster(run, work / "cluster", step, pieces, alive, samples, TASK_BYTES)
        near = NearDuplicatesStep(step="near_duplicates", threshold=THRESHOLD)
        kept = first = keep_in_clusters(run, work / "near", near, clusters, alive, samples, TASK_BYTES)
        for name, files in (("score", scored), ("cosine", list(clusters.files))):
            stored = work.folder / f"before-{name}"
            stored.put_bytes(kept.to_bytes())
            kept = keep_band(run, work / name, files, name, BANDS[name], stored, samples)
        spent = {"s": time.perf_counter() - began, "cpu_s": cpu_s + time.process_time() - began_cpu}
    return {**spent, "peak_bytes": peak, "kept": len(kept), **quality(first.mask(0, samples))}


def _warm(_: int) -> None:
    time.sleep(1)  # so that every process takes one


def plain(folder: Path, samples: int) -> dict[str, Any]:
    """Do the same with numpy and faiss in one process, as a script would."""
    import faiss

    from warren.curate.array_files import ArrayFile

    faiss.omp_set_num_threads(CORES)
    began, began_cpu = time.perf_counter(), time.process_time()
    files = [ArrayFile(Location(str(folder / f"{n}"))) for n in range(-(-samples // PIECE))]
    image, text = (unit(np.concatenate([file.read(name) for file in files])) for name in ("image", "text"))
    score = np.einsum("ij,ij->i", image, text)
    num_clusters = max(8, samples // PER_CLUSTER)
    kmeans = faiss.Kmeans(WIDTH, num_clusters, niter=10, max_points_per_centroid=64, min_points_per_centroid=1)
    kmeans.train(image)
    number = kmeans.index.search(image, 1)[1][:, 0]
    assert kmeans.centroids is not None
    centroids = kmeans.centroids.reshape(num_clusters, WIDTH)
    order = np.argsort(number, kind="stable")
    edges = np.searchsorted(number[order], np.arange(num_clusters + 1))
    kept = [_without_near_duplicates(order[edges[n] : edges[n + 1]], image, centroids[n]) for n in range(num_clusters)]
    rows = first = np.concatenate(kept)
    cosine = np.einsum("ij,ij->i", image, unit(centroids)[number])
    for values, band in ((score, BANDS["score"]), (cosine, BANDS["cosine"])):
        start, end = band_ranks(band, len(rows))
        rows = rows[np.argsort(-values[rows], kind="stable")][start:end]
    mask = np.zeros(samples, bool)
    mask[first] = True
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spent = {"s": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}
    return {**spent, "peak_bytes": peak, "kept": len(rows), **quality(mask)}


def _without_near_duplicates(rows: np.ndarray, image: np.ndarray, centroid: np.ndarray) -> np.ndarray:
    """Return one row of each component, found by breadth-first search as in Dataset-Pruning."""
    vectors = image[rows]
    near = vectors @ vectors.T > THRESHOLD
    distance = np.linalg.norm(vectors - centroid, axis=1)
    left = np.ones(len(rows), bool)
    kept = []
    for seed in range(len(rows)):
        if not left[seed]:
            continue
        members, waiting = [], [seed]
        left[seed] = False
        while waiting:
            row = waiting.pop()
            members.append(row)
            neighbours = np.flatnonzero(near[row] & left)
            left[neighbours] = False
            waiting += neighbours.tolist()
        kept.append(sorted(members, key=lambda row: distance[row])[len(members) // 2])
    return rows[kept]


def quality(kept: np.ndarray) -> dict[str, float]:
    """Return how many planted duplicates lost a member, and how many of the rows lost were duplicates."""
    duplicated = np.zeros(len(kept), bool)
    duplicated[3::5] = duplicated[4::5] = True
    pairs = min(len(kept[3::5]), len(kept[4::5]))
    recall = (~kept[3::5][:pairs] | ~kept[4::5][:pairs]).mean()
    return {"recall": float(recall), "precision": float(duplicated[~kept].mean())}


def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a contestant in a process of its own, so that memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Measure every size and print one line each; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--plain-up-to", type=int, default=10**6, help="largest size of the plain version")
    options = parser.parse_args()
    rows = []
    for samples in options.sizes:
        with tempfile.TemporaryDirectory(prefix="bench-curate-") as name:
            write(Path(name), samples)
            row = {"samples": samples, "warren": alone(warren, Path(name), samples)}
            if samples <= options.plain_up_to:
                row["plain"] = alone(plain, Path(name), samples)
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    print(json.dumps(summary(rows)))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics that stand for the whole."""
    first, last = next((row for row in rows if row["samples"] == 10**5), rows[0]), rows[-1]
    compared = [row for row in rows if "plain" in row]
    cost, samples = (last["warren"]["cpu_s"] / first["warren"]["cpu_s"]), last["samples"] / first["samples"]
    growth = np.log(cost) / max(1e-9, np.log(samples))
    return {
        "cost_exponent": round(float(growth), 3),
        f"memory_growth_{_short(first)}_to_{_short(last)}": round(
            last["warren"]["peak_bytes"] / first["warren"]["peak_bytes"], 3
        ),
        "embeddings_per_s": round(last["samples"] / last["warren"]["s"]),
        "ratio_vs_single_node": round(compared[-1]["plain"]["cpu_s"] / compared[-1]["warren"]["cpu_s"], 3)
        if compared
        else None,
        "cores": CORES,
        "rows": rows,
    }


def _short(row: dict[str, Any]) -> str:
    """Return a size as `1e5`."""
    return f"{row['samples']:.0e}".replace("e+0", "e").replace("e+", "e")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of a task; faiss sets its own
    main()
