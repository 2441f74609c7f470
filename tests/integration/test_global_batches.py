"""Batches through real Ray Data: the same global batches for any ranks, readers and kills, and from any step."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.util import placement_group, remove_placement_group

from cluster_fixtures import Cluster
from factories import colour_sample, make_image, source_of, text_sample, write_dataset
from warren.cluster.train.run_dataset import DATASET, GlobalBatches, RemainingPlan, batch_parts
from warren.config import Resources
from warren.data.batch import BatchPart
from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.stream import Encoding, StreamSpec
from warren.storage import Location
from warren.testbed.chaos import titled
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

BATCH = 8
RESOURCES = Resources(num_workers=2, micro_batch_size=2, data_cpus_per_task=0.5)
EPOCH = [f"sample-{i:05d}" for i in range(60)] + 2 * [f"text-{i:05d}" for i in range(5)]


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def consume(*share: Any) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(part.step, part.rank, part.keys) for part in batch_parts(*share)]


def stream(root: Location, tiny_inputs: tuple[Inputs, str]) -> StreamSpec:
    inputs, tokenizer = tiny_inputs
    images = write_dataset(root, "d", [colour_sample(i) for i in range(60)])
    texts = write_dataset(root, "t", [text_sample(i) for i in range(5)])
    sources = (source_of(root, images), source_of(root, texts, samples_per_epoch=10))
    return StreamSpec(sources, Encoding(inputs, tokenizer, 96), BATCH, seed=5, window_samples=24, epochs=2)


def shares_of(run: Run, spec: StreamSpec, world: int) -> list[tuple[Any, ...]]:
    """What each rank asks for its batch parts with."""
    latest = run.checkpoints.latest()
    shards = GlobalBatches(spec, RESOURCES).configure({DATASET: RemainingPlan(run, spec)()}, world, None, None)
    cut = spec.cut(world, RESOURCES)
    return [(shard[DATASET], spec, cut, rank, latest.step if latest else 0) for rank, shard in enumerate(shards)]


def batches(run: Run, spec: StreamSpec, world: int) -> dict[int, list[str]]:
    results = ray.get([consume.remote(*share) for share in shares_of(run, spec, world)], timeout=120)
    steps: dict[int, list[str]] = {}
    for rank, parts in enumerate(results):
        assert [part_rank for _, part_rank, _ in parts] == [rank] * len(parts)
        assert [step for step, _, _ in parts] == sorted({step for step, _, _ in parts})
        for step, _, keys in parts:
            steps.setdefault(step, []).extend(keys)
    return {step: sorted(keys) for step, keys in steps.items()}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("kind", "short_plan", "worlds"), [("s3", 0, (2, 3)), ("file", 256, (4,))])
def test_batches_are_the_same_for_every_number_of_ranks_and_after_a_resume(
    s3_root: Location,
    tmp_path: Path,
    tiny_inputs: tuple[Inputs, str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    short_plan: int,
    worlds: tuple[int, ...],
) -> None:
    """Through a task that plans, and without one."""
    root = s3_root if kind == "s3" else Location(str(tmp_path))
    monkeypatch.setattr("warren.cluster.train.run_dataset._SHORT_PLAN_WINDOWS", short_plan)
    spec = stream(root, tiny_inputs)
    run = Run(root / "runs" / "r")
    # Rows of several steps, so that a window's last row is shorter than the others.
    monkeypatch.setattr("warren.cluster.train.run_dataset._ROW_BYTES", 2 * BATCH * (3 * 32 * 32 + 8 * 96))
    whole = batches(run, spec, 1)
    assert list(whole) == list(range(18))
    assert sorted(k for step in range(9) for k in whole[step]) == sorted(EPOCH)
    for world in worlds:
        assert batches(run, spec, world) == whole
    run.checkpoints.commit(CheckpointManifest(7, 2, 2, "f", (), {}))
    assert batches(run, spec, 2) == {step: keys for step, keys in whole.items() if step >= 7}


Shares = dict[tuple[int, int], tuple[tuple[str, ...], str]]  # of each step and rank: keys, and a digest of the tensors


def contents(part: BatchPart) -> tuple[tuple[int, int], tuple[tuple[str, ...], str]]:
    digest = hashlib.sha256()
    for micro in part.micro_batches:
        for name in ("input_ids", "labels", "lengths", "sequences", "pixels"):
            digest.update(getattr(micro, name).tobytes())
    return (part.step, part.rank), (part.keys, digest.hexdigest())


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def read_on(*share: Any) -> Iterator[Any]:
    for part in batch_parts(*share):
        yield contents(part)


@ray.remote  # type: ignore[untyped-decorator]
def hold_cpus(seconds: float) -> None:
    time.sleep(seconds)


def kill_the_readers(cluster: Any) -> None:
    victims = titled(cluster.head, "reader")
    assert victims  # in mid-stream
    for process in victims:
        process.kill()


def leave_one_reader(cluster: Any) -> None:
    hold_cpus.options(num_cpus=5).remote(3.0)


@pytest.mark.parametrize("disturb", [kill_the_readers, pytest.param(leave_one_reader, marks=pytest.mark.long)])
def test_batches_are_the_same_when_readers_are_killed_or_become_fewer_and_more_in_mid_stream(
    ray_cluster: Any,
    s3_root: Location,
    tiny_inputs: tuple[Inputs, str],
    disturb: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("warren.cluster.train.run_dataset._ROW_BYTES", 1)  # one step a row: the first comes early
    turns = (Turn("user", IMAGE_MARK), Turn("assistant", "red"))
    large = [Sample(f"s{i:05d}", (make_image((i, 2 * i, 7), (2400, 2400)),), turns, "tests") for i in range(96)]
    source = source_of(s3_root, write_dataset(s3_root, "large", large))
    spec = StreamSpec((source,), Encoding(*tiny_inputs, 96), BATCH, seed=5, window_samples=32, epochs=1)
    shares = shares_of(Run(s3_root / "r"), spec, 2)
    ranks = [read_on.options(num_returns="streaming").remote(*share) for share in shares]
    # The second comes through Ray Data.
    found: Shares = dict(ray.get([next(ranks[0]), next(ranks[0])], timeout=120))
    disturb(ray_cluster)
    for rank in ranks:
        found |= dict(ray.get(list(rank), timeout=240))
    reader = spec.reader(spec.cut(2, RESOURCES))
    assert found == dict(contents(part) for read in spec.reads() for parts in reader.read(read) for part in parts)


def test_a_plan_needs_no_cpu_because_workers_may_hold_all(
    idle_cluster: Cluster, tmp_path: Path, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Location(str(tmp_path))
    spec = stream(root, tiny_inputs)
    held = placement_group([{"CPU": ray.cluster_resources()["CPU"] - 0.5}])
    ray.get(held.ready(), timeout=60)
    try:
        whole = batches(Run(root / "runs" / "r"), spec, 2)
        monkeypatch.setattr("warren.cluster.train.run_dataset._SHORT_PLAN_WINDOWS", 0)
        assert batches(Run(root / "runs" / "r"), spec, 2) == whole
    finally:
        remove_placement_group(held)
