"""What every engine promises, whatever computes the tokens. vLLM's runs where vLLM is installed.

There: `PYTHONPATH=platform $VLLM_PYTHON -m pytest -c /dev/null --rootdir . --noconftest FILE -k vllm`, with pytest,
pyarrow, boto3, peft and accelerate beside vLLM. In a container without its own cores, `OMP_NUM_THREADS=1
VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1` in front of it.
"""

import asyncio
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warren.data.sample import Turn
from warren.errors import ConfigError
from warren.inference import (
    Completion,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineOptions,
    GenerationRequest,
    Prompt,
    RequestRefusedError,
    SamplingParams,
    TransformersEngine,
    encode_request,
)
from warren.inference.testing import png_bytes, save_random_model
from warren.inference.transformers_engine.offline import completion_of
from warren.inference.vllm_engine.engine import VllmEngine

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed here: it has an environment of its own")
OPTIONS = EngineOptions(num_slots=2, max_waiting=2, max_context_tokens=200)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_random_model(folder, "llama", hidden_size=256)  # vLLM has no CPU kernel for heads below 32 dimensions
    return folder


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=needs_vllm)])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    engine = VllmEngine(folder, OPTIONS) if request.param == "vllm" else TransformersEngine(folder, OPTIONS)
    yield engine
    engine.close()
    with pytest.raises(EngineClosedError):
        asyncio.run(_ask(engine, _request(engine)))
    assert not engine.is_alive


def _request(engine: Any, words: str = "what?", new: int = 12, images: int = 1, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(max_new_tokens=new, **({"ignore_eos": True} | sampling))
    encoded = tuple(png_bytes((40 * number, 90, 200)) for number in range(images))
    prompt = Prompt((Turn("user", "<image>\n" * images + words),), encoded)
    return encode_request(prompt, engine.inputs, engine.tokenizer, params)


async def _ask(engine: Engine, request: GenerationRequest) -> Completion:
    return completion_of([delta async for delta in engine.submit(request)])


def test_answers_are_complete_and_the_same_in_company(engine: Any) -> None:
    async def main() -> None:
        requests = [_request(engine, "what " * number, 5 + number, images=number % 3) for number in range(4)]
        alone = [await _ask(engine, request) for request in requests]
        assert await asyncio.gather(*(_ask(engine, request) for request in requests)) == alone
        assert [len(answer.token_ids) for answer in alone] == [5, 6, 7, 8]
        assert {answer.finish_reason for answer in alone} == {"length"}
        assert all(answer.text for answer in alone)

    asyncio.run(main())
    assert engine.stats().num_running == 0


def test_one_too_many_is_refused_and_leaving_makes_room(engine: Any) -> None:
    async def main() -> None:
        streams = [engine.submit(_request(engine, new=100)) for _ in range(4)]
        with pytest.raises(EngineBusyError):
            engine.submit(_request(engine))
        for stream in streams:
            stream.abort()
            stream.abort()
            with pytest.raises(EngineClosedError):
                _ = [delta async for delta in stream]
        assert len((await _ask(engine, _request(engine))).token_ids) == 12

    before = engine.stats().num_cancelled
    asyncio.run(main())
    assert engine.stats().num_cancelled == before + 4


@pytest.mark.parametrize(("new", "pixels"), [(0, 1), (1000, 1), (4, 0), (4, 2)])
def test_what_can_never_run_is_refused_at_once(engine: Any, new: int, pixels: int) -> None:
    async def main() -> None:
        good = _request(engine)
        bad = GenerationRequest(
            good.prompt_ids, good.pixels[:1].repeat(pixels, 0), replace(good.sampling, max_new_tokens=new)
        )
        with pytest.raises(RequestRefusedError):
            engine.submit(bad)

    asyncio.run(main())


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: Any) -> None:
    async def main() -> None:
        whole = await _ask(engine, _request(engine, new=40))
        stop = whole.text[5:7]
        cut = await _ask(engine, _request(engine, new=40, stop=(stop,)))
        assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")

    asyncio.run(main())


def test_log_probabilities_are_those_of_the_likeliest(engine: Any) -> None:
    async def main() -> None:
        answer = await _ask(engine, _request(engine, num_logprobs=2))
        assert [one.token_id for one in answer.logprobs] == list(answer.token_ids)
        for one in answer.logprobs:
            assert one.alternatives[0] == (one.token_id, one.logprob)
            assert one.logprob <= 0
            assert len(one.alternatives) == 2

    asyncio.run(main())


def test_seeded_answers_repeat(engine: Any) -> None:
    async def main() -> None:
        requests = [_request(engine, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
        one, again, other = [await _ask(engine, request) for request in requests]
        assert one == again != other

    asyncio.run(main())


@needs_vllm
def test_both_engines_give_the_same_greedy_tokens(engine: Any, folder: Path) -> None:
    reference = TransformersEngine(folder, OPTIONS)

    async def main() -> None:
        for number in range(6):
            request = _request(engine, "what is there " * (1 + number), 16, images=number % 3)
            assert await _ask(engine, request) == await _ask(reference, request)

    asyncio.run(main())
    reference.close()


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_without_vllm_its_engine_says_what_to_install(folder: Path) -> None:
    with pytest.raises(ConfigError, match="pip install"):
        VllmEngine(folder, OPTIONS)
