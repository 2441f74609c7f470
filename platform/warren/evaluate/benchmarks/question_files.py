"""Question files in LLaVA's format, which Bunny's scripts read too, and the images that they name."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.question import ImageFile, Question
from warren.evaluate.benchmarks.reference_files import read_json_lines
from warren.storage import Location

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
_SHOWN = 3


class ImageFolder:
    """The files of a benchmark's folder, found by the end of their path, wherever people unpacked them."""

    def __init__(self, files: Sequence[Location]) -> None:
        self._by_name: dict[str, list[Location]] = defaultdict(list)
        for file in files:
            self._by_name[file.name].append(file)

    def candidates(self, path: str) -> list[Location]:
        """Return the files whose path ends with `path`."""
        path = path.removeprefix("./")
        named = self._by_name.get(path.rpartition("/")[2], [])
        return [file for file in named if file.uri.endswith(f"/{path}")]

    def find(self, path: str) -> ImageFile:
        """Return one image.

        Raises:
            DataError: There is none, or there are several.
        """
        candidates = self.candidates(path)
        if len(candidates) != 1:
            places = ", ".join(str(file) for file in candidates[:_SHOWN]) or "no file"
            raise DataError(f"image {path!r} must be one file of the benchmark's folder; {places} has this name")
        return ImageFile(candidates[0])

    def require(self, paths: Iterable[str], folder: Location) -> None:
        """Check that every image is there, before the first question is asked.

        Raises:
            DataError: Some are missing.
        """
        paths = list(dict.fromkeys(paths))
        missing = [path for path in paths if not self.candidates(path)]
        if missing:
            shown = ", ".join(missing[:_SHOWN])
            raise DataError(
                f"{folder}: {len(missing)} of {len(paths)} images are missing, such as {shown}; "
                "put the benchmark's images anywhere below this folder"
            )


def matching_file(folder: Location, *patterns: str) -> Location | None:
    """Return the file itself, or the one below a folder that matches the first pattern; None where none does."""
    below = folder.list()
    files = below or [folder]
    for pattern in patterns:
        for file in files:
            if fnmatch.fnmatch(file.name, pattern):
                return file
    return None


def required_file(folder: Location, *patterns: str) -> Location:
    """Return the file that `matching_file` finds.

    Raises:
        DataError: There is none.
    """
    file = matching_file(folder, *patterns)
    if file is None:
        raise DataError(f"{folder}: no file called {' or '.join(patterns)}; evaluate.py --list says where to get it")
    return file


def questions_of_file(file: Location, folder: Location) -> Iterator[Question]:
    """Read a question file: JSON lines with question_id, image, text and category.

    Raises:
        DataError: A line lacks a field, or an image is missing.
    """
    rows = read_json_lines(file)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "question_id" not in row or not isinstance(row.get("text"), str):
            raise DataError(f"{file}: question {number} lacks question_id or text")
    yield from with_images(
        folder,
        [
            (
                Question(str(row["question_id"]), row["text"], group=str(row.get("category") or "")),
                [row["image"]] if row.get("image") else [],
            )
            for row in rows
        ],
    )


def with_images(folder: Location, questions: Sequence[tuple[Question, Sequence[str]]]) -> Iterator[Question]:
    """Give questions the images that they name; the first image is what questions share.

    Raises:
        DataError: An image is missing.
    """
    images = ImageFolder(folder.list())
    images.require((path for _, paths in questions for path in paths), folder)
    for question, paths in questions:
        yield _with(question, images, paths)


def _with(question: Question, images: ImageFolder, paths: Sequence[str]) -> Question:
    sources = tuple(images.find(path) for path in paths)
    cluster = question.cluster or (paths[0] if paths else question.key)
    return Question(question.key, question.text, sources, question.group, cluster, question.fixed_answer)


def lettered(question: str, options: Sequence[Any], form: str = "{}. {}") -> str:
    """Return a question with its options below, a letter before each."""
    lines = [form.format(chr(ord("A") + number), option) for number, option in enumerate(options)]
    return "\n".join([question, *lines])
