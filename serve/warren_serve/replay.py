"""An answer that one replica began and another one finishes, because the first one died.

The second replica answers the same request from the beginning. What the client has already is compared and left out,
so it must be the same: tokens are, if decoding is greedy or seeded and both replicas have the same release.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from warren.inference import TokenDelta
from warren_serve.backend import ResponseChunk


class OtherAnswerError(Exception):
    """The second replica's answer is not the one that was begun."""


@dataclass
class _Choice:
    """One choice of an answer, as far as it has come."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    is_over: bool = False

    def add(self, delta: TokenDelta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.is_over = self.is_over or delta.finish_reason is not None


class Delivered:
    """What a client has of an answer."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = defaultdict(_Choice)
        self._version: str | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the client has anything."""
        return self._version is not None

    def add(self, chunk: ResponseChunk) -> None:
        """Note a chunk that is passed on."""
        self._version = chunk.version
        for index, delta in chunk.deltas:
            self._choices[index].add(delta)

    def replay(self) -> "Replay":
        """Return what leaves this out of another replica's answer."""
        choices = {i: _Choice(one.text, list(one.token_ids), one.is_over) for i, one in self._choices.items()}
        return Replay(choices, self._version)


class Replay:
    """Takes an answer from its beginning and returns what is new; made by `Delivered.replay`.

    Args:
        before: What the client has, by the choice's index.
        version: The release that began the answer; None if none did.
    """

    def __init__(self, before: Mapping[int, _Choice], version: str | None) -> None:
        self._before, self._version = before, version
        self._seen: dict[int, _Choice] = defaultdict(_Choice)

    def rest(self, chunk: ResponseChunk) -> ResponseChunk | None:
        """Return what of a chunk is new; None if nothing is.

        Raises:
            OtherAnswerError: It is not the same answer.
        """
        if self._version is None:
            return chunk
        if chunk.version != self._version:
            raise OtherAnswerError(f"{chunk.version} answers, {self._version} began")
        deltas = [(index, rest) for index, delta in chunk.deltas if (rest := self._rest(index, delta)) is not None]
        return replace(chunk, deltas=tuple(deltas)) if deltas else None

    def _rest(self, index: int, delta: TokenDelta) -> TokenDelta | None:
        before, seen = self._before.get(index, _Choice()), self._seen[index]
        if before.is_over:
            return None
        seen.add(delta)
        num_before, num_seen = len(before.token_ids), len(seen.token_ids)
        if seen.token_ids[:num_before] != before.token_ids[:num_seen] or (seen.is_over and num_seen < num_before):
            raise OtherAnswerError(f"choice {index} has other tokens")
        if num_seen >= num_before and not seen.text.startswith(before.text):
            raise OtherAnswerError(f"choice {index} has another text")
        if num_seen < num_before or (num_seen == num_before and not seen.is_over):
            return None
        num_new = min(len(delta.token_ids), num_seen - num_before)
        new = slice(len(delta.token_ids) - num_new, None)
        text = seen.text[max(len(before.text), len(seen.text) - len(delta.text)) :]
        return replace(delta, text=text, token_ids=delta.token_ids[new], logprobs=delta.logprobs[new])
