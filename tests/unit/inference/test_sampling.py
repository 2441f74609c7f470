"""Sampling: transformers' own processors are the oracle."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from warren.inference import SamplingParams
from warren.inference.transformers_engine.sampling import Sampler, choose

VOCABULARY = 40
PARAMS = SamplingParams(max_new_tokens=1, temperature=1.0)


def _logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        replace(PARAMS, temperature=0.5),
        replace(PARAMS, top_k=3),
        replace(PARAMS, top_p=0.7),
        replace(PARAMS, top_p=0.5, top_k=6, temperature=1.7),
        replace(PARAMS, repetition_penalty=1.8, temperature=0.9, top_k=10),
    ],
)
def test_the_distribution_is_that_of_transformers(params: SamplingParams) -> None:
    prompt = np.arange(10)
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    processors.append(TopPLogitsWarper(params.top_p))
    expected = processors(torch.from_numpy(prompt)[None], _logits()[None].clone())[0].softmax(-1)

    sampler = Sampler(replace(params, seed=1), prompt)
    draws = 20_000
    counts = Counter(sampler.draw(sampler.penalised(_logits())) for _ in range(draws))
    for token, probability in enumerate(expected.tolist()):
        if probability == 0:
            assert token not in counts
        tolerance = 5 * math.sqrt(probability * (1 - probability) / draws) + 1e-9
        assert counts[token] / draws == pytest.approx(probability, abs=tolerance)


def test_temperature_zero_is_greedy_and_tiny_temperatures_do_not_overflow() -> None:
    for temperature in (0.0, 1e-12):
        (choice,) = choose(_logits()[None], [Sampler(replace(PARAMS, temperature=temperature), np.zeros(1))])
        assert choice is not None
        assert choice.token_id == int(_logits().argmax())


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    def draws(others: int) -> list[int]:
        own = Sampler(replace(PARAMS, seed=5), np.zeros(1))
        tokens = []
        for step in range(20):
            rows = torch.stack([_logits(step)] + [_logits(100 + step)] * others)
            first = choose(rows, [own] + [Sampler(PARAMS, np.zeros(1)) for _ in range(others)])[0]
            assert first is not None
            tokens.append(first.token_id)
        return tokens

    assert draws(0) == draws(3)
    assert len(set(draws(0))) > 3


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    sampler = Sampler(replace(PARAMS, presence_penalty=0.5, frequency_penalty=0.25), np.array([7]))
    for token in (3, 3, 4):
        sampler.record(token)
    change = sampler.penalised(_logits()) - _logits()
    assert change[3].item() == pytest.approx(-1.0)
    assert change[4].item() == pytest.approx(-0.75)
    assert change[[0, 7]].tolist() == [0.0, 0.0]


def test_logprobs_are_of_the_raw_logits() -> None:
    params = replace(PARAMS, temperature=0.0, num_logprobs=2, repetition_penalty=5.0)
    (choice,) = choose(_logits()[None], [Sampler(params, np.arange(VOCABULARY))])
    assert choice is not None
    assert choice.logprob is not None
    expected = _logits().log_softmax(-1)
    assert choice.logprob.logprob == pytest.approx(float(expected[choice.token_id]))
    assert [token for token, _ in choice.logprob.alternatives] == expected.topk(2).indices.tolist()


def test_a_row_that_is_not_finite_is_reported_and_its_neighbours_are_not() -> None:
    rows = torch.stack([_logits(), torch.full((VOCABULARY,), float("nan")), _logits()])
    choices = choose(rows, [Sampler(PARAMS, np.zeros(1)) for _ in range(3)])
    assert choices[1] is None
    assert choices[0] is not None
    assert choices[2] is not None
