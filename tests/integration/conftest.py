"""What several integration tests share: a run in plain processes and its curve, and the endpoint."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster_fixtures import Cluster
from factories import colour_sample, tiny_stage, write_dataset
from serve_endpoint import Endpoint
from train_processes import STEPS, Training, scratch
from warren.config import Duration, ValidationConfig
from warren.data.model_inputs import Inputs
from warren.data.sample import Sample, Turn


@pytest.fixture
def training(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> Training:
    return training_in(tmp_path, tiny_inputs)


@pytest.fixture(scope="session")
def curve(tmp_path_factory: pytest.TempPathFactory, tiny_inputs: tuple[Inputs, str]) -> list[dict[str, Any]]:
    """The metrics of one rank that takes a global batch whole, without ZeRO: all others are compared with it."""
    alone = training_in(tmp_path_factory.mktemp("alone"), tiny_inputs)
    [rows] = replace(alone, zero_stage=0, micro_batch_size=8).train(1)
    return rows


def training_in(folder: Path, tiny_inputs: tuple[Inputs, str]) -> Training:
    """Write the dataset that all tests train on, and return a run of `STEPS` steps."""
    root = scratch(folder)
    text = (Turn("user", "what colour is number 3?"), Turn("assistant", "red"))
    samples = [colour_sample(i) if i % 5 else Sample(f"text-{i}", (), text, "tests") for i in range(48)]
    write_dataset(root, "d", samples)
    stage = tiny_stage(
        "d@v1",
        duration=Duration(steps=STEPS),
        projector_learning_rate=3e-4,
        weight_decay=0.1,
        warmup_fraction=0.2,
        validation=ValidationConfig(dataset="d@v1", every_steps=4),
    )
    return Training(root, "r", stage, tiny_inputs)


@pytest.fixture(scope="module")
def endpoint(ray_cluster: Cluster) -> Iterator[Endpoint]:
    """The session's Serve instance; what a module deploys ends with the module."""
    endpoint = Endpoint(ray_cluster)
    yield endpoint
    endpoint.close()
