"""Bunny's training, replayed: the same losses, learning rates, gradient norms and weights."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bunny_oracle import checkpoint
from bunny_training import ORACLE, Replay, Replayed, in_memory, steps_of
from ranks import run_on_ranks

STAGES = ("stage1", "stage2_full", "stage2_lora", "stage2_full_accum")
TOLERANCE = 1e-4  # relative; Bunny's own noise is 3e-7
WEIGHTS = 5e-5  # absolute; Bunny's own noise is 1.3e-5


def replay_all(rank: int, world_size: int) -> dict[str, Replayed]:
    whole = {name: Replay(name, token_weighted=True) for name in STAGES if name != "stage2_full_accum"}
    found = {name: replay.run(rank, world_size) for name, replay in whole.items()}
    found["stage2_full_accum"] = Replay("stage2_full_accum", False, num_micro_batches=2).run(rank, world_size)
    with TemporaryDirectory() as folder:  # a head that is the embeddings, and no row that no token belongs to
        base = tied_base(Path(folder) / "base", num_rows=420)
        for zero_stage in (2, 3):
            replay = Replay("stage2_full", True, base=base)
            found[f"tied, ZeRO {zero_stage}"] = replay.run(rank, world_size, zero_stage)
        alone = Replay("stage2_full", True, base=base).losses_without_deepspeed()
        found["tied, without DeepSpeed"] = Replayed([[loss] for loss in alone], [], [], {})
    found["stage2_full in micro-batches"] = Replay("stage2_full", True, num_micro_batches=2).run(rank, world_size)
    return found


def tied_base(folder: Path, num_rows: int) -> Path:
    """Write the oracle's language model with so many rows, which are its head too."""
    shutil.copytree(checkpoint("base-llm-qwen2"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:num_rows].clone()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    changed = config | {"vocab_size": num_rows, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


@pytest.fixture(scope="module")
def replayed() -> dict[str, Replayed]:
    return run_on_ranks(1, replay_all)[0]


def logged(name: str, key: str) -> list[Any]:
    return [row[key] for rows in steps_of(name) for row in rows if key in row]


@pytest.mark.parametrize("name", STAGES)
def test_every_step_has_bunnys_loss_rates_and_gradient_norm(replayed: dict[str, Replayed], name: str) -> None:
    found = replayed[name]
    assert [loss for losses in found.losses for loss in losses] == pytest.approx(logged(name, "loss"), rel=TOLERANCE)
    assert found.norms == pytest.approx(logged(name, "grad_norm"), rel=TOLERANCE)
    assert found.rates[0][0] == 0.0  # warm-up: the first step changes nothing
    for rates, rows in zip(found.rates, steps_of(name), strict=True):
        assert rates == pytest.approx(sorted(set(rows[0]["lr"])), rel=1e-6)


@pytest.mark.parametrize("name", ["stage1", "stage2_full", "stage2_lora"])
def test_the_weights_end_where_bunnys_do(replayed: dict[str, Replayed], name: str) -> None:
    expected = {in_memory(key): tensor for key, tensor in load_file(ORACLE / name / "final.safetensors").items()}
    state = replayed[name].state
    apart = {key: float((state[key] - tensor).abs().max()) for key, tensor in expected.items()}
    assert max(apart.values()) < WEIGHTS, max(apart, key=lambda key: apart[key])


def test_the_weights_end_with_the_norms_of_bunnys_under_accumulation(replayed: dict[str, Replayed]) -> None:
    stats = json.loads((ORACLE / "stage2_full_accum" / "final_weight_stats.json").read_text())
    state = replayed["stage2_full_accum"].state
    compared = {key.split(":")[1]: value for key, value in stats.items() if "vision_tower" not in key}
    for key, expected in compared.items():
        assert float(state[in_memory(key)].double().norm()) == pytest.approx(expected["l2"], rel=TOLERANCE), key


def test_accumulating_changes_bunnys_curve_and_not_warrens(replayed: dict[str, Replayed]) -> None:
    """Bunny averages the means of micro-batches, so a short one's tokens weigh more; Warren weighs tokens alike."""
    found = replayed["stage2_full in micro-batches"]
    whole = logged("stage2_full", "loss")
    counts = logged("stage2_full", "n_label_tokens_before_splice")
    assert len(found.losses) == len(whole) == len(counts)
    assert found.norms == pytest.approx(logged("stage2_full", "grad_norm"), rel=TOLERANCE)
    first = logged("stage2_full_accum", "loss")[:2]
    assert found.losses[0] == pytest.approx(first, rel=TOLERANCE)  # the same samples, before anything is learnt
    assert logged("stage2_full_accum", "grad_norm")[0] > 1.05 * found.norms[0]


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_head_that_is_the_embeddings_trains_as_one_matrix_under_every_zero_stage(
    replayed: dict[str, Replayed], zero_stage: int
) -> None:
    found, expected = replayed[f"tied, ZeRO {zero_stage}"], replayed["tied, without DeepSpeed"]
    for own, other in zip(found.losses, expected.losses, strict=True):
        assert own == pytest.approx(other, rel=TOLERANCE)
    assert found.losses[-1][0] < 0.95 * found.losses[0][0]
    head, embeddings = found.state["lm_head.weight"], found.state["model.language_model.embed_tokens.weight"]
    assert torch.equal(head, embeddings)
