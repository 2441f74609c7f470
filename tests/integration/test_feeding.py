"""Batches through real Ray Data: the same global batches whatever the number of ranks, and from any step."""

from typing import Any

import pytest
import ray

from factories import colour_sample, source_of, text_sample, write_dataset
from warren.cluster.feeding import DATASET, GlobalBatches, RemainingPlan, batch_parts
from warren.config import Resources
from warren.data.inputs import Inputs
from warren.data.stream import Encoding, StreamSpec
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.record import Run

BATCH = 8
RESOURCES = Resources(num_workers=2, micro_batch_size=2, data_cpus_per_task=0.5)
EPOCH = [f"sample-{i:05d}" for i in range(60)] + 2 * [f"text-{i:05d}" for i in range(5)]


@ray.remote(num_cpus=0)
def consume(iterator: Any) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(part.step, part.rank, part.keys) for part in batch_parts(iterator)]


def stream(root: Location, tiny_inputs: tuple[Inputs, str]) -> StreamSpec:
    inputs, tokenizer = tiny_inputs
    pictures = write_dataset(root, "d", [colour_sample(i) for i in range(60)])
    texts = write_dataset(root, "t", [text_sample(i) for i in range(5)])
    sources = (source_of(root, pictures), source_of(root, texts, samples_per_epoch=10))
    return StreamSpec(sources, Encoding(inputs, tokenizer, 96), BATCH, seed=5, window_samples=24, epochs=2)


def batches(run: Run, spec: StreamSpec, world: int) -> dict[int, list[str]]:
    plan = RemainingPlan(run, spec)()
    shards = GlobalBatches(spec, RESOURCES).configure({DATASET: plan}, world, None, None)
    results = ray.get([consume.remote(shard[DATASET]) for shard in shards], timeout=120)
    steps: dict[int, list[str]] = {}
    for rank, parts in enumerate(results):
        assert [part_rank for _, part_rank, _ in parts] == [rank] * len(parts)
        assert [step for step, _, _ in parts] == sorted({step for step, _, _ in parts})
        for step, _, keys in parts:
            steps.setdefault(step, []).extend(keys)
    return {step: sorted(keys) for step, keys in steps.items()}


@pytest.mark.usefixtures("ray_cluster")
def test_batches_are_the_same_for_every_number_of_ranks_and_after_a_resume(
    root: Location, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = stream(root, tiny_inputs)
    run = Run(root / "runs" / "r")
    # Rows of several steps, so that a window's last row is shorter than the others.
    monkeypatch.setattr("warren.cluster.feeding._ROW_BYTES", 2 * BATCH * (3 * 32 * 32 + 8 * 96))
    whole = batches(run, spec, 1)
    assert list(whole) == list(range(18))
    assert sorted(k for step in range(9) for k in whole[step]) == sorted(EPOCH)
    assert batches(run, spec, 2) == whole
    assert batches(run, spec, 3) == whole
    run.checkpoints.commit(CheckpointManifest(7, 2, 2, "f", (), {}))
    assert batches(run, spec, 2) == {step: keys for step, keys in whole.items() if step >= 7}
