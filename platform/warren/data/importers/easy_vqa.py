"""easy-vqa (PyPI, MIT): 5,000 images of one coloured shape each, with 48,248 questions and a fixed split.

Its questions become conversations; its colours and shapes, which the answers give away, become captions.
"""

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from warren.data.importers.fingerprints import file_fingerprint
from warren.data.importers.importer import Piece, Raw
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import ConfigError, NotFoundError

_PACKAGE = "easy_vqa"
_COLOURS = frozenset(["black", "gray", "red", "green", "blue", "yellow", "teal", "brown"])
_SHAPES = frozenset(["circle", "rectangle", "triangle"])
_Planned = tuple[str, int, tuple[Turn, ...]]  # key, image, conversation


@dataclass(frozen=True)
class EasyVqa:
    """One dataset made of easy-vqa's images.

    Attributes:
        name: `easy-vqa-captions`, `easy-vqa-train` or `easy-vqa-test`.
        folder: The package's `data` folder.
        limit_images: Take only the first images; None takes all.
        questions_per_conversation: Questions about one image that are asked in one conversation.
    """

    name: str
    folder: str
    limit_images: int | None = None
    questions_per_conversation: int = 1

    @property
    def split(self) -> str:
        """Which of the published splits the dataset is made of."""
        return "test" if self.name.endswith("-test") else "train"

    @property
    def licence(self) -> str:
        """The package's licence."""
        return "MIT"

    @property
    def origin(self) -> str:
        """The package."""
        return "easy-vqa"

    @property
    def files(self) -> tuple[str, ...]:
        """The split's questions."""
        return (f"{self.folder}/{self.split}/questions.json",)

    def fingerprint(self, piece: Piece) -> str:
        """Identify a range by the questions it is cut from."""
        return file_fingerprint(self.files[0])

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the split's samples into ranges."""
        total = len(self._plan())
        for start in range(0, total, samples_per_shard):
            stop = min(start + samples_per_shard, total)
            yield Piece(self.folder, start, stop, stop - start)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a range's samples; an image that is missing gives a sample with no bytes."""
        for key, image, turns in self._plan()[piece.start : piece.stop]:
            source = f"easy-vqa/{self.split}/images/{image}.png"
            yield Raw(key, source, partial(self._load, key, source, image, turns))

    def _load(self, key: str, source: str, image: int, turns: tuple[Turn, ...]) -> Sample:
        path = Path(self.folder) / self.split / "images" / f"{image}.png"
        return Sample(key, (path.read_bytes() if path.is_file() else b"",), turns, source)

    def _plan(self) -> list[_Planned]:
        questions = _questions(self.folder, self.split, self.limit_images)
        if self.name.endswith("-captions"):
            return _captions(questions)
        group = 1 if self.split == "test" else self.questions_per_conversation
        return _conversations(self.split, questions, group)


def easy_vqa(path: str | None, limit_images: int | None, questions_per_conversation: int) -> list[EasyVqa]:
    """Return the three datasets of easy-vqa.

    Args:
        path: Its `data` folder; None finds the installed package.

    Raises:
        ConfigError: The folder holds no easy-vqa.
        NotFoundError: `path` is None and the package is not installed.
    """
    folder = Path(path) if path else _installed()
    if not (folder / "train" / "questions.json").is_file():
        raise ConfigError(f"ingest.path {str(folder)!r} holds no train/questions.json of easy-vqa")
    names = ("easy-vqa-captions", "easy-vqa-train", "easy-vqa-test")
    return [EasyVqa(name, str(folder), limit_images, questions_per_conversation) for name in names]


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFoundError("the easy-vqa package is not installed: pip install --no-deps easy-vqa, or set ingest.path")
    return Path(spec.origin).parent / "data"


@lru_cache(maxsize=4)
def _questions(folder: str, split: str, limit_images: int | None) -> dict[int, list[tuple[str, str]]]:
    """Group (question, answer) by image, in the order of the file."""
    rows = json.loads((Path(folder) / split / "questions.json").read_text())
    grouped: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in rows:
        if limit_images is None or image < limit_images:
            grouped.setdefault(image, []).append((question, answer))
    return grouped


def _captions(questions: dict[int, list[tuple[str, str]]]) -> list[_Planned]:
    """Write captions from what the questions about an image reveal: `a blue circle`."""
    planned: list[_Planned] = []
    for image, asked in questions.items():
        known = {word for question, answer in asked for word in _facts(question, answer)}
        colour, shape = known & _COLOURS, known & _SHAPES
        if colour and shape:  # a caption that names only one of them would be noise
            turns = (Turn("user", IMAGE_MARK), Turn("assistant", " ".join(["a", *colour, *shape])))
            planned.append((f"train-{image:05d}-caption", image, turns))
    return planned


def _facts(question: str, answer: str) -> set[str]:
    """Return the colour and shape words that a question and its answer say are in the image."""
    words = set(re.findall(r"[a-z]+", question))
    if answer in ("yes", "no"):
        present = (answer == "yes") != bool(words & {"no", "not"})
        return words & (_COLOURS | _SHAPES) if present else set()
    return {answer} | words & (_COLOURS | _SHAPES)


def _conversations(split: str, questions: dict[int, list[tuple[str, str]]], group: int) -> list[_Planned]:
    planned: list[_Planned] = []
    for image, asked in questions.items():
        for first in range(0, len(asked), group):
            turns: list[Turn] = []
            for question, answer in asked[first : first + group]:
                mark = "" if turns else f"{IMAGE_MARK}\n"
                turns += [Turn("user", f"{mark}{question}"), Turn("assistant", answer)]
            planned.append((f"{split}-{image:05d}-{first:02d}", image, tuple(turns)))
    return planned
