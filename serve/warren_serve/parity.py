"""The parity certificate at the endpoint's two sides: golden cases go the way of a client's request.

The ingress has no weights. It reads each case from the JSON of an HTTP body and compares ids and images. An engine
replica takes the `EngineRequest` that the ingress would send, and compares pixels, ids, log-probabilities and tokens.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from warren.data.golden_cases import GoldenCase, GoldenCases
from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import ReleaseError
from warren.inference import Completion, Engine, EngineError, GenerationRequest, join_deltas
from warren.inference.parity import (
    ParityReport,
    cases_within,
    check_answer,
    check_prompt,
    check_request,
    check_vocabulary,
    logprob_bound,
    sampling_of,
)
from warren_serve.backend import EngineRequest, LocalBackend
from warren_serve.errors import ApiError
from warren_serve.prompt import PromptBuilder, detach_images
from warren_serve.protocol import ChatRequest, parse_chat_request
from warren_serve.settings import ServeSettings

logger = logging.getLogger(__name__)


def read_cases(folder: Path, settings: ServeSettings) -> GoldenCases | None:
    """Read the golden cases of a fetched release; None, and a warning, if it was published without any.

    Raises:
        ReleaseError: They cannot be read, or there are none although the settings require them.
    """
    golden = GoldenCases.load(folder)
    if golden is None:
        _note_unchecked(settings, "it was published without golden cases")
    return golden


def check_ingress(golden: GoldenCases, prompts: PromptBuilder, inputs: Inputs, tokenizer: Tokenizer) -> None:
    """Compare the prompts that this side makes of the golden cases.

    Raises:
        ReleaseError: One differs.
    """
    check_vocabulary(golden, inputs, tokenizer)
    for case in cases_within(golden, prompts.max_context_tokens):
        try:
            prompt = prompts.prepare(_chat_request(case))
            images = prompts.read_images(prompt.images)
        except ApiError as error:
            raise _refused(case, error) from None
        check_prompt(case, prompt.prompt_ids)
        if images != case.images:
            raise ReleaseError(f"golden case {case.name!r}: its images do not arrive as they were sent")


def check_engine(golden: GoldenCases, backend: LocalBackend, settings: ServeSettings) -> ParityReport:
    """Let an engine answer the golden cases, as many at a time as it has slots, and compare everything.

    It blocks until the last case is answered.

    Args:
        golden: The release's cases.
        backend: It takes no other requests yet.
        settings: They say what the engine runs on, and so how far log-probabilities may differ.

    Raises:
        ReleaseError: Something differs, or the model fails.
    """
    began = time.monotonic()
    bound = logprob_bound(golden, settings.engine, on_gpu=settings.num_gpus > 0)
    engine = backend.engine
    check_vocabulary(golden, engine.inputs, engine.tokenizer)
    cases = cases_within(golden, engine.max_context_tokens)
    requests = [(case, _prepared(case, backend)) for case in cases]
    with ThreadPoolExecutor(1) as thread:  # because the caller may be on an event loop
        answers = thread.submit(asyncio.run, _answers(engine, requests, settings.num_slots)).result()
    differences = [
        check_answer(case, answer, golden.eos_token_id, bound) for case, answer in zip(cases, answers, strict=True)
    ]
    if not cases:
        _note_unchecked(settings, f"none of its golden cases fits a context of {engine.max_context_tokens} tokens")
    report = ParityReport(len(cases), len(golden.cases) - len(cases), max(differences, default=0.0))
    logger.info(
        "%d golden cases passed in %.2f s (%d too long for this context); log-probabilities differ by %.1g at most",
        report.num_cases,
        time.monotonic() - began,
        report.num_left_out,
        report.largest_difference,
    )
    return report


def _prepared(case: GoldenCase, backend: LocalBackend) -> GenerationRequest:
    """Return what an engine replica makes of a case, after its pixels and ids were compared."""
    try:
        request = backend.prepare(EngineRequest(detach_images(_chat_request(case)), case.images))
    except ApiError as error:
        raise _refused(case, error) from None
    check_request(case, request, backend.engine.inputs)
    return replace(request, sampling=sampling_of(case))


async def _answers(
    engine: Engine, requests: Sequence[tuple[GoldenCase, GenerationRequest]], num_at_once: int
) -> list[Completion]:
    free = asyncio.Semaphore(num_at_once)

    async def answer(case: GoldenCase, request: GenerationRequest) -> Completion:
        try:
            async with free:
                whole = join_deltas([delta async for delta in engine.submit(request)])
        except EngineError as error:
            raise ReleaseError(f"golden case {case.name!r}: the release does not generate: {error}") from None
        return Completion(whole.text, whole.token_ids, whole.finish_reason or "length", whole.logprobs)

    return await asyncio.gather(*(answer(case, request) for case, request in requests))


def _chat_request(case: GoldenCase) -> ChatRequest:
    """Return a case as the endpoint reads it from the body of an HTTP request."""
    messages, num_sent = [], 0
    for turn in case.turns:
        num_images = turn.text.count(IMAGE_MARK)
        messages.append(_message(turn, case.images[num_sent : num_sent + num_images]))
        num_sent += num_images
    body = {"model": "golden", "messages": messages, "temperature": 0}
    return parse_chat_request(json.dumps(body, ensure_ascii=False).encode())


def _message(turn: Turn, images: tuple[bytes, ...]) -> dict[str, Any]:
    """Return a turn as a message. Its images stand in front of its text, each with a newline behind it."""
    if not images:
        return {"role": turn.role, "content": turn.text}
    uris = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    text = turn.text.removeprefix(f"{IMAGE_MARK}\n" * len(images))
    return {"role": turn.role, "content": [*parts, {"type": "text", "text": text}]}


def _note_unchecked(settings: ServeSettings, reason: str) -> None:
    if settings.require_parity:
        raise ReleaseError(
            f"{settings.release} cannot be checked, {reason}, and require_parity is true: release the checkpoint "
            "with jobs/release.py, allow a longer context, or set require_parity to false"
        )
    logger.warning("%s is served unchecked: %s", settings.release, reason)


def _refused(case: GoldenCase, error: ApiError) -> ReleaseError:
    return ReleaseError(f"golden case {case.name!r}: the endpoint refuses its question: {error}")
