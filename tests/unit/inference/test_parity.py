"""Invariant 10: the same request gives the same greedy tokens alone and in any company."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warren.data.model_inputs import tokenizer_from_json
from warren.data.sample import Turn
from warren.inference import (
    EngineOptions,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TokenDelta,
    encode_request,
)
from warren.inference.testing import png_bytes
from warren.inference.transformers_engine import attention
from warren.inference.transformers_engine.offline import generate_all
from warren.inference.transformers_engine.packed_linear import PackedLinear
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import load_bundle

FAMILIES = ("qwen2", "qwen3", "llama", "phi", "phi3", "stablelm", "gemma", "granite")  # MiniCPM is Granite here
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
@pytest.mark.parametrize(("num_slots", "budget", "as_on_a_gpu"), [(5, 40, False), (3, 4096, False), (4, 100, True)])
def test_greedy_tokens_equal_single_generate_in_any_company(
    model_folder: Callable[[str], Path],
    family: str,
    num_slots: int,
    budget: int,
    as_on_a_gpu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if as_on_a_gpu:  # torch's attention decodes, too
        monkeypatch.setattr(attention, "can_attend", lambda _: False)
        monkeypatch.delattr(attention, "attend_rows")
    model, inputs, tokenizer_json = load_bundle(model_folder(family))
    model.generation_config.eos_token_id = None
    tokenizer = tokenizer_from_json(tokenizer_json)
    batch = Scheduler(model, inputs, tokenizer, EngineOptions(num_slots=num_slots, prefill_budget_tokens=budget))
    requests = _requests(inputs, tokenizer, 14, seed=num_slots)
    answers = generate_all(batch, requests)
    eos = tokenizer.token_to_id(inputs.tokens.eos_token)
    assert eos is not None
    plain, *_ = load_bundle(model_folder(family))  # the batch has packed the other's weights
    plain.generation_config.eos_token_id = None
    assert any(isinstance(part, PackedLinear) for part in model.modules())
    compared = 0
    distinct: set[int] = set()
    for request, answer in zip(requests, answers, strict=True):
        expected, margins = _alone(plain, inputs, request, eos)
        sure = next((i for i, margin in enumerate(margins) if margin <= MARGIN), len(expected))
        assert list(answer.token_ids[:sure]) == expected[:sure]
        compared, distinct = compared + sure, distinct | set(expected[:sure])
    assert compared > 100, "too few tokens to prove anything"
    assert len(distinct) > 30, "too uniform tokens to prove anything"
    assert batch.stats().num_running == 0
    assert batch.stats().kv_used_tokens == 0


@dataclass(frozen=True)
class Known:
    """A model whose answers to some requests are known."""

    make: Callable[[EngineOptions], Scheduler]
    requests: list[GenerationRequest]
    answers: list[tuple[int, ...]]


@pytest.fixture(scope="module", params=FAMILIES)
def known(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Known:
    model, inputs, tokenizer_json = load_bundle(model_folder(request.param))
    model.generation_config.eos_token_id = None
    tokenizer = tokenizer_from_json(tokenizer_json)
    eos = tokenizer.token_to_id(inputs.tokens.eos_token)
    assert eos is not None
    requests, answers = [], []
    for each in _requests(inputs, tokenizer, 8, seed=11):
        tokens, margins = _alone(model, inputs, each, eos)
        if min(margins) > MARGIN:  # the rest may rightly differ
            requests.append(each)
            answers.append(tuple(tokens))
    assert len(requests) > 4
    return Known(lambda options: Scheduler(model, inputs, tokenizer, options), requests, answers)


# What happens between two steps: a request joins, or the one that joined so many before the last leaves.
EVENTS = st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=8, max_size=20)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, num_slots=st.integers(1, 5), budget=st.integers(1, 300), step=st.integers(1, 300))
def test_joining_and_leaving_changes_nobody(
    known: Known, events: list[int | None], num_slots: int, budget: int, step: int
) -> None:
    options = EngineOptions(num_slots=num_slots, prefill_budget_tokens=budget, step_budget_tokens=step)
    batch = known.make(options)
    joined: dict[int, int] = {}  # key → number of the request
    got: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    script = iter(events)
    while (event := next(script, "over")) != "over" or batch.has_work:
        if event is None:
            key = len(joined)
            joined[key] = key % len(known.requests)
            got[key] = []
            batch.add(key, known.requests[joined[key]])
        elif isinstance(event, int) and batch.cancel(len(joined) - 1 - event):
            cancelled.add(len(joined) - 1 - event)
        for key, delta in batch.step():
            assert isinstance(delta, TokenDelta)
            assert key not in cancelled
            got[key] += delta.token_ids
    for key, tokens in got.items():
        expected = list(known.answers[joined[key]])
        assert tokens == (expected[: len(tokens)] if key in cancelled else expected)
    stats = batch.stats()
    assert (stats.num_cancelled, stats.num_finished) == (len(cancelled), len(joined) - len(cancelled))
    assert (stats.num_running, stats.num_waiting, stats.kv_used_tokens) == (0, 0, 0)


def test_what_fails_together_and_not_alone_is_done_again_and_changes_nobody(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of running answers and prompts together fail here, in the middle of prompts and of answers too."""
    batch = known.make(EngineOptions(num_slots=4, prefill_budget_tokens=50, step_budget_tokens=100))
    run, num_broken = batch._runner.run, 0

    def only_one_at_a_time(decoding: Any, plan: Any, first_slot: int) -> torch.Tensor:
        nonlocal num_broken
        if len(plan) + bool(decoding) > 1:
            run(decoding, plan, first_slot)  # as if the last layer failed: slots are written, lengths have grown
            num_broken += 1
            raise RuntimeError("boom")
        return run(decoding, plan, first_slot)

    monkeypatch.setattr(batch._runner, "run", only_one_at_a_time)
    answers = generate_all(batch, known.requests * 2)
    assert [answer.token_ids for answer in answers] == known.answers * 2
    assert num_broken > 5
    assert batch.stats().num_failed == 0
