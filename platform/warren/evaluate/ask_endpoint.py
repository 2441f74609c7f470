"""Asking an OpenAI-compatible endpoint the questions of a benchmark; the results are stored as those of a model are."""

import asyncio
import base64
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from warren import __version__
from warren.data.sample import IMAGE_MARK
from warren.errors import AccessDeniedError, BadSampleError, ConfigError, ServiceError
from warren.evaluate.answer_file import StoredAnswer
from warren.evaluate.answer_pieces import Outcome, PieceEffort, QuestionPiece
from warren.evaluate.ask_model import digest_of, failed, fixed, one_line
from warren.evaluate.benchmark_run import AskedModel, BenchmarkRun
from warren.evaluate.benchmarks import Question
from warren.evaluate.endpoint_client import (
    EndpointClient,
    EndpointOptions,
    FailureStreak,
    RequestFailedError,
    TransientRequestError,
)
from warren.storage import digest_bytes

_FORMATS = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"))
_CHANGING = ("created", "permission")  # fields of a model's description that say nothing about the model

OnAnswer = Callable[[int], object]


def find_model(options: EndpointOptions) -> AskedModel:
    """Return the model that an endpoint names; its description decides whether stored answers are of the same one.

    Raises:
        ConfigError: It has several models and none is named, or not this one.
        ServiceError: It does not answer.
    """
    return asyncio.run(_find_model(options))


async def _find_model(options: EndpointOptions) -> AskedModel:
    at_once = replace(options, away_s=0.0, busy_s=60.0, num_tries=2)  # who mistyped the URL need not wait to learn it
    async with EndpointClient(at_once) as client:
        try:
            models = await client.models()
        except ServiceError as error:
            if options.model is None or isinstance(error, TransientRequestError):
                raise
            models = [{"id": options.model}]  # an endpoint need not list its models
    names = [str(each["id"]) for each in models]
    if options.model is None and len(names) != 1:
        raise ConfigError(f"{options.url} has the models {', '.join(names) or '(none)'}: choose one with --model")
    chosen = [each for each in models if options.model in (None, each["id"])]
    if not chosen:
        raise ConfigError(f"{options.url} has no model {options.model!r}; it has {', '.join(names)}")
    about = {name: value for name, value in chosen[0].items() if name not in _CHANGING}
    # The same name at another URL may be another model. A Warren endpoint's description also has the release's version.
    digest = digest_bytes(json.dumps([options.base, about], sort_keys=True).encode())
    return AskedModel(str(chosen[0]["id"]), digest, {"warren": __version__})


def ask_at_endpoint(
    run: BenchmarkRun, options: EndpointOptions, progress: OnAnswer = lambda _: None
) -> tuple[int, int]:
    """Ask the questions of a run that no stored piece answers, and store each piece once it is answered.

    Returns:
        How many questions were asked now, and how many were answered before.

    Raises:
        ServiceError: The endpoint refuses every request, or has not answered for some time. What is stored stays.
    """
    return asyncio.run(_Asking(run, options, progress).ask())


class _Asking:
    def __init__(self, run: BenchmarkRun, options: EndpointOptions, progress: OnAnswer) -> None:
        self._run, self._options, self._progress = run, options, progress
        self._attempt = uuid.uuid4().hex[:8]
        self._failures, self._num_asked = FailureStreak(), 0

    async def ask(self) -> tuple[int, int]:
        left: Iterator[QuestionPiece] = self._run.remaining()
        num_left = 0
        # One more than fill the connections: its requests take the places that the last ones of a piece leave.
        at_once = 1 + math.ceil(self._options.concurrency / self._run.plan.questions_per_piece)
        async with EndpointClient(self._options) as client:
            running: set[asyncio.Task[None]] = set()
            try:
                while True:
                    for piece in islice(left, at_once - len(running)):
                        num_left += len(piece.questions)
                        running.add(asyncio.create_task(self._ask_piece(client, piece)))
                    if not running:
                        break
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for piece_task in done:
                        piece_task.result()
            finally:
                await _end_others()
        return self._num_asked, len(self._run.keys) - num_left

    async def _ask_piece(self, client: EndpointClient, piece: QuestionPiece) -> None:
        started = time.monotonic()
        # Every question waits for a place among the connections, so a whole piece may be started at once.
        outcomes = await asyncio.gather(*(self._ask_question(client, each) for each in piece.questions))
        num_asked = sum(each.num_asked for each in outcomes)
        effort = PieceEffort(num_asked, time.monotonic() - started, self._attempt)
        await asyncio.to_thread(self._run.pieces.write, piece, [each.outcome for each in outcomes], effort)
        self._num_asked += num_asked

    async def _ask_question(self, client: EndpointClient, question: Question) -> "_Asked":
        if question.fixed_answer is not None:
            return _Asked(fixed(question), 0)
        async with client.slots:
            try:
                images = await asyncio.to_thread(lambda: [source.read() for source in question.images])
            except (BadSampleError, AccessDeniedError) as error:
                return _Asked(failed(question, one_line(error)), 0)
            digest = digest_of([digest_bytes(image) for image in images])
            started = time.monotonic()
            try:
                answer = await client.chat(self._body(question, images))
                seconds = time.monotonic() - started
                stored = StoredAnswer(question.key, question.text, answer.text.strip(), answer.num_tokens, seconds)
                outcome = Outcome(stored, digest)
            except RequestFailedError as error:
                outcome = failed(question, one_line(error), digest, error.is_transient)
        self._failures.count(outcome.is_transient, outcome.answer.error)
        self._progress(1)
        return _Asked(outcome, 1)

    def _body(self, question: Question, images: list[bytes]) -> dict[str, Any]:
        return {
            "model": self._run.plan.model,
            "messages": [{"role": "user", "content": content_parts(question.prompt, images)}],
            "max_tokens": self._run.plan.max_new_tokens,
            "temperature": 0,
        }


async def _end_others() -> None:
    """Cancel the requests that are left when a run ends early."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@dataclass(frozen=True)
class _Asked:
    outcome: Outcome
    num_asked: int


def content_parts(prompt: str, images: list[bytes]) -> list[dict[str, Any]]:
    """Return a prompt with image marks as OpenAI's content parts; images keep their bytes, as data URIs.

    Args:
        prompt: With one mark for each image. The newlines around a mark stand for the border between two parts.
        images: Encoded, in the order of their marks.
    """
    texts = prompt.split(IMAGE_MARK)
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        shown = text.removeprefix("\n") if number else text
        shown = shown.removesuffix("\n") if number < len(images) else shown
        if shown:
            parts.append({"type": "text", "text": shown})
        if number < len(images):
            parts.append({"type": "image_url", "image_url": {"url": data_uri(images[number])}})
    return parts


def data_uri(image: bytes) -> str:
    """Return an encoded image as a data URI with its type, by its first bytes."""
    kind = next((kind for magic, kind in _FORMATS if image.startswith(magic)), None)
    if kind is None and image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "webp"
    media_type = f"image/{kind}" if kind else "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
