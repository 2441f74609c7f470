"""The engine's promises: bounded, isolated, cancellable, alive or honestly dead."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from warren.data.inputs import tokenizer_from_json
from warren.data.sample import Turn
from warren.errors import ConfigError
from warren.inference import (
    Batch,
    EngineBusyError,
    EngineClosedError,
    EngineOptions,
    GenerationFailedError,
    GenerationRequest,
    OfflineGenerator,
    Prompt,
    RequestRefusedError,
    SamplingParams,
    TokenDelta,
    TransformersEngine,
    completion_of,
    encode_request,
    generate_all,
)
from warren.inference.limits import context_limit
from warren.inference.testing import png_bytes
from warren.models import load_bundle

OPTIONS = EngineOptions(num_slots=2, prefill_budget_tokens=32, max_waiting=2, image_cache_bytes=10_000)


@pytest.fixture
def engine(model_folder: Callable[[str], Path]) -> Iterator[TransformersEngine]:
    engine = TransformersEngine.load(model_folder("qwen2"), OPTIONS)
    yield engine
    engine.close()


def _request(engine: TransformersEngine, words: str = "what?", new: int = 8, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(max_new_tokens=new, **({"ignore_eos": True} | sampling))
    prompt = Prompt((Turn("user", f"<image>\n{words}"),), (png_bytes(),))
    return encode_request(prompt, engine.inputs, engine.tokenizer, params)


async def _all(stream: Any) -> list[TokenDelta]:
    return [delta async for delta in stream]


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_more_requests_than_slots_all_end(engine: TransformersEngine) -> None:
    async def main() -> None:
        requests = [_request(engine, "what " * n, new=3 + n) for n in range(4)]
        answers = await asyncio.gather(*(_all(engine.submit(request)) for request in requests))
        for number, deltas in enumerate(answers):
            completion = completion_of(deltas)
            assert len(completion.token_ids) == 3 + number
            assert completion.finish_reason == "length"

    asyncio.run(main())
    stats = engine.stats()
    assert (stats.num_finished, stats.num_running, stats.num_waiting, stats.kv_used_tokens) == (4, 0, 0, 0)
    assert stats.kv_bytes == 2 * 2 * 2 * 2 * 256 * 16 * 4  # K and V, layers, slots, heads, capacity, dimension


def test_one_too_many_is_refused_and_nothing_is_queued(engine: TransformersEngine) -> None:
    async def main() -> None:
        streams = [engine.submit(_request(engine, new=100)) for _ in range(4)]
        with pytest.raises(EngineBusyError):
            engine.submit(_request(engine))
        for stream in streams:
            stream.abort()
        assert len(await _all(engine.submit(_request(engine)))) == 8

    asyncio.run(main())


def test_abort_frees_the_slot_for_the_next(engine: TransformersEngine) -> None:
    async def main() -> None:
        hogs = [engine.submit(_request(engine, new=200)) for _ in range(2)]
        await anext(aiter(hogs[0]))
        waiting = asyncio.create_task(_all(engine.submit(_request(engine, new=2))))
        for hog in hogs:
            hog.abort()
            hog.abort()
        assert len(await asyncio.wait_for(waiting, 10)) == 2
        await _until(lambda: engine.stats().num_running == 0)

    asyncio.run(main())
    assert engine.stats().num_cancelled == 2
    assert engine.stats().num_generated_tokens < 100


def test_reading_an_aborted_stream_ends_with_an_error(engine: TransformersEngine) -> None:
    async def main() -> None:
        stream = engine.submit(_request(engine, new=200))
        stream.abort()
        with pytest.raises(EngineClosedError):
            await _all(stream)

    asyncio.run(main())


@pytest.mark.parametrize(("new", "pixels"), [(0, 1), (1000, 1), (4, 0), (4, 2)])
def test_what_can_never_run_is_refused_at_once(engine: TransformersEngine, new: int, pixels: int) -> None:
    async def main() -> None:
        good = _request(engine)
        images = good.pixels[:1].repeat(pixels, axis=0)
        bad = GenerationRequest(good.prompt_ids, images, replace(good.sampling, max_new_tokens=new))
        with pytest.raises(RequestRefusedError):
            engine.submit(bad)

    asyncio.run(main())


def test_one_failing_request_leaves_the_others_alone(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = engine._batch._runner.features
    compute = features._compute
    poison = 66

    def fail(pictures: list[Any]) -> Any:
        if any((picture == poison).all() for picture in pictures):
            raise RuntimeError("boom")
        return compute(pictures)

    monkeypatch.setattr(features, "_compute", fail)

    async def main() -> None:
        alone = completion_of(await _all(engine.submit(_request(engine))))
        bad = _request(engine)
        bad = GenerationRequest(bad.prompt_ids, bad.pixels * 0 + poison, bad.sampling)
        streams = [engine.submit(request) for request in (bad, _request(engine), _request(engine))]
        with pytest.raises(GenerationFailedError):
            await _all(streams[0])
        for stream in streams[1:]:
            assert completion_of(await _all(stream)) == alone

    asyncio.run(main())
    assert engine.is_alive
    assert engine.stats().num_failed == 1


def test_numbers_that_are_not_finite_fail_one_request_and_leave_no_trace(engine: TransformersEngine) -> None:
    async def main() -> None:
        alone = completion_of(await _all(engine.submit(_request(engine))))
        bad = _request(engine, "nan")
        engine._batch._runner.features._keep(bad.digests[0], torch.full((16, 64), float("nan")))
        with pytest.raises(GenerationFailedError):
            await _all(engine.submit(bad))
        engine._batch._runner.features._cache.clear()
        assert completion_of(await _all(engine.submit(_request(engine)))) == alone

    asyncio.run(main())


def test_an_engine_whose_model_is_broken_dies_and_says_so(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: Any) -> Any:
        raise RuntimeError("no device")

    monkeypatch.setattr(engine._batch._runner, "_forward", boom)

    async def main() -> None:
        for _ in range(8):
            if not engine.is_alive:
                break
            with pytest.raises((GenerationFailedError, EngineClosedError)):
                await _all(engine.submit(_request(engine)))
        await _until(lambda: not engine.is_alive)
        with pytest.raises(EngineClosedError):
            engine.submit(_request(engine))

    asyncio.run(main())


def test_closing_fails_what_is_unfinished(engine: TransformersEngine) -> None:
    async def main() -> None:
        stream = engine.submit(_request(engine, new=200))
        await anext(aiter(stream))
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineClosedError):
            await _all(stream)

    asyncio.run(main())
    engine.close()


def test_a_long_prompt_does_not_stall_running_answers(engine: TransformersEngine) -> None:
    """A prompt of seven budgets is read in seven steps; the running answer gets a token in each."""

    async def main() -> None:
        running = engine.submit(_request(engine, new=200))
        await anext(aiter(running))
        before = engine.stats().num_generated_tokens
        long = engine.submit(_request(engine, "what " * 200, new=1))
        await anext(aiter(long))
        assert engine.stats().num_generated_tokens - before >= 7
        running.abort()

    asyncio.run(main())


def test_a_step_reads_what_its_budget_pays_and_a_picture_is_not_free(model_folder: Callable[[str], Path]) -> None:
    """Whoever decodes waits for a step: it holds no more than so many tokens, or pictures that take as long."""
    model, inputs, tokenizer_json = load_bundle(model_folder("qwen2"))
    tokenizer = tokenizer_from_json(tokenizer_json)
    batch = Batch(model, inputs, tokenizer, EngineOptions(prefill_budget_tokens=40))
    price, per_image = batch._runner._image_cost, inputs.tokens.tokens_per_image
    assert 0 < price < 40 - per_image
    sampling = SamplingParams(max_new_tokens=1)
    for key in range(3):
        prompt = Prompt((Turn("user", "<image>\n<image>\n" + "what " * 30),), (png_bytes((key, 0, 0)), png_bytes()))
        batch.add(key, encode_request(prompt, inputs, tokenizer, sampling))
    paid = []
    while batch.has_work:
        before = batch.stats()
        batch.step()
        after = batch.stats()
        pictures = (
            after.image_cache_misses + after.image_cache_hits - before.image_cache_misses - before.image_cache_hits
        )
        paid.append((after.num_prompt_tokens - before.num_prompt_tokens) + price * pictures)
    assert max(paid) <= 40
    assert sum(paid) / len(paid) > 30, "budgets are used"


def test_the_more_answers_run_the_less_is_read_beside_them() -> None:
    def readable(device: str, prefill: int = 512, step: int | None = None) -> list[int]:
        options = EngineOptions(prefill_budget_tokens=prefill, step_budget_tokens=step)
        return [options.readable_tokens(running, torch.device(device)) for running in (0, 1, 8, 16, 64)]

    assert readable("cpu", step=128) == readable("cuda", step=128) == [512, 127, 120, 112, 64]
    assert readable("cpu") == [512, 47, 40, 32, 16]
    assert readable("cuda") == [512] * 5
    assert readable("cpu", prefill=20, step=128) == [20] * 5


def test_an_answer_that_names_the_image_token_takes_nobodys_picture(model_folder: Callable[[str], Path]) -> None:
    model, inputs, tokenizer_json = load_bundle(model_folder("qwen2"))
    tokenizer = tokenizer_from_json(tokenizer_json)
    batch = Batch(model, inputs, tokenizer, OPTIONS)
    sampling = SamplingParams(max_new_tokens=6, ignore_eos=True)
    words = encode_request(Prompt((Turn("user", "what?"),)), inputs, tokenizer, replace(sampling, max_new_tokens=60))
    asked = encode_request(Prompt((Turn("user", "<image>\nwhat?"),), (png_bytes(),)), inputs, tokenizer, sampling)
    (alone,) = generate_all(batch, [asked])
    batch.add(0, words)
    batch.step()
    batch.add(1, asked)
    tokens: list[int] = []
    while len(tokens) < 6:
        batch._rows[0].next_token = inputs.tokens.image_token_id
        tokens += [token for key, delta in batch.step() if key == 1 for token in delta.token_ids]  # type: ignore[union-attr]
    assert tuple(tokens) == alone.token_ids


def test_features_are_kept_within_their_bytes(engine: TransformersEngine) -> None:
    async def ask(color: int) -> None:
        prompt = Prompt((Turn("user", "<image>\nwhat?"),), (png_bytes((color, 0, 0)),))
        params = SamplingParams(max_new_tokens=1)
        await _all(engine.submit(encode_request(prompt, engine.inputs, engine.tokenizer, params)))

    async def main() -> None:
        for color in (1, 2, 3, 3, 1):  # room for two pictures of 16 x 64 floats
            await ask(color)

    asyncio.run(main())
    stats = engine.stats()
    assert (stats.image_cache_hits, stats.image_cache_misses) == (1, 4)
    assert 0 < stats.image_cache_bytes <= OPTIONS.image_cache_bytes


def test_stop_strings_and_end_of_sequence_end_an_answer(engine: TransformersEngine) -> None:
    async def main() -> None:
        whole = completion_of(await _all(engine.submit(_request(engine, new=40))))
        stop = whole.text[5:7]
        cut = completion_of(await _all(engine.submit(_request(engine, new=40, stop=(stop,)))))
        assert cut.finish_reason == "stop"
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert len(cut.token_ids) < 40

    asyncio.run(main())


def test_options_that_do_not_fit_the_model_are_refused(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="at most 256"):
        TransformersEngine.load(model_folder("qwen2"), EngineOptions(max_context_tokens=257))
    with pytest.raises(ConfigError, match="max_kv_bytes"):
        TransformersEngine.load(model_folder("qwen2"), EngineOptions(max_kv_bytes=1000))


def test_a_sliding_window_bounds_the_context(model_folder: Callable[[str], Path]) -> None:
    model, _, _ = load_bundle(model_folder("phi3"))
    model.config.text_config.sliding_window = 100
    assert context_limit(model.config, None) == 100


def test_offline_answers_do_not_depend_on_the_batch(model_folder: Callable[[str], Path]) -> None:
    generator = OfflineGenerator(model_folder("llama"), 1)
    prompts = [
        Prompt((Turn("user", "<image>\nwhat " + "blue " * (n % 7)),), (png_bytes((n, 9, 9)),)) for n in range(70)
    ]
    together = generator.generate(prompts, 5)
    assert together[3:6] == [generator.generate([prompt], 5)[0] for prompt in prompts[3:6]]
    assert generator.generate([], 5) == []
    assert len(set(together)) > 3
