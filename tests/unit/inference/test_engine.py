"""The engine's promises: bounded, isolated, cancellable, alive or honestly dead."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from warren.data.model_inputs import tokenizer_from_json
from warren.data.sample import Turn
from warren.errors import ConfigError, ReleaseError
from warren.inference import (
    EngineBusyError,
    EngineClosedError,
    EngineOptions,
    GenerationFailedError,
    GenerationRequest,
    Prompt,
    RequestRefusedError,
    SamplingParams,
    TokenDelta,
    TransformersEngine,
    encode_request,
)
from warren.inference.engine_options import context_limit
from warren.inference.testing import png_bytes
from warren.inference.transformers_engine.offline import OfflineGenerator, completion_of, generate_all
from warren.inference.transformers_engine.scheduler import MAX_FAILURES_IN_A_ROW, Scheduler
from warren.models import load_bundle

OPTIONS = EngineOptions(num_slots=2, prefill_budget_tokens=32, max_waiting=2, image_cache_bytes=10_000)


@pytest.fixture(scope="module")
def shared(model_folder: Callable[[str], Path]) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(model_folder("qwen2"), OPTIONS)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: TransformersEngine) -> TransformersEngine:
    """An engine that has nothing to do, and outlives the test."""
    asyncio.run(_until(lambda: (shared.stats().num_running, shared.stats().num_waiting) == (0, 0)))
    return shared


@pytest.fixture
def batch(model_folder: Callable[[str], Path]) -> Scheduler:
    model, inputs, tokenizer_json = load_bundle(model_folder("qwen2"))
    return Scheduler(model, inputs, tokenizer_from_json(tokenizer_json), OPTIONS)


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
    before = engine.stats()

    async def main() -> None:
        requests = [_request(engine, "what " * n, new=3 + n) for n in range(4)]
        answers = await asyncio.gather(*(_all(engine.submit(request)) for request in requests))
        for number, deltas in enumerate(answers):
            completion = completion_of(deltas)
            assert len(completion.token_ids) == 3 + number
            assert completion.finish_reason == "length"

    asyncio.run(main())
    stats = engine.stats()
    assert stats.num_finished - before.num_finished == 4
    assert (stats.num_running, stats.num_waiting, stats.kv_used_tokens) == (0, 0, 0)
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
    before = engine.stats()

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
    assert engine.stats().num_cancelled - before.num_cancelled == 2
    assert engine.stats().num_generated_tokens - before.num_generated_tokens < 100


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


def _unreadable(engine: TransformersEngine) -> GenerationRequest:
    """A request whose image is too small for the model, which nobody noticed."""
    good = _request(engine)
    return GenerationRequest(good.prompt_ids, good.pixels[:, :, :16, :16], good.sampling)


def test_one_failing_request_leaves_the_others_alone(
    engine: TransformersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        alone = completion_of(await _all(engine.submit(_request(engine))))
        streams = [engine.submit(request) for request in (_unreadable(engine), _request(engine), _request(engine))]
        with pytest.raises(GenerationFailedError):
            await _all(streams[0])
        for stream in streams[1:]:
            assert completion_of(await _all(stream)) == alone

    before = engine.stats()
    asyncio.run(main())
    assert engine.is_alive
    assert engine.stats().num_failed - before.num_failed == 1
    records = [record for record in caplog.records if record.name == "warren.inference.transformers_engine.scheduler"]
    assert "Traceback" in records[0].getMessage(), "what the engine's process logs comes here"


def test_numbers_that_are_not_finite_fail_one_request_and_leave_no_trace(
    batch: Scheduler, engine: TransformersEngine
) -> None:
    good, bad = _request(engine), _request(engine, "nan")
    (alone,) = generate_all(batch, [good])
    features = batch._runner.features
    features._keep(bad.digests[0], torch.full((16, 64), float("nan")))
    with pytest.raises(GenerationFailedError):
        generate_all(batch, [bad])
    features._cache.clear()
    assert generate_all(batch, [good]) == [alone]


def test_an_engine_whose_model_is_broken_dies_and_says_so(model_folder: Callable[[str], Path]) -> None:
    engine = TransformersEngine(model_folder("qwen2"), OPTIONS)

    async def main() -> None:
        for _ in range(MAX_FAILURES_IN_A_ROW):
            with pytest.raises((GenerationFailedError, EngineClosedError)):
                await _all(engine.submit(_unreadable(engine)))
        await _until(lambda: not engine.is_alive)
        with pytest.raises(EngineClosedError):
            engine.submit(_request(engine))

    asyncio.run(main())
    engine.close()


def test_an_engine_whose_process_is_killed_fails_what_is_unfinished(model_folder: Callable[[str], Path]) -> None:
    engine = TransformersEngine(model_folder("qwen2"), OPTIONS)

    async def main() -> None:
        streams = [engine.submit(_request(engine, new=200)) for _ in range(4)]
        await anext(aiter(streams[0]))
        os.kill(engine.pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineClosedError):
                await asyncio.wait_for(_all(stream), 10)
        with pytest.raises(EngineClosedError):
            engine.submit(_request(engine))

    asyncio.run(main())
    assert not engine.is_alive
    engine.close()


def test_an_engine_does_not_outlive_who_started_it(model_folder: Callable[[str], Path]) -> None:
    starts = (
        "import os, pathlib, sys\n"
        "from warren.inference import EngineOptions, TransformersEngine\n"
        "print(TransformersEngine(pathlib.Path(sys.argv[1]), EngineOptions()).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", starts, str(model_folder("qwen2"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())  # not to its end: the engine would hold that open
    asyncio.run(_until(lambda: not _runs(pid)))


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_an_engine_that_ends_while_it_loads_says_so(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warren.inference.transformers_engine.process._ENTRY", "os:_exit")
    with pytest.raises(ReleaseError, match=r"ended with code \d+ while it loaded"):
        TransformersEngine(model_folder("qwen2"), OPTIONS)


def test_closing_fails_what_is_unfinished(model_folder: Callable[[str], Path]) -> None:
    engine = TransformersEngine(model_folder("qwen2"), OPTIONS)

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


def test_a_step_reads_what_its_budget_pays_and_an_image_is_not_free(model_folder: Callable[[str], Path]) -> None:
    """Whoever decodes waits for a step: it holds no more than so many tokens, or images that take as long."""
    model, inputs, tokenizer_json = load_bundle(model_folder("qwen2"))
    tokenizer = tokenizer_from_json(tokenizer_json)
    batch = Scheduler(model, inputs, tokenizer, EngineOptions(prefill_budget_tokens=40))
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
        images = after.image_cache_misses + after.image_cache_hits - before.image_cache_misses - before.image_cache_hits
        paid.append((after.num_prompt_tokens - before.num_prompt_tokens) + price * images)
    assert max(paid) <= 40
    assert sum(paid) / len(paid) > 30, "budgets are used"


def test_the_more_answers_run_the_less_is_read_beside_them() -> None:
    def readable(device: str, prefill: int = 512, step: int | None = None) -> list[int]:
        options = EngineOptions(prefill_budget_tokens=prefill, step_budget_tokens=step)
        return [options.readable_tokens(running, torch.device(device)) for running in (0, 1, 8, 16, 64)]

    assert readable("cpu", step=160) == readable("cuda", step=160) == [512, 158, 144, 128, 32]
    assert readable("cpu") == [512, 94, 80, 64, 16]
    assert readable("cuda") == [512] * 5
    assert readable("cpu", prefill=20, step=160) == [20] * 5


def test_an_answer_that_names_the_image_token_takes_nobodys_image(model_folder: Callable[[str], Path]) -> None:
    model, inputs, tokenizer_json = load_bundle(model_folder("qwen2"))
    tokenizer = tokenizer_from_json(tokenizer_json)
    batch = Scheduler(model, inputs, tokenizer, OPTIONS)
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


def test_features_are_kept_within_their_bytes(batch: Scheduler, engine: TransformersEngine) -> None:
    for color in (1, 2, 3, 3, 1):  # room for two images of 16 x 64 floats
        prompt = Prompt((Turn("user", "<image>\nwhat?"),), (png_bytes((color, 0, 0)),))
        request = encode_request(prompt, engine.inputs, engine.tokenizer, SamplingParams(max_new_tokens=1))
        generate_all(batch, [request])
    stats = batch.stats()
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
        TransformersEngine(model_folder("qwen2"), EngineOptions(max_context_tokens=257))
    with pytest.raises(ConfigError, match="max_kv_bytes"):
        TransformersEngine(model_folder("qwen2"), EngineOptions(max_kv_bytes=1000))


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
