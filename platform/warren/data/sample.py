"""A sample: one conversation with its images, and the Arrow schema it is stored in."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from warren.data.printable import is_unicode
from warren.errors import BadSampleError

IMAGE_MARK = "<image>"
"""Stands in a turn's text where an image belongs; the n-th mark takes the n-th image."""

Role = Literal["user", "assistant"]

_TEXT = {"dtype": "string", "_type": "Value"}
# What `datasets` (4 and later) reads its features from: it then decodes the images.
_HUGGING_FACE = {
    "info": {
        "features": {
            "key": _TEXT,
            "images": {"feature": {"_type": "Image"}, "_type": "List"},
            "turns": {"feature": {"role": _TEXT, "text": _TEXT}, "_type": "List"},
            "source": _TEXT,
        }
    }
}

# Images use Hugging Face's struct (`bytes`, `path`), so `datasets` decodes them without knowing Warren; it does so only
# where the field is nullable.
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        pa.field("turns", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())])), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ],
    metadata={"huggingface": json.dumps(_HUGGING_FACE)},
)


@dataclass(frozen=True)
class Turn:
    """One role's text in a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """One conversation with its images.

    Attributes:
        key: Unique within its dataset; names the sample in reports.
        images: Encoded images (JPEG, PNG, …) in the order of the image marks.
        turns: Alternating, starting with the user.
        source: Where it came from: a file, a URL, a package.
        system: Replaces the prompt template's system text; None keeps it. Stored as a first turn of role `system`.
    """

    key: str
    images: tuple[bytes, ...]
    turns: tuple[Turn, ...]
    source: str
    system: str | None = None

    def check(self, allow_empty_answers: bool = False) -> "Sample":
        """Return the sample if its conversation is sound.

        Args:
            allow_empty_answers: Accept a conversation whose answers are all empty.

        Raises:
            BadSampleError: Roles do not alternate, every answer is empty, marks and images differ in number, or a text
                cannot be stored.
        """
        roles = [turn.role for turn in self.turns]
        expected = ["user", "assistant"] * (len(roles) // 2)
        if not roles or roles != expected:
            raise BadSampleError(f"turns must alternate user, assistant, …; given: {', '.join(roles) or 'none'}")
        if not allow_empty_answers and not any(t.role == "assistant" and t.text.strip() for t in self.turns):
            raise BadSampleError("every assistant turn is empty: there is nothing to learn from them")
        if IMAGE_MARK in (self.system or ""):
            raise BadSampleError("the system text holds an image mark; images belong to the user's messages")
        marks = sum(turn.text.count(IMAGE_MARK) for turn in self.turns)
        if marks != len(self.images):
            raise BadSampleError(f"{marks} image marks in the text, but {len(self.images)} images")
        self._check_encoding()
        return self

    def _check_encoding(self) -> None:
        texts = {"key": self.key, "source": self.source, "system text": self.system or ""}
        texts |= {f"turn {number}": turn.text for number, turn in enumerate(self.turns)}
        for name, text in texts.items():
            if not is_unicode(text):
                raise BadSampleError(f"its {name} is not valid Unicode: it holds half of a surrogate pair")

    def to_row(self) -> dict[str, Any]:
        """Return the sample as a row of `SCHEMA`."""
        system = [] if self.system is None else [{"role": "system", "text": self.system}]
        return {
            "key": self.key,
            "images": [{"bytes": image, "path": None} for image in self.images],
            "turns": system + [{"role": turn.role, "text": turn.text} for turn in self.turns],
            "source": self.source,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Sample":
        """Rebuild a sample from a row of `SCHEMA`."""
        first, turns = row["turns"][:1], row["turns"]
        system = first[0]["text"] if first and first[0]["role"] == "system" else None
        return cls(
            key=row["key"],
            images=tuple(image["bytes"] or b"" for image in row["images"]),
            turns=tuple(Turn(turn["role"], turn["text"]) for turn in (turns if system is None else turns[1:])),
            source=row["source"],
            system=system,
        )
