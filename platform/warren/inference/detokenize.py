"""Token ids to text as they come: no broken characters, nothing behind a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one growing answer.

    A token may end inside a character, and decoding a token alone may lose a space in front of it. So a
    window of tokens from before the unfinished ones is decoded, and text is released once it cannot change.
    White space in front of the answer is dropped: the template puts it back in the next turn.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window_start = 0  # decoding starts here
        self._released_ids = 0  # text of ids before this is released
        self._held = ""  # may be the beginning of a stop string
        self._started = False
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the text it releases; sets `is_stopped` when a stop string is complete."""
        self._ids.append(token_id)
        before = self._decode(self._window_start, self._released_ids)
        after = self._decode(self._window_start, len(self._ids))
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return ""
        self._window_start, self._released_ids = self._released_ids, len(self._ids)
        return self._release(after[len(before) :])

    def flush(self) -> str:
        """Return what was held back; an unfinished character at the end is dropped."""
        if self.is_stopped:
            return ""
        before = self._decode(self._window_start, self._released_ids)
        after = self._decode(self._window_start, len(self._ids))
        text = self._release(after[len(before) :].rstrip(_REPLACEMENT))
        held, self._held = self._held, ""
        return text if self.is_stopped else text + held

    def _decode(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(self._ids[start:stop], skip_special_tokens=True) if stop > start else ""

    def _release(self, text: str) -> str:
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        text = self._held + text
        cuts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            self.is_stopped, self._held = True, ""
            return text[: min(cuts)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
