"""Incremental detokenizer: token ids to text, without broken characters or text behind a stop string.

`tokenizers.decoders.DecodeStream` (0.23) does the same for most tokens, but cannot replace it. It raises when a byte
turns a released character into an invalid sequence (`C3 A9 80` with byte fallback), and at every token after that, so
one sampled byte would end an answer. It returns the prompt's text where the prompt ends inside a character. It has no
way to return the text that it holds when the answer ends.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from warren.inference.engine import GenerationRequest

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 6  # of the prompt, because decoders strip the space at the start of a text
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer:
    """The text of one growing answer.

    A token may end inside a character, and decoding a token alone may lose the space in front of it. So the
    detokenizer decodes a window that begins before the unfinished tokens, and releases text once it cannot change.

    Stop strings are searched in the text as the model wrote it, before leading white space is dropped.

    Args:
        tokenizer: The model's.
        stop: Strings that end the text and are not part of it.
        prompt_ids: The prompt, whose last tokens are the context of the first ones here.
        keeps_leading_space: The answer continues a plain text. Otherwise it answers a turn: the first space belongs
            to the template, and further leading white space is dropped, because the template writes its own in the
            next turn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        keeps_leading_space: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window_start = 0  # decoding starts here
        self._ids = [int(token_id) for token_id in prompt_ids[-_CONTEXT_TOKENS:]]
        while self._decode(0, len(self._ids)).startswith(_REPLACEMENT):
            self._ids.pop(0)  # the end begins inside a character
        self._released_ids = len(self._ids)  # text of ids before this is released
        self._held = ""  # may begin a stop string
        self._has_begun = keeps_leading_space  # past the template's space
        self._has_text = keeps_leading_space  # past leading white space
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
        """Return the text that was held back; an unfinished character at the end is dropped."""
        if self.is_stopped:
            return ""
        before = self._decode(self._window_start, self._released_ids)
        after = self._decode(self._window_start, len(self._ids))
        text = self._release(after[len(before) :].rstrip(_REPLACEMENT))
        held, self._held = self._held, ""
        return text if self.is_stopped else text + self._visible(held)

    def _decode(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(self._ids[start:stop], skip_special_tokens=True) if stop > start else ""

    def _release(self, text: str) -> str:
        if not self._has_begun and text:
            text = text.removeprefix(" ")
            self._has_begun = True
        text = self._held + text
        cuts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            self.is_stopped, self._held = True, ""
            return self._visible(text[: min(cuts)])
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return self._visible(text[: len(text) - held])

    def _visible(self, text: str) -> str:
        if not self._has_text:
            text = text.lstrip()
            self._has_text = bool(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def detokenizer_of(request: GenerationRequest, tokenizer: Tokenizer) -> Detokenizer:
    """Return the detokenizer for the answer to a request."""
    sampling = request.sampling
    return Detokenizer(tokenizer, sampling.stop, request.prompt_ids.tolist(), sampling.keeps_leading_space)


class TokenBytes:
    """The bytes of single tokens. No decoder returns them for a token that is a part of a character.

    Two ways to write bytes as tokens are known: byte-level BPE has a printable character for each byte (GPT-2's
    table); SentencePiece marks spaces and falls back to `<0xE2>` for a byte. For any other tokenizer, a token's
    bytes are those of its text.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {number: str(token.content) for number, token in tokenizer.get_added_tokens_decoder().items()}
        decoders = list(_decoders(json.loads(tokenizer.to_str()).get("decoder") or {}))
        kinds = {decoder["type"] for decoder in decoders}
        self._table = _byte_of_character() if "ByteLevel" in kinds else None
        self._falls_back = "ByteFallback" in kinds
        self._space = next((mark for mark in map(_space_mark, decoders) if mark), None)

    def __call__(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; those of a special token are its name's."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:  # the head has more rows than the vocabulary
            return b""
        if self._table is not None and self._table.keys() >= set(token):
            return bytes(self._table[character] for character in token)
        if self._falls_back and (match := _FALLBACK_BYTE.fullmatch(token)):
            return bytes.fromhex(match[1])
        if self._space is not None:
            return str(token).replace(self._space, " ").encode()
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()


def _decoders(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the decoders of a `tokenizer.json`, those of a sequence one by one."""
    if tree.get("type") == "Sequence":
        for inner in tree["decoders"]:
            yield from _decoders(inner)
    elif tree:
        yield tree


def _space_mark(decoder: dict[str, Any]) -> str | None:
    """Return the character that a decoder replaces by a space."""
    if decoder["type"] == "Metaspace":
        return str(decoder["replacement"])
    if decoder["type"] == "Replace" and decoder["content"] == " ":
        mark = decoder["pattern"].get("String")
        return None if mark is None else str(mark)
    return None


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's table (`bytes_to_unicode`): printable Latin-1 maps to itself, other bytes from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}
