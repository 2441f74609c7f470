"""Learning rates, weight decay and DeepSpeed's configuration, by Bunny's rules."""

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from factories import tiny_model_config, tiny_stage
from warren.config import Resources, ZeroStage
from warren.data.batch import Cut
from warren.models import build_model, freeze_all_but, train_tokenizer
from warren.train.engine import deepspeed_config
from warren.train.optimization import cosine_schedule, parameter_groups

GOLDEN = Path(__file__).parents[2] / "golden" / "deepspeed.json"


def test_warm_up_starts_at_zero_and_the_cosine_ends_there() -> None:
    factor = cosine_schedule(100, 0.03)
    assert [factor(step) for step in range(4)] == [0.0, 1 / 3, 2 / 3, 1.0]
    assert factor(3 + 97 // 2) == pytest.approx(0.5, abs=0.01)
    assert factor(100) == pytest.approx(0.0)
    assert cosine_schedule(10, 0.03)(0) == 0.0  # ceil(0.3) = 1 step of warm-up


def test_parts_have_their_own_rates_and_norms_do_not_decay() -> None:
    model = build_model(tiny_model_config(), train_tokenizer(["a b"], 320), seed=0)
    freeze_all_but(model, ["vision_tower", "projector", "language_model"])
    stage = tiny_stage("d@v1", weight_decay=0.1, projector_learning_rate=5e-4, vision_tower_learning_rate=1e-5)
    groups = parameter_groups(model, stage)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {
        (1e-3, 0.1),
        (1e-3, 0.0),
        (5e-4, 0.1),
        (5e-4, 0.0),
        (1e-5, 0.1),
        (1e-5, 0.0),
    }
    assert all(p.ndim == 1 for g in groups if g["weight_decay"] == 0.0 for p in g["params"])
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_without_its_own_rate_the_tower_follows_the_projector() -> None:
    model = build_model(tiny_model_config(), train_tokenizer(["a b"], 320), seed=0)
    freeze_all_but(model, ["vision_tower", "language_model"])
    rates = {g["lr"] for g in parameter_groups(model, tiny_stage("d@v1", projector_learning_rate=2e-5))}
    assert rates == {1e-3, 2e-5}


def test_deepspeed_gets_what_the_recipe_says() -> None:
    resources = Resources(num_workers=2, zero_stage=2, micro_batch_size=4)
    stage = tiny_stage("d@v1", global_batch_size=32)
    written = deepspeed_config(stage, resources, Cut.of(32, 2, 4))
    assert written == json.loads(GOLDEN.read_text())["cpu"]


def test_deepspeed_gets_half_precision_and_what_waits_on_the_host() -> None:
    resources = Resources(
        num_workers=8,
        gpus_per_worker=1,
        zero_stage=3,
        micro_batch_size=4,
        precision="fp16",
        offload=("optimizer", "weights"),
    )
    stage = tiny_stage("d@v1", global_batch_size=32)
    assert deepspeed_config(stage, resources, Cut.of(32, 8, 4)) == json.loads(GOLDEN.read_text())["gpu_offload"]


@pytest.mark.parametrize(("part", "zero_stage"), [("optimizer", 0), ("weights", 2)])
def test_nothing_whole_is_offloaded(part: Literal["optimizer", "weights"], zero_stage: ZeroStage) -> None:
    with pytest.raises(ValidationError, match=rf"offload: \[{part}\] needs zero_stage"):
        Resources(num_workers=1, zero_stage=zero_stage, offload=(part,))
