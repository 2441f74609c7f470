"""ZeRO-3 gathers a module's weights on all ranks at once: no rank may skip a module, whatever its samples are."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from factories import colour_sample, text_sample, tiny_model_config, tiny_stage
from warren.cluster.laptop import free_port
from warren.config import Resources
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.inputs import Inputs, tokenizer_from_json
from warren.data.packing import Packing
from warren.models import build_model, train_tokenizer

WORLD = 2
TEXTS = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4


def rank_main(rank: int, world: int, port: int, steps: list[BatchPart], inputs: Inputs, out: Path) -> None:
    import torch
    import torch.distributed as dist

    from warren.train import objective
    from warren.train.engine import Engine

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = build_model(tiny_model_config(), train_tokenizer(TEXTS, 320), seed=1)
    objective._MAX_LOGITS = (
        4 * model.lm_head.out_features
    )  # one rank's loss is then taken in pieces, the other's is not
    whole = objective.Objective(model, inputs)
    resources = Resources(num_workers=world, zero_stage=3, micro_batch_size=4)
    stage = tiny_stage("d@v1", warmup_fraction=0.0, max_grad_norm=1e9)
    engine = Engine(whole, stage, resources, Cut(world, 2), num_steps=10)
    losses = []
    for part in steps:
        share = torch.zeros(())
        for micro_batch in part.micro_batches:
            tensors = objective.to_tensors(micro_batch, engine.device)
            is_last = micro_batch is part.micro_batches[-1]
            share += engine.forward_backward(tensors, part.num_supervised_tokens, is_last)
        norm, _ = engine.step()
        dist.all_reduce(share)
        losses.append((float(share), norm))
    if rank == 0:
        out.write_text(repr(losses))
    dist.destroy_process_group()


def train(world: int, steps: list[list[BatchPart]], inputs: Inputs, out: Path) -> Any:
    context = multiprocessing.get_context("spawn")
    port = free_port()
    ranks = [
        context.Process(target=rank_main, args=(rank, world, port, [parts[rank] for parts in steps], inputs, out))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=200)
    hanging = [process for process in ranks if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging
    assert [process.exitcode for process in ranks] == [0] * world
    return eval(out.read_text())


@pytest.mark.timeout(500)
def test_a_rank_with_text_only_neither_hangs_the_others_nor_changes_the_gradient(
    tiny_inputs: tuple[Inputs, str], tmp_path: Path
) -> None:
    inputs, text = tiny_inputs
    tokenizer = tokenizer_from_json(text)
    samples = [*(text_sample(i, words=9) for i in range(4)), *(colour_sample(i) for i in range(4))]
    encoded = [inputs.encode_sample(sample, tokenizer, 96) for sample in samples]
    cuts = [Cut(2, 2), Cut(2, 2, Packing(2, 200)), Cut(2, 1)]  # two micro-batches, one packed, one
    steps, same_on_one = [], []
    for step, cut in enumerate(cuts):
        texts = cut_global_batch(step, 0, encoded[:4], [], Cut(1, cut.num_micro_batches, cut.packing), 1, 32)[0]
        images = cut_global_batch(step, 0, encoded[4:], [], Cut(1, cut.num_micro_batches, cut.packing), 1, 32)[0]
        total = texts.num_supervised_tokens + images.num_supervised_tokens
        assert not any(len(m.pixels) for m in texts.micro_batches)
        steps.append([_with(part, rank, total) for rank, part in enumerate((images, texts))])
        same_on_one.append(cut_global_batch(step, 0, encoded, [], Cut(1, 2), 1, 32))
    two = train(2, steps, inputs, tmp_path / "two")
    one = train(1, same_on_one, inputs, tmp_path / "one")
    assert two == [pytest.approx(pair, rel=1e-4) for pair in one]
    assert two[-1][0] < two[0][0]


def _with(part: BatchPart, rank: int, num_supervised_tokens: int) -> BatchPart:
    from dataclasses import replace

    return replace(part, rank=rank, num_supervised_tokens=num_supervised_tokens)
