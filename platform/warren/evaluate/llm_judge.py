"""Scores by a judge model: it is asked about each answer once, and what it writes is kept in storage."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from warren.errors import NotFoundError
from warren.evaluate.benchmarks.benchmark import Answers, JudgedConvention, JudgeRequest, Scores
from warren.evaluate.endpoint_client import EndpointClient, EndpointOptions, FailureStreak, RequestFailedError
from warren.storage import Location, digest_bytes

_MAX_READINGS = 3  # a judgement that cannot be read is asked for again
_SHOWN_CHARS = 80


@dataclass
class Judgements:
    """The judgements of a benchmark's answers.

    Attributes:
        texts: What the judge wrote, by question.
        values: What that says, as the convention reads it.
        failures: Why a question has no judgement. Such a question is neither right nor wrong.
        counts: Judgements that were `asked` for and those that were `cached`.
    """

    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


class JudgementCache:
    """Judgements in a folder of storage, one file for each model and request."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def find(self, model: str, request: JudgeRequest) -> str | None:
        """Return what the judge wrote, None where it was not asked or the file is damaged."""
        try:
            value = self._at(model, request).read_json()
        except (NotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        text = value.get("text") if isinstance(value, dict) else None
        return text if isinstance(text, str) else None

    def keep(self, model: str, request: JudgeRequest, text: str) -> None:
        """Keep what the judge wrote."""
        self._at(model, request).put_json({"request": request.body(model), "text": text})

    def _at(self, model: str, request: JudgeRequest) -> Location:
        # The whole request is the key, so other prompts or another model never find this judgement.
        canonical = json.dumps(request.body(model), sort_keys=True, separators=(",", ":"))
        return self._folder / f"{digest_bytes(canonical.encode())}.json"


@dataclass(frozen=True)
class AnswerJudge:
    """A judge model, and where its judgements are kept.

    Attributes:
        endpoint: Where it is; it names the model.
    """

    endpoint: EndpointOptions
    cache: JudgementCache

    @property
    def model(self) -> str:
        """The name that requests give."""
        return self.endpoint.model or ""


def judge_answers(requests: Sequence[JudgeRequest], convention: JudgedConvention, judge: AnswerJudge) -> Judgements:
    """Get a judgement of every answer, from the cache or from the judge.

    Raises:
        ServiceError: The judge refuses every request. What it wrote before is kept.
    """
    try:
        return asyncio.run(_judge_all(requests, convention, judge))
    except ExceptionGroup as group:  # of the tasks; the first one that failed ended the others
        raise group.exceptions[0] from None


async def _judge_all(requests: Iterable[JudgeRequest], convention: JudgedConvention, judge: AnswerJudge) -> Judgements:
    judgements, failures = Judgements(), FailureStreak()
    async with EndpointClient(judge.endpoint) as client, asyncio.TaskGroup() as tasks:
        for request in requests:
            tasks.create_task(_judge_one(request, convention, judge, client, judgements, failures))
    return judgements


async def _judge_one(
    request: JudgeRequest,
    convention: JudgedConvention,
    judge: AnswerJudge,
    client: EndpointClient,
    judgements: Judgements,
    failures: FailureStreak,
) -> None:
    text = await asyncio.to_thread(judge.cache.find, judge.model, request)
    value = None if text is None else convention.read(text)
    if value is not None:
        judgements.counts["cached"] += 1
    for _ in range(0 if value is not None else _MAX_READINGS):
        judgements.counts["asked"] += 1
        try:
            async with client.slots:
                text = (await client.chat(request.body(judge.model))).text
        except RequestFailedError as error:
            judgements.failures[request.key] = f"no judgement: {error}"
            failures.count(error.is_transient, str(error))
            return
        # The endpoint answered, so it is not down, whether or not the judgement can be read.
        failures.count(False, None)
        value = convention.read(text)
        if value is not None:
            await asyncio.to_thread(judge.cache.keep, judge.model, request, text)
            break
    if text is None or value is None:
        judgements.failures[request.key] = f"the judgement cannot be read: {(text or '')[:_SHOWN_CHARS]!r}"
    else:
        judgements.texts[request.key], judgements.values[request.key] = text, value


def score_with_judge(
    convention: JudgedConvention, answers: Answers, reference: Location, judge: AnswerJudge
) -> tuple[Scores, dict[str, Any]]:
    """Judge answers and score them. Answers without a judgement are left out, as failed requests are.

    Returns:
        The scores, and what a report says of the judge: enough to ask the same again.

    Raises:
        DataError: Answers and reference do not belong together.
        ServiceError: The judge refuses every request.
    """
    requests = convention.requests(answers, reference)
    prompts = dict(convention.prompts(reference))
    judgements = judge_answers(requests, convention, judge)
    scored = Answers(answer for answer in answers if answer.key in judgements.values)
    scored.failed = answers.failed | frozenset(judgements.failures)
    judged = {key: judgements.values[key] for key in (one.key for one in requests) if key in judgements.values}
    scores = convention.score(scored, reference, judged)
    per_question = {
        key: {**row, "judgement": judgements.texts[key]} if key in judgements.texts else row
        for key, row in scores.per_question.items()
    }
    return replace(scores, per_question=per_question), {
        "model": judge.model,
        "url": judge.endpoint.url,
        "prompts": prompts,
        "prompts_digest": digest_bytes(json.dumps(prompts, sort_keys=True).encode()),
        "num_asked": judgements.counts["asked"],
        "num_cached": judgements.counts["cached"],
        "failed": dict(sorted(judgements.failures.items())),
    }
