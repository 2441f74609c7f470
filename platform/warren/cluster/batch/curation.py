"""Selections as a Ray job: tasks do the pieces of each step, actors hold the model that computes embeddings."""

import sys
from collections.abc import Sequence

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from warren.cluster.capacity import lacks, size_of, waiting
from warren.config import CurateConfig
from warren.config.curate import EmbeddingsConfig
from warren.curate import pipeline
from warren.curate.embedding_model import EmbeddingModel
from warren.curate.sample_pieces import SamplePiece, sample_pieces
from warren.curate.sample_vectors import ComputedVectors, VectorPiece
from warren.curate.tasks import Task, Workspace
from warren.data.manifest import Manifest
from warren.storage import Location

_IN_FLIGHT_PER_CPU = 2
_SAMPLES_PER_PIECE = 2048  # of which a model's embeddings are written at once


def curate(config: CurateConfig, root: Location) -> Manifest:
    """Select samples on the cluster; what an earlier attempt finished is not done again."""
    return pipeline.curate(config, root, run_on_cluster, embed)


def run_on_cluster(work: Workspace, tasks: Sequence[Task]) -> None:
    """Run tasks as Ray tasks, some at a time, and wait for all."""
    limit = max(1, int(_IN_FLIGHT_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    place = "/".join(work.folder.uri.rsplit("/", 2)[1:])
    running: list[ray.ObjectRef] = []
    with tqdm(total=len(tasks), desc=f"curate {place}", unit="piece", mininterval=5) as progress:
        for task in tasks:
            if len(running) >= limit:
                running = _wait_for_one(running, progress)
            running.append(_run.options(name="curate").remote(work, task))
        while running:
            running = _wait_for_one(running, progress)


def _wait_for_one(running: list[ray.ObjectRef], progress: tqdm) -> list[ray.ObjectRef]:
    done: list[ray.ObjectRef]
    left: list[ray.ObjectRef]
    done, left = ray.wait(running, num_returns=1)
    ray.get(done)
    progress.update(len(done))
    return left


@ray.remote(max_retries=3)  # type: ignore[untyped-decorator]
def _run(work: Workspace, task: Task) -> None:
    work.put(task.name, task.compute())


def embed(config: EmbeddingsConfig, work: Workspace, pieces: list[SamplePiece]) -> list[VectorPiece]:
    """Compute embeddings of samples with a model in Ray Data actors; each piece is written once it is computed."""
    shards = dict.fromkeys(stored for piece in pieces for stored in piece.shards)  # a shard may be in two pieces
    small = sample_pieces(list(shards), _SAMPLES_PER_PIECE)
    names = [f"{piece.number:06d}" for piece in small]
    present = work.present()
    missing = [piece for piece, name in zip(small, names, strict=True) if name not in present]
    if missing:
        number, gpus = min(config.batch_actors, len(missing)), config.gpus_per_actor
        if lacks(number, number * gpus):
            print(f"curate: {waiting(size_of(number, 'embedding actors', 1, gpus))}", file=sys.stderr)
        blocks = [pa.table({"place": [n]}) for n in range(len(missing))]
        written = ray.data.from_blocks(blocks).map_batches(
            _Embedder,
            fn_constructor_args=(config, work, ray.put(missing)),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=number),
            num_cpus=1,
            num_gpus=gpus,
        )
        with tqdm(total=len(missing), desc="embed", unit="piece", mininterval=5) as progress:
            for batch in written.iter_batches(batch_size=None, batch_format="pyarrow"):
                progress.update(batch.num_rows)
    return [ComputedVectors(work.folder / name) for name in names]


class _Embedder:
    """A Ray Data actor: holds the model."""

    def __init__(self, config: EmbeddingsConfig, work: Workspace, pieces: ray.ObjectRef) -> None:
        self._model = EmbeddingModel(config)
        self._work = work
        self._pieces: list[SamplePiece] = ray.get(pieces)

    def __call__(self, batch: pa.Table) -> pa.Table:
        for place in batch["place"].to_pylist():
            piece = self._pieces[place]
            self._work.put(f"{piece.number:06d}", self._model.embed(piece))
        return batch
