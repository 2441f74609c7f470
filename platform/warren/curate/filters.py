"""Steps that judge each sample by itself: caption, image size, lists of keys, a user's own function."""

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from warren.config.curate import CaptionStep, FunctionStep, ImageStep, KeysStep
from warren.curate.array_files import Arrays
from warren.curate.row_mask import RowSet
from warren.curate.sample_pieces import PieceTask, SamplePiece
from warren.curate.tasks import Runner, Workspace, finish
from warren.data.image_formats import open_image
from warren.data.sample import IMAGE_MARK, Sample
from warren.errors import ConfigError, DataError
from warren.storage import Location
from warren.storage.parquet import read_parquet

FilterStep = CaptionStep | ImageStep | KeysStep | FunctionStep
FilterRow = dict[str, Any]
_REPETITION_WORDS = 10
_COLUMNS: dict[type, list[str] | None] = {
    CaptionStep: ["turns"],
    ImageStep: ["images"],
    KeysStep: ["key"],
    FunctionStep: None,
}


def keep_filtered(
    run: Runner, work: Workspace, step: FilterStep, pieces: list[SamplePiece], selected: Location, num_rows: int
) -> RowSet:
    """Return the selected samples that pass a filter.

    Args:
        selected: The stored set of selected samples.
        num_rows: Rows of all datasets.
    """
    predicate(step)  # a list or function that cannot be loaded is reported before tasks start
    kept = RowSet.empty(num_rows)
    for file in finish(run, work / "pieces", [_Filter(piece, selected, step) for piece in pieces]):
        kept.add(file.read("row").astype(np.int64))
    return kept


@dataclass(frozen=True)
class _Filter(PieceTask):
    selected: Location
    step: FilterStep

    def compute(self) -> Arrays:
        takes = predicate(self.step)
        records = self.piece.records(_COLUMNS[type(self.step)], self.selected)
        kept = [row for row, record in records if takes(record)]
        return {"row": np.array(kept, np.uint32)}


def predicate(step: FilterStep) -> Callable[[FilterRow], bool]:
    """Return the function that decides whether a stored row passes a filter.

    Raises:
        ConfigError: A list or a function cannot be read.
    """
    if isinstance(step, CaptionStep):
        return _caption(step)
    if isinstance(step, ImageStep):
        return _image(step)
    if isinstance(step, KeysStep):
        keys = _keys(step.allow or step.deny or "")
        return lambda row: (row["key"] in keys) == (step.allow is not None)
    return _function(step)


def caption_of(row: FilterRow) -> str:
    """Return what the assistant says in a sample."""
    texts = [turn["text"] for turn in row["turns"] if turn["role"] == "assistant"]
    return " ".join(texts).replace(IMAGE_MARK, "").strip()


def _caption(step: CaptionStep) -> Callable[[FilterRow], bool]:
    pattern = re.compile(step.drop_pattern) if step.drop_pattern else None

    def takes(row: FilterRow) -> bool:
        text = caption_of(row)
        words = text.split()
        if not step.min_characters <= len(text) <= (step.max_characters or len(text)):
            return False
        if not step.min_words <= len(words) <= (step.max_words or len(words)):
            return False
        # In a short caption, one word is a large share without any repetition.
        if len(words) >= _REPETITION_WORDS:
            most = Counter(word.lower() for word in words).most_common(1)[0][1]
            if most > step.max_repetition * len(words):
                return False
        if step.scripts and not _is_written_in(text, step.scripts):
            return False
        return pattern is None or pattern.search(text) is None

    return takes


def _is_written_in(text: str, scripts: tuple[str, ...]) -> bool:
    """Return whether at least half of the letters belong to one of the scripts, by their Unicode names."""
    letters = [character for character in text if character.isalpha()]
    written = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
    return bool(letters) and 2 * written >= len(letters)


def _image(step: ImageStep) -> Callable[[FilterRow], bool]:
    def fits(data: bytes) -> bool:
        width, height = image_size(data)
        short, long = sorted((width, height))
        return (
            short >= step.min_side_px
            and long <= (step.max_side_px or long)
            and width * height >= step.min_pixels
            and long <= (step.max_aspect_ratio or long) * short
        )

    return lambda row: all(fits(image["bytes"]) for image in row["images"])


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an encoded image, without decoding it."""
    with open_image(data) as image:
        return image.size


@lru_cache(maxsize=4)
def _keys(path: str) -> frozenset[str]:
    location = Location.parse(path)
    if location.name.endswith(".parquet"):
        table = read_parquet(location.key, str(location), filesystem=location.filesystem)
        if "key" not in table.column_names:
            raise ConfigError(f"{location} has no column 'key'; it has {', '.join(table.column_names)}")
        return frozenset(str(key) for key in table["key"].to_pylist())
    return frozenset(line for line in location.read_bytes().decode().splitlines() if line)


def _function(step: FunctionStep) -> Callable[[FilterRow], bool]:
    module, _, name = step.call.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"function {step.call!r} cannot be loaded ({error}): every node must be able to import it, for example "
            "from the working directory of the job"
        ) from None

    def takes(row: FilterRow) -> bool:
        try:
            answer = function(Sample.from_row(row), **step.options)
        # The function is the user's, so it may raise anything; the message has to name the sample.
        except Exception as error:
            raise DataError(f"function {step.call!r} failed at the sample {row['key']!r}: {error!r}") from error
        if not isinstance(answer, bool | np.bool_):
            raise DataError(f"function {step.call!r} returned {answer!r} for {row['key']!r}: expected True or False")
        return bool(answer)

    return takes
