"""The engine for GPU clusters: vLLM over the same release, behind the same protocol.

vLLM is an extra with an environment of its own (`pip install warren-vlm[vllm]`), imported when an engine is made. Text
and stop strings come from Warren's detokeniser, so that both engines give the same for the same tokens.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from warren.compat.vllm import delta_sampling, start_engine
from warren.data.model_inputs import TOKENIZER_FILE, Inputs, tokenizer_from_json
from warren.errors import ConfigError, ReleaseError
from warren.inference.detokenize import Detokenizer, detokenizer_of
from warren.inference.engine import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineStats,
    FinishReason,
    GenerationFailedError,
    GenerationRequest,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)
from warren.inference.limits import EngineOptions, check_request, context_limit
from warren.inference.streams import QueueStream
from warren.models import read_model_config
from warren.models.head import unsampled_ids

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 600.0
_CLOSE_TIMEOUT_S = 60.0
_LEAST_BIAS = -100.0  # the least that vLLM takes: e^-100 of a token's probability is left


class VllmEngine:
    """An `Engine` over vLLM's own, which lives on an event loop in a thread.

    Args:
        folder: A model folder that Warren wrote, in plain LLaVA layout.
        options: How much to hold; vLLM sizes its key/value memory itself.

    Raises:
        ConfigError: vLLM is not installed, or the options do not fit the model.
        ReleaseError: vLLM does not load the folder.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self.inputs = Inputs.load(folder)
        self.tokenizer = tokenizer_from_json((folder / TOKENIZER_FILE).read_text())
        config = read_model_config(folder)
        self.max_context_tokens = context_limit(config, options.max_context_tokens)
        image_token_id = self.inputs.tokens.image_token_id
        self._unsampled = unsampled_ids(self.tokenizer, config.text_config.vocab_size, image_token_id)
        self._eos_id = self.tokenizer.token_to_id(self.inputs.tokens.eos_token)
        self._options = options
        self._streams: dict[int, QueueStream] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._counts = dict.fromkeys(("prompt", "generated", "finished", "cancelled", "failed"), 0)
        self._last_key = 0
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="warren-vllm", daemon=True)
        self._thread.start()
        try:
            self._llm: Any = asyncio.run_coroutine_threadsafe(self._start(folder), self._loop).result(_START_TIMEOUT_S)
        except BaseException:
            self._stop_loop()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether vLLM runs and requests are taken."""
        return not self._closed and not self._llm.errored

    def submit(self, request: GenerationRequest) -> QueueStream:
        """Queue a request; see `Engine.submit`."""
        check_request(request, self.inputs.tokens, self.max_context_tokens)
        with self._lock:
            if not self.is_alive:
                raise EngineClosedError("the engine no longer runs")
            if len(self._streams) >= self._options.num_slots + self._options.max_waiting:
                raise EngineBusyError(f"{len(self._streams)} requests are running or waiting already")
            self._last_key += 1
            stream = self._streams[self._last_key] = QueueStream(self._last_key, self.cancel)
        self._loop.call_soon_threadsafe(self._begin, stream, request)
        return stream

    def cancel(self, key: int) -> None:
        """Free a request's slot; harmless after its end."""
        with self._lock:
            if self._streams.pop(key, None) is None:
                return
            self._counts["cancelled"] += 1
        self._loop.call_soon_threadsafe(self._end, key)

    def stats(self) -> EngineStats:
        """Return counts; those that only vLLM knows are 0."""
        with self._lock:
            num_open, counts = len(self._streams), dict(self._counts)
        values = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        values |= {f"num_{name}{'_tokens' * (name in ('prompt', 'generated'))}": n for name, n in counts.items()}
        values["num_running"] = min(num_open, self._options.num_slots)
        values["num_waiting"] = num_open - values["num_running"]
        return EngineStats(
            **values | {"num_slots": self._options.num_slots, "max_context_tokens": self.max_context_tokens}
        )

    def close(self) -> None:
        """Stop vLLM and fail what is unfinished."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(_CLOSE_TIMEOUT_S)
        self._stop_loop()

    async def _start(self, folder: Path) -> Any:
        on_gpu = torch.cuda.is_available()
        try:
            return start_engine(
                model=str(folder),
                max_model_len=self.max_context_tokens,
                max_num_seqs=self._options.num_slots,
                dtype="auto" if on_gpu else "float32",
                enforce_eager=not on_gpu,  # compiling takes minutes and gains little without a GPU
                disable_log_stats=True,
            )
        except ImportError as error:
            raise ConfigError(
                f"engine is 'vllm', which does not import here ({error}): pip install warren-vlm[vllm] into an "
                "environment of its own, or set engine to 'transformers'"
            ) from None
        except Exception as error:
            raise ReleaseError(f"{folder} does not load in vLLM: {error}") from error

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_CLOSE_TIMEOUT_S)

    async def _shut_down(self) -> None:
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            _hand_over(stream, EngineClosedError("the engine was closed"))
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._llm.shutdown()

    def _begin(self, stream: QueueStream, request: GenerationRequest) -> None:
        if stream.key in self._streams:  # not cancelled meanwhile
            self._tasks[stream.key] = asyncio.create_task(self._run(stream, request))

    def _end(self, key: int) -> None:
        if task := self._tasks.get(key):
            task.cancel()  # vLLM frees the request when its generator is left

    async def _run(self, stream: QueueStream, request: GenerationRequest) -> None:
        detokenizer = detokenizer_of(request, self.tokenizer)
        answer = _Answer(request.sampling, detokenizer, self._eos_id, frozenset(self._unsampled))
        self._counts["prompt"] += len(request.prompt_ids)
        try:
            sampling = _sampling(request.sampling, self._unsampled)
            outputs = self._llm.generate(self._prompt(request), sampling, str(stream.key))
            async for output in outputs:
                delta = answer.advance(output.outputs[0])
                self._counts["generated"] += len(delta.token_ids)
                if delta.finish_reason:
                    self._finish(stream, delta, "finished")
                    await outputs.aclose()
                    return
                _hand_over(stream, delta)
            self._finish(stream, GenerationFailedError("the answer has no end"), "failed")
        except Exception as error:
            logger.exception("a request failed in vLLM")
            dead = EngineClosedError("the engine died") if self._llm.errored else None
            self._finish(stream, dead or GenerationFailedError(f"the request failed: {type(error).__name__}"), "failed")
        finally:
            self._tasks.pop(stream.key, None)

    def _finish(self, stream: QueueStream, item: TokenDelta | EngineError, count: str) -> None:
        with self._lock:
            if self._streams.pop(stream.key, None) is None:
                return
            self._counts[count] += 1
        _hand_over(stream, item)

    def _prompt(self, request: GenerationRequest) -> dict[str, Any]:
        """Return vLLM's form: one image token per image, which it expands itself, and the images at model size."""
        ids = request.prompt_ids
        is_image = ids == self.inputs.tokens.image_token_id
        kept = ~is_image | (np.cumsum(is_image) % self.inputs.tokens.tokens_per_image == 1)
        if self.inputs.tokens.tokens_per_image == 1:
            kept = np.ones_like(is_image)
        prompt: dict[str, Any] = {"prompt_token_ids": ids[kept].tolist()}
        if len(request.pixels):
            images = [Image.fromarray(np.ascontiguousarray(each.transpose(1, 2, 0))) for each in request.pixels]
            prompt |= {"multi_modal_data": {"image": images}, "multi_modal_uuids": {"image": list(request.digests)}}
        return prompt


class _Answer:
    """The text of one answer as vLLM's token ids come."""

    def __init__(
        self, sampling: SamplingParams, detokenizer: Detokenizer, eos_id: int | None, unsampled: frozenset[int]
    ) -> None:
        self._sampling, self._detokenizer, self._eos_id, self._unsampled = sampling, detokenizer, eos_id, unsampled

    def advance(self, output: Any) -> TokenDelta:
        """Turn vLLM's next piece into a delta; a stop string may cut it."""
        text, taken = "", 0
        reason: FinishReason | None = {"stop": "stop", "length": "length"}.get(output.finish_reason)  # type: ignore[assignment]
        for token in output.token_ids:
            taken += 1
            if token != self._eos_id or self._sampling.ignore_eos:
                text += self._detokenizer.push(token)
            if self._detokenizer.is_stopped:
                reason = "stop"
                break
        if reason:
            text += self._detokenizer.flush()
            reason = "stop" if self._detokenizer.is_stopped else reason
        return TokenDelta(text, tuple(output.token_ids[:taken]), self._logprobs(output, taken), reason)

    def _logprobs(self, output: Any, count: int) -> tuple[TokenLogprob, ...]:
        most = self._sampling.num_logprobs
        if most is None or not output.logprobs:
            return ()
        logprobs = []
        for token, by_token in zip(output.token_ids[:count], output.logprobs[:count], strict=True):
            others = ((other, float(one.logprob)) for other, one in by_token.items() if other not in self._unsampled)
            ranked = sorted(others, key=lambda two: -two[1])
            logprobs.append(TokenLogprob(token, float(by_token[token].logprob), tuple(ranked[:most])))
        return tuple(logprobs)


def _sampling(params: SamplingParams, unsampled: Sequence[int]) -> Any:
    return delta_sampling(
        max_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_p=max(params.top_p, 1e-6),  # vLLM refuses 0, which keeps the likeliest token alone
        top_k=params.top_k,
        seed=params.seed,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logprobs=params.num_logprobs,
        ignore_eos=params.ignore_eos,
        logit_bias=dict.fromkeys(unsampled, _LEAST_BIAS),
    )


def _hand_over(stream: QueueStream, item: TokenDelta | EngineError) -> None:
    try:
        stream.loop.call_soon_threadsafe(stream.deliver, item)
    except RuntimeError:  # the reader's loop is closed: nobody reads any more
        logger.info("nobody reads request %d", stream.key)
