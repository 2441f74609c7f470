"""Invariant 10: the same request gives the same greedy tokens alone and in any company."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from warren.data.inputs import tokenizer_from_json
from warren.data.sample import Turn
from warren.inference import (
    Batch,
    EngineOptions,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TokenDelta,
    encode_request,
    generate_all,
)
from warren.inference.testing import png_bytes
from warren.models import load_bundle

FAMILIES = ("qwen2", "llama", "phi", "phi3", "stablelm", "gemma")
MARGIN = 1e-4
NUM_NEW_TOKENS = 24


def _requests(inputs: Any, tokenizer: Any, count: int, seed: int) -> list[GenerationRequest]:
    rng = random.Random(seed)
    requests = []
    for _ in range(count):
        num_images = rng.choice([0, 1, 1, 2])
        words = " ".join(rng.choices(["what", "blue", "circle", "is", "there", "naïve"], k=rng.randint(1, 20)))
        turns = [Turn("user", "<image>\n" * num_images + words)]
        if rng.random() < 0.3:
            turns += [Turn("assistant", "a blue circle"), Turn("user", "yes?")]
        images = tuple(png_bytes(tuple(rng.randrange(256) for _ in range(3))) for _ in range(num_images))  # type: ignore[arg-type]
        sampling = SamplingParams(max_new_tokens=rng.randint(1, NUM_NEW_TOKENS), ignore_eos=rng.random() < 0.5)
        requests.append(encode_request(Prompt(tuple(turns), images), inputs, tokenizer, sampling))
    return requests


def _alone(model: Any, inputs: Any, request: GenerationRequest, eos: int) -> tuple[list[int], list[float]]:
    """Return `generate()`'s tokens and the margin between the two best logits at each."""
    mean, std = (np.array(v, dtype=np.float32).reshape(1, 3, 1, 1) for v in (inputs.image.mean, inputs.image.std))
    pixels = torch.from_numpy((request.pixels / np.float32(255) - mean) / std).float()
    ids = torch.from_numpy(request.prompt_ids.astype(np.int64))[None]
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **({"pixel_values": pixels} if len(pixels) else {}),
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=None if request.sampling.ignore_eos else eos,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    top = [logits[0].topk(2).values for logits in output.logits]
    return output.sequences[0, ids.shape[1] :].tolist(), [float(two[0] - two[1]) for two in top]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("num_slots", "budget"), [(5, 40), (3, 4096)])
def test_greedy_tokens_equal_single_generate_in_any_company(
    model_folder: Callable[[str], Path], family: str, num_slots: int, budget: int
) -> None:
    model, inputs, tokenizer_json = load_bundle(model_folder(family))
    model.generation_config.eos_token_id = None
    tokenizer = tokenizer_from_json(tokenizer_json)
    batch = Batch(model, inputs, tokenizer, EngineOptions(num_slots=num_slots, prefill_budget_tokens=budget))
    requests = _requests(inputs, tokenizer, 14, seed=num_slots)
    answers = generate_all(batch, requests)
    eos = tokenizer.token_to_id(inputs.tokens.eos_token)
    compared, distinct = 0, set()
    for request, answer in zip(requests, answers, strict=True):
        expected, margins = _alone(model, inputs, request, eos)
        sure = next((i for i, margin in enumerate(margins) if margin <= MARGIN), len(expected))
        assert list(answer.token_ids[:sure]) == expected[:sure]
        compared, distinct = compared + sure, distinct | set(expected[:sure])
    assert compared > 100, "too few tokens to prove anything"
    assert len(distinct) > 30, "too uniform tokens to prove anything"
    assert batch.stats().num_running == 0
    assert batch.stats().kv_used_tokens == 0


def test_joining_and_leaving_at_random_changes_nobody(model_folder: Callable[[str], Path]) -> None:
    model, inputs, tokenizer_json = load_bundle(model_folder("qwen2"))
    tokenizer = tokenizer_from_json(tokenizer_json)
    options = EngineOptions(num_slots=4, prefill_budget_tokens=24)
    requests = _requests(inputs, tokenizer, 20, seed=7)
    alone = [generate_all(Batch(model, inputs, tokenizer, options), [r])[0].token_ids for r in requests]

    rng = random.Random(0)
    batch = Batch(model, inputs, tokenizer, options)
    got: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    waiting = list(range(len(requests)))
    while waiting or batch.has_work:
        if waiting and rng.random() < 0.4:
            key = waiting.pop(0)
            batch.add(key, requests[key])
            got[key] = []
        if got and rng.random() < 0.1:
            key = rng.choice(list(got))
            if batch.cancel(key):
                cancelled.add(key)
        for key, event in batch.step():
            assert isinstance(event, TokenDelta)
            assert key not in cancelled
            got[key] += event.token_ids
    assert cancelled
    for key, tokens in got.items():
        expected = list(alone[key])
        assert tokens == expected[: len(tokens)] if key in cancelled else tokens == expected
    assert batch.stats().num_cancelled == len(cancelled)
    assert batch.stats().num_finished == len(requests) - len(cancelled)
