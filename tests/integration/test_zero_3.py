"""ZeRO-3 gathers a module's weights on all ranks at once: no rank may skip a module, whatever its samples are."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from factories import colour_sample, text_sample, tiny_model_config, tiny_stage
from ranks import run_on_ranks
from warren.config import Resources
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.model_inputs import EncodedSample, Inputs, tokenizer_from_json
from warren.data.packing import Packing
from warren.models import build_model, train_tokenizer

TEXTS = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4


def train(rank: int, world_size: int, steps: list[list[BatchPart]], inputs: Inputs) -> list[tuple[float, float]]:
    from warren.train import objective
    from warren.train.engine import TrainingEngine

    model = build_model(tiny_model_config(), train_tokenizer(TEXTS, 320), seed=1)
    objective._MIN_ROWS, objective._MAX_LOGITS = 20, 0  # a text-only rank's loss is then taken in pieces
    resources = Resources(num_workers=world_size, zero_stage=3, micro_batch_size=4)
    stage = tiny_stage("d@v1", warmup_fraction=0.0)
    engine = TrainingEngine(objective.Objective(model, inputs), stage, resources, Cut(world_size, 2), num_steps=10)
    found = []
    for parts in steps:
        part, share = parts[rank], torch.zeros(())
        for micro_batch in part.micro_batches:
            tensors = objective.to_tensors(micro_batch, engine.device)
            is_last = micro_batch is part.micro_batches[-1]
            share += engine.forward_backward(tensors, part.num_supervised_tokens, is_last)
        norm, _ = engine.step()
        dist.all_reduce(share)
        found.append((float(share), norm))
    return found


def share_of(rank: int, samples: list[EncodedSample], cut: Cut, num_supervised_tokens: int) -> BatchPart:
    [part] = cut_global_batch(0, 0, samples, [], replace(cut, world_size=1), 1, 32)
    return replace(part, rank=rank, num_supervised_tokens=num_supervised_tokens)


def test_a_rank_with_text_only_neither_hangs_the_others_nor_changes_the_gradient(
    tiny_inputs: tuple[Inputs, str],
) -> None:
    inputs, text = tiny_inputs
    samples = [*(text_sample(i, words=9) for i in range(4)), *(colour_sample(i) for i in range(4))]
    encoded = [inputs.encode_sample(sample, tokenizer_from_json(text), 96) for sample in samples]
    texts, images = encoded[:4], encoded[4:]
    total = sum(sample.num_supervised_tokens for sample in encoded)
    cuts = [Cut(2, 2), Cut(2, 2, Packing(2, 200)), Cut(2, 1)]  # two micro-batches, packed into one, one
    on_two = [[share_of(0, images, cut, total), share_of(1, texts, cut, total)] for cut in cuts]
    assert not any(len(micro.pixels) for _, part in on_two for micro in part.micro_batches)
    assert any(micro.is_packed for micro in on_two[1][1].micro_batches)
    on_one: list[list[Any]] = [cut_global_batch(0, 0, encoded, [], Cut(1, 2), 1, 32)] * 3
    [two, _], [one] = run_on_ranks(2, train, on_two, inputs), run_on_ranks(1, train, on_one, inputs)
    assert two == [pytest.approx(pair, rel=1e-4) for pair in one]
    assert two[-1][0] < two[0][0]
