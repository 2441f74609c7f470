"""An answer that one replica began and another one finishes, with the tokens and texts of a real model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from warren.data.model_inputs import tokenizer_from_json
from warren.data.sample import Turn
from warren.inference import EngineOptions, GenerationRequest, SamplingParams, TokenDelta, join_deltas
from warren.inference.testing import save_random_model
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import load_bundle
from warren_serve.backend import ResponseChunk
from warren_serve.replay import Delivered

NUM_TOKENS = 24
SAMPLINGS = (
    SamplingParams(NUM_TOKENS),
    SamplingParams(NUM_TOKENS, temperature=1.2, seed=7, num_logprobs=2),
    SamplingParams(NUM_TOKENS, stop=("e",)),
)


class Model:
    """A model that answers from a fresh scheduler each time, as another replica would."""

    def __init__(self, folder: Path) -> None:
        save_random_model(folder)
        torch.set_num_threads(1)
        self._model, self._inputs, text = load_bundle(folder)
        self._tokenizer = tokenizer_from_json(text)

    def answer(self, sampling: SamplingParams) -> list[TokenDelta]:
        scheduler = Scheduler(self._model, self._inputs, self._tokenizer, EngineOptions(num_slots=2))
        ids = self._inputs.encode_prompt((Turn("user", "what is there?"),), self._tokenizer, num_images=0)
        scheduler.add(0, GenerationRequest(ids, np.empty((0, 3, 32, 32), np.uint8), sampling))
        deltas = []
        while scheduler.has_work:
            deltas += [event for _, event in scheduler.step()]
        return deltas  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model") / "model")


def pieces(deltas: list[TokenDelta], size: int) -> list[ResponseChunk]:
    """Return an answer in chunks of so many steps, as the pace of two replicas differs."""
    joined = [join_deltas(deltas[start : start + size]) for start in range(0, len(deltas), size)]
    return [ResponseChunk(((0, delta),), 3, "v1") for delta in joined]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_client_gets_the_same_answer_wherever_the_first_replica_died(
    model: Model, sampling: SamplingParams
) -> None:
    first, second = model.answer(sampling), model.answer(sampling)
    whole = join_deltas(first)
    for num_before in range(len(first)):
        for size in (1, 2, 5):
            delivered = Delivered()
            before = pieces(first, 1)[:num_before]
            for chunk in before:
                delivered.add(chunk)
            replay = delivered.replay()
            rest = [part for chunk in pieces(second, size) if (part := replay.rest(chunk)) is not None]
            assert join_deltas([delta for chunk in (*before, *rest) for _, delta in chunk.deltas]) == whole
