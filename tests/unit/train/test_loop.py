"""The loop in plain processes: one loss curve whatever the cut, resumed, interrupted, short of storage."""

from pathlib import Path
from typing import Any

import pytest

from factories import colour_sample, tiny_stage, write_dataset
from train_processes import Training, scratch
from warren.config import Duration
from warren.data.inputs import Inputs
from warren.data.sample import Sample, Turn

Curve = list[tuple[float, float]]
STEPS = 6


@pytest.fixture
def training(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> Training:
    root = scratch(tmp_path)
    text = (Turn("user", "what colour is number 3?"), Turn("assistant", "red"))
    samples = [colour_sample(i) if i % 5 else Sample(f"text-{i}", (), text, "tests") for i in range(48)]
    write_dataset(root, "d", samples)
    stage = tiny_stage(
        "d@v1", duration=Duration(steps=STEPS), projector_learning_rate=3e-4, weight_decay=0.1, warmup_fraction=0.2
    )
    return Training(root, "r", stage, tiny_inputs)


def curve(history: list[dict[str, Any]]) -> Curve:
    return [(row["loss"], row["grad_norm"]) for row in history]


def test_one_loss_curve_whatever_the_zero_stage_cut_and_number_of_ranks(training: Training) -> None:
    cuts = [(0, 8, 1), (2, 2, 1), (1, 4, 2), (3, 2, 2), (0, 2, 3), (2, 1, 3), (3, 1, 4)]
    curves: dict[tuple[int, int, int], Curve] = {}
    for zero_stage, micro_batch_size, world_size in cuts:
        name = f"zero{zero_stage}-micro{micro_batch_size}-ranks{world_size}"
        one = Training(training.root, name, training.stage, training.inputs, zero_stage, micro_batch_size)
        curves[zero_stage, micro_batch_size, world_size] = curve(one.train(world_size)[0])
    whole = curves[cuts[0]]
    assert len(whole) == STEPS
    assert whole[-1][0] < whole[0][0]
    for cut, found in curves.items():
        for step, (expected, measured) in enumerate(zip(whole, found, strict=True)):
            assert measured == pytest.approx(expected, rel=2e-5), f"ZeRO, micro batch, ranks {cut}: step {step}"
