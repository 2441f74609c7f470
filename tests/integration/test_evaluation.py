"""Evaluation as a Ray Data job on the session's cluster."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from factories import colour_sample, tiny_model_config, write_dataset
from warren.cluster.evaluation import evaluate, evaluation_folder
from warren.config import EvaluateConfig, Resources
from warren.models import build_model, inputs_of, save_model, train_tokenizer
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.record import Run

pytestmark = pytest.mark.timeout(300)
NUM_SAMPLES = 96


def checkpointed(root: Location, folder: Path) -> Run:
    """Commit a checkpoint of an untrained model."""
    tokenizer = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)
    model = build_model(tiny_model_config(), tokenizer, seed=1)
    (folder / MODEL_FOLDER).mkdir(parents=True)
    inputs = inputs_of(tiny_model_config(), tokenizer)
    save_model(model.state_dict(), model.config, inputs, tokenizer.json, folder / MODEL_FOLDER)
    run = Run(root / "runs" / "untrained")
    run.checkpoints.commit(CheckpointManifest(1, 1, 0, "f", tuple(run.checkpoints.upload(1, "a1", folder))))
    return run


def test_evaluators_may_take_every_cpu_of_the_cluster(
    idle_cluster: Any, storage_root: Location, tmp_path: Path
) -> None:
    write_dataset(storage_root, "asked", [colour_sample(i) for i in range(NUM_SAMPLES)])
    run = checkpointed(storage_root, tmp_path / "local")
    everything = Resources(num_workers=1, num_evaluators=1, cpus_per_replica=ray.cluster_resources()["CPU"])
    config = EvaluateConfig(dataset="asked@v1", max_new_tokens=2, batch_size=16)
    measured = evaluate(config, everything, storage_root, run)
    folder = evaluation_folder(run, 1, config)
    with (folder / "predictions.parquet").open() as file:
        answered = pq.read_table(file)["key"].to_pylist()
    assert answered == sorted(colour_sample(i).key for i in range(NUM_SAMPLES))
    assert evaluate(config, everything, storage_root, run) == measured  # read, not measured again
