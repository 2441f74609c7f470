"""Conversations of any common form become turns: `from`/`value` or `role`/`content`, text or a list of parts.

Bunny rewrites a conversation before it renders it. Warren does so once, on import: what is stored is what is learnt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from warren.data.printable import shown
from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import BadSampleError

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_IMAGE_FIELDS = ("image_url", "image", "url", "path", "source")


@dataclass(frozen=True)
class Listed:
    """An image part that names the record's image by its place in the list."""

    place: int


@dataclass(frozen=True)
class RawMessage:
    """One message of a record.

    Attributes:
        text: With an image mark wherever an image belongs.
        images: What the message says of each marked image; None where it takes the record's next image.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[object, ...] = ()

    @property
    def num_marks(self) -> int:
        """How many image marks the text holds."""
        return self.text.count(IMAGE_MARK)


def read_messages(value: object) -> list[RawMessage]:
    """Read a record's messages.

    Raises:
        BadSampleError: They are no list of messages with a known role and a text or parts.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadSampleError(f"conversations are a {type(value).__name__}, not a list of messages")
    return [_read_message(number, message) for number, message in enumerate(value)]


def normalise_turns(messages: Sequence[RawMessage], num_images: int) -> tuple[Turn, ...]:
    """Return the turns that Bunny trains on (`preprocess_multimodal` and the start of `preprocess_bunny`).

    An answer in front of the first question is dropped. With an image, a message that contains image marks loses them
    all, and the spaces around the rest, and gets one mark and a newline in front. So several marks in one message
    become one, and marks in several messages stay several. Bunny knows no messages with several images; where joining
    would lose some of `num_images` marks, every mark stays where it is written.

    Args:
        messages: Of user and assistant.
        num_images: Of the record. Without one Bunny reads `<image>` as plain text; here the mark stays a mark, and
            `Sample.check` refuses the sample because its image is missing.
    """
    marked = sum(message.num_marks > 0 for message in messages)
    joined = num_images > 0 and (marked == num_images or sum(m.num_marks for m in messages) != num_images)
    turns = [
        Turn(message.role, _with_one_mark(message.text) if joined else message.text)
        for message in messages
        if message.role != "system"
    ]
    return tuple(turns[1:] if turns and turns[0].role == "assistant" else turns)


def check_marks(messages: Sequence[RawMessage], num_images: int) -> None:
    """Refuse messages whose image marks cannot be matched with a record's images.

    Raises:
        BadSampleError: There are more or fewer marks than images, also if marks of one message count once.
    """
    marks = sum(message.num_marks for message in messages)
    if num_images in (marks, sum(message.num_marks > 0 for message in messages)):
        return
    reason = f"{marks} image marks in the text, but {num_images} images"
    raise BadSampleError(reason if marks else f"{reason}; ingest.add_image_marks=true puts marks before the question")


def with_marks(messages: Sequence[RawMessage], num_images: int) -> list[RawMessage]:
    """Put `num_images` image marks in front of the first question."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return list(messages)
    marked = replace(messages[first], text=f"{IMAGE_MARK}\n" * num_images + messages[first].text)
    return [*messages[:first], marked, *messages[first + 1 :]]


def _with_one_mark(text: str) -> str:
    if IMAGE_MARK not in text:
        return text
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()


def _read_message(number: int, message: object) -> RawMessage:
    if not isinstance(message, Mapping):
        raise BadSampleError(f"message {number} is a {type(message).__name__}, not a mapping")
    written = first_of(message, ("from", "role"))
    role = _ROLES.get(written.lower()) if isinstance(written, str) else None
    if role is None:
        raise BadSampleError(f"message {number} is from {shown(written)!r}; known are: {', '.join(_ROLES)}")
    content = first_of(message, ("value", "content"))
    if isinstance(content, str):
        return RawMessage(role, content, (None,) * content.count(IMAGE_MARK))
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return _read_parts(number, role, content)
    raise BadSampleError(f"message {number} holds a {type(content).__name__}, not a text or a list of parts")


def _read_parts(number: int, role: Literal["system", "user", "assistant"], parts: Sequence[object]) -> RawMessage:
    """Join parts as the endpoint does: with newlines, and a mark for each image."""
    pieces: list[str] = []
    images: list[object] = []
    for part in parts:
        fields = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(fields, Mapping):
            raise BadSampleError(f"message {number} holds a part that is a {type(part).__name__}, not a mapping")
        kind, text = fields.get("type"), fields.get("text")
        if kind in _IMAGE_PARTS or (kind is None and first_of(fields, _IMAGE_FIELDS) is not None):
            pieces.append(IMAGE_MARK)
            images.append(_image_of(fields))
        elif kind in (*_TEXT_PARTS, None) and isinstance(text, str):
            pieces.append(text)
            images += [None] * text.count(IMAGE_MARK)
        else:
            raise BadSampleError(f"message {number} holds a part of type {shown(kind)!r}; known are: text, image_url")
    return RawMessage(role, "\n".join(pieces), tuple(images))


def _image_of(part: Mapping[str, Any]) -> object:
    named = first_of(part, _IMAGE_FIELDS)
    place = part.get("index")
    if named is None and isinstance(place, int) and not isinstance(place, bool):
        return Listed(place)
    return named


def first_of(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first of some fields that is there and not null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)
