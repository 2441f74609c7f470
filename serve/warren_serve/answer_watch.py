"""What is measured of one answer on its way to the client, because a candidate is judged by what clients see."""

import time
from collections.abc import Callable

from warren.rollout.answer_checks import is_repetitive
from warren.rollout.languages import is_other_language
from warren.rollout.traffic_analysis import AnswerRecord
from warren_serve.backend import ResponseChunk
from warren_serve.protocol import ChatRequest, CompletionRequest, GenerationFields, TextPart, UserMessage


class AnswerWatch:
    """Measures one answer.

    Args:
        version: The release that is asked.
        request: The question. The times of answers that are not streamed are left out, as they depend on the length.
        clock: Monotonic seconds.
    """

    def __init__(self, version: str, request: GenerationFields, clock: Callable[[], float] = time.perf_counter) -> None:
        self._version, self._request, self._clock = version, request, clock
        self._begin_s = clock()
        self._first_s: float | None = None
        self._last_s = self._begin_s
        self._num_first = self._num_tokens = 0
        self._texts: list[str] = []
        self._is_resumed = False

    @property
    def elapsed_s(self) -> float:
        """Time since the request was passed on."""
        return self._clock() - self._begin_s

    def saw(self, chunk: ResponseChunk) -> None:
        """Note a chunk."""
        num_new = sum(len(delta.token_ids) for _, delta in chunk.deltas)
        self._version = chunk.version
        self._is_resumed |= chunk.num_lost_replicas > 0
        self._num_tokens += num_new
        self._texts += [delta.text for index, delta in chunk.deltas if index == 0]
        if num_new:
            self._last_s = self._clock()
            if self._first_s is None:
                self._first_s, self._num_first = self._last_s, num_new

    def record(self, is_failed: bool = False) -> AnswerRecord:
        """Return what was measured. A resumed answer has no times: they are those of the replica that died."""
        text = "".join(self._texts)
        first_s = gap_s = speed = None
        if self._request.stream and self._first_s is not None and not self._is_resumed:
            first_s = self._first_s - self._begin_s
            num_later, later_s = self._num_tokens - self._num_first, self._last_s - self._first_s
            if num_later and later_s > 0:
                gap_s = later_s / num_later
                speed = self._num_tokens / (self._last_s - self._begin_s)
        return AnswerRecord(
            self._version,
            is_failed=is_failed,
            first_token_s=first_s,
            gap_s=gap_s,
            tokens_per_s=speed,
            num_chars=len(text),
            is_empty=not is_failed and not text.strip(),
            is_repetitive=is_repetitive(text),
            is_foreign=is_other_language(_question(self._request), text),
            is_resumed=self._is_resumed,
        )


def _question(request: GenerationFields) -> str:
    """Return the text that an answer answers."""
    if isinstance(request, CompletionRequest):
        return request.prompt
    if not isinstance(request, ChatRequest):
        return ""
    content = next((one.content for one in reversed(request.messages) if isinstance(one, UserMessage)), "")
    return content if isinstance(content, str) else " ".join(p.text for p in content if isinstance(p, TextPart))
