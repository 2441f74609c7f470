"""Samples from records of any format: which fields are read, and which forms each may have."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers.conversation import (
    Listed,
    RawMessage,
    check_marks,
    first_of,
    normalise_turns,
    read_messages,
    with_marks,
)
from warren.data.importers.image_sources import ImageSources
from warren.data.sample import IMAGE_MARK, Sample
from warren.errors import BadSampleError, ConfigError
from warren.storage import Location

_DEFAULT_IMAGE = "image"
_IMAGES = ("image", "images")
_CONVERSATIONS = ("conversations", "messages")
_NO_TEXT = "it has neither a caption nor a conversation"


@dataclass(frozen=True)
class RecordReader:
    """Builds samples of records; every importer has one.

    Attributes:
        columns: The fields of images and text. If it names no text, the usual names are tried.
        images: Finds the images that a record only names.
        add_image_marks: Put image marks before the first question of a conversation that has images but no marks.
        drop_system: Leave system messages out.
    """

    columns: ColumnsConfig
    images: ImageSources
    add_image_marks: bool = False
    drop_system: bool = False

    @classmethod
    def of(cls, config: IngestConfig, folder: str) -> "RecordReader":
        """Take what a configuration says; `folder` is where relative image paths start if it does not say."""
        images = ImageSources(Location.parse(config.images or folder).uri, config.download_deadline_s)
        return cls(config.columns, images, config.add_image_marks, config.system_turns == "drop")

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that may be read."""
        return tuple(dict.fromkeys(name for names in self._fields().values() for name in names))

    def check_fields(self, present: Sequence[str], file: Location) -> None:
        """Refuse a table that lacks what the configuration names.

        Raises:
            ConfigError: A column is missing.
        """
        for role, names in self._fields().items():
            if getattr(self.columns, role) is not None and not set(names) & set(present):
                raise ConfigError(
                    f"ingest.columns.{role} is {getattr(self.columns, role)!r}, but {file} has: {', '.join(present)}"
                )

    def sample(self, key: str, source: str, record: object) -> Sample:
        """Build a record's sample.

        Raises:
            BadSampleError: The record lacks text or image, or a field has an unknown form.
        """
        if not isinstance(record, Mapping):
            raise BadSampleError(f"the record is no JSON object but a {type(record).__name__}")
        listed = images_of(first_of(record, self._fields()["image"]))
        messages = self._messages(record, listed)
        images = _in_order(messages, listed)
        if not any(message.num_marks for message in messages) and self.add_image_marks:
            messages = with_marks(messages, len(images))
        check_marks(messages, len(images))
        system = self._system(messages)
        return Sample(key, self.images.fetch_all(images), normalise_turns(messages, len(images)), source, system)

    def _fields(self) -> dict[str, tuple[str, ...]]:
        columns = self.columns
        images = _IMAGES if columns.image == _DEFAULT_IMAGE else (columns.image,) if columns.image else ()
        if columns.names_text:
            named = {role: getattr(columns, role) for role in ("caption", "conversations", "question", "answer")}
            return {"image": images, **{role: (name,) for role, name in named.items() if name is not None}}
        usual = {name: (name,) for name in ("caption", "question", "answer")}
        return {"image": images, "conversations": _CONVERSATIONS, **usual}

    def _messages(self, record: Mapping[str, object], listed: Sequence[object]) -> list[RawMessage]:
        names = self._fields()
        values = {role: first_of(record, names.get(role, ())) for role in names}
        if values.get("conversations") is not None:
            return read_messages(_parsed(values["conversations"]))
        if (caption := _text("caption", values)) is not None:
            if not listed and self.columns.image is not None:
                raise BadSampleError("it has no image")
            return [RawMessage("user", IMAGE_MARK * len(listed)), RawMessage("assistant", caption)]
        question, answer = _text("question", values, may_show=True), _text("answer", values)
        if question is None or answer is None:
            raise BadSampleError(_NO_TEXT)
        messages = [RawMessage("user", question, (None,) * question.count(IMAGE_MARK)), RawMessage("assistant", answer)]
        return messages if IMAGE_MARK in question else with_marks(messages, len(listed))

    def _system(self, messages: Sequence[RawMessage]) -> str | None:
        """Return the text of a system message in front of all others.

        Raises:
            BadSampleError: A system message stands elsewhere.
        """
        places = [place for place, message in enumerate(messages) if message.role == "system"]
        if not places or self.drop_system:
            return None
        if places != [0]:
            raise BadSampleError(f"message {places[-1]} is from 'system'; one may stand, in front of all others")
        return messages[0].text


def images_of(value: object) -> list[object]:
    """Return the images that a field names: none, one, or a list of them, which a text table writes as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None or value == "" else [value]


def _in_order(messages: Sequence[RawMessage], listed: Sequence[object]) -> list[object]:
    """Return a record's images in the order of its messages; images that no message shows come last."""
    rest = list(range(len(listed)))
    images: list[object] = []
    for image in (image for message in messages for image in message.images):
        if isinstance(image, Listed):
            if image.place not in range(len(listed)):
                raise BadSampleError(f"a message shows image {image.place} of a record with {len(listed)} images")
            images.append(listed[image.place])
            rest = [place for place in rest if place != image.place]
        elif image is not None:
            images.append(image)
        elif rest:
            images.append(listed[rest.pop(0)])
    return images + [listed[place] for place in rest]


def _text(role: str, values: Mapping[str, object], may_show: bool = False) -> str | None:
    """Return a caption, question or answer, None where there is none; numbers are text, too.

    Raises:
        BadSampleError: It is of another type, or an image mark stands where no image can be.
    """
    value = values.get(role)
    if value is None or value != value:  # NaN, pandas' missing cell, does not equal itself
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadSampleError(f"its {role} is a {type(value).__name__}, not a text")
    text = str(value).strip()
    if IMAGE_MARK in text and not may_show:
        raise BadSampleError(f"its {role} holds an image mark; images belong to the question")
    return text or (None if role == "caption" else "")


def _parsed(value: object) -> object:
    """Return conversations that a text table holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadSampleError("its conversations are no JSON") from None
