"""Golden cases: what the training side says a model does with a few questions. They travel inside its release.

golden/cases.json       the questions, and what is expected of each
golden/SHA256.png       their images

`train/golden_maker.py` makes them, `inference/parity.py` compares an engine with them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warren.data.images import ImageSpec
from warren.data.sample import Turn
from warren.errors import ConflictError, NotFoundError, ReleaseError
from warren.storage import FileEntry, Location, check_relative, digest_bytes

GOLDEN_FOLDER = "golden"
CASES_FILE = f"{GOLDEN_FOLDER}/cases.json"
_FORMAT_VERSION = 1
_DIGITS = 7  # of a log-probability in the file: finer than float32 computes it


@dataclass(frozen=True)
class GoldenStep:
    """The likeliest tokens of one step, the likeliest first. Decoding is greedy, so the first is the answer's token.

    Attributes:
        token_ids: At least two.
        logprobs: Natural logarithms of their probabilities, over all tokens that may be sampled.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def token_id(self) -> int:
        """The token that the step adds to the answer."""
        return self.token_ids[0]

    @property
    def margin(self) -> float:
        """How much likelier that token is than the next: a difference of log-probabilities."""
        return self.logprobs[0] - self.logprobs[1]


@dataclass(frozen=True)
class GoldenCase:
    """One question, and what the model makes of it.

    Attributes:
        turns: They end with the user's; the n-th image mark takes the n-th image.
        images: Encoded without loss.
        pixel_digests: SHA-256 of each image's pixels, uint8 (3, size_px, size_px).
        channel_means: Mean of each image's three channels after normalisation.
        prompt_ids: Image tokens expanded.
        steps: The first steps of the greedy answer, up to the token that ends it.
    """

    name: str
    turns: tuple[Turn, ...]
    images: tuple[bytes, ...]
    pixel_digests: tuple[str, ...]
    channel_means: tuple[tuple[float, float, float], ...]
    prompt_ids: tuple[int, ...]
    steps: tuple[GoldenStep, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types; images become the paths of their files."""
        steps = [asdict(step) | {"logprobs": [round(each, _DIGITS) for each in step.logprobs]} for step in self.steps]
        return {**asdict(self), "images": [_path_of(image) for image in self.images], "steps": steps}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], files: Mapping[str, bytes]) -> "GoldenCase":
        """Rebuild what `to_json` returned.

        Args:
            value: JSON types.
            files: The images by their paths.
        """
        return cls(
            name=value["name"],
            turns=tuple(Turn(turn["role"], turn["text"]) for turn in value["turns"]),
            images=tuple(files[path] for path in value["images"]),
            pixel_digests=tuple(value["pixel_digests"]),
            channel_means=tuple((red, green, blue) for red, green, blue in value["channel_means"]),
            prompt_ids=tuple(value["prompt_ids"]),
            steps=tuple(GoldenStep(tuple(step["token_ids"]), tuple(step["logprobs"])) for step in value["steps"]),
        )


@dataclass(frozen=True)
class GoldenCases:
    """The golden cases of one model.

    Attributes:
        model: Digest of the model's files (`StoredFiles.digest`).
        dtype: Of the model's weights, in torch's name. The cases themselves are computed in float32.
        rounding: How far log-probabilities move at most when transformers computes them in `dtype` instead.
        vocab_size: Tokens of the tokenizer, added ones included.
        eos_token_id: The token that ends an answer.
    """

    model: str
    dtype: str
    rounding: float
    vocab_size: int
    eos_token_id: int | None
    cases: tuple[GoldenCase, ...]

    def files(self) -> dict[str, bytes]:
        """Return the files that hold the cases, by their paths inside a release; `CASES_FILE` is the last."""
        files = {_path_of(image): image for case in self.cases for image in case.images}
        value = {**asdict(self), "version": _FORMAT_VERSION, "cases": [case.to_json() for case in self.cases]}
        return {**files, CASES_FILE: (json.dumps(value, ensure_ascii=False) + "\n").encode()}

    def store(self, folder: Location) -> tuple[FileEntry, ...]:
        """Write the cases into the folder of a release that is not complete yet, and return their entries.

        If another job has written cases of the same model there, those stay: its manifest may name them already.
        """
        files = self.files()
        last = files.pop(CASES_FILE)
        for path, data in files.items():
            (folder / path).put_bytes(data)
        try:
            (folder / CASES_FILE).create_bytes(last)
        except ConflictError:
            present = _read_stored(folder)
            if present is not None and present.model == self.model:
                files, last = present.files(), (folder / CASES_FILE).read_bytes()
            else:
                (folder / CASES_FILE).put_bytes(last)
        files[CASES_FILE] = last
        return tuple(FileEntry(path, len(data), digest_bytes(data)) for path, data in files.items())

    @classmethod
    def load(cls, folder: Path) -> "GoldenCases | None":
        """Read the cases of a release that was fetched into a local folder; None if it was published without any.

        Raises:
            ReleaseError: They cannot be read.
        """
        path = folder / CASES_FILE
        if not path.is_file():
            return None
        return _parse(path.read_bytes(), lambda name: (folder / name).read_bytes(), str(path))


def channel_means(pixels: np.ndarray, spec: ImageSpec) -> list[tuple[float, float, float]]:
    """Return the mean of each image's channels after normalisation.

    Args:
        pixels: uint8 (num_images, 3, size_px, size_px).
        spec: The model's image preprocessing.
    """
    normalised = (pixels / 255.0 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    return [(float(red), float(green), float(blue)) for red, green, blue in normalised.mean(axis=(2, 3))]


def _path_of(image: bytes) -> str:
    return f"{GOLDEN_FOLDER}/{digest_bytes(image)}.png"


def _read_stored(folder: Location) -> GoldenCases | None:
    """Return the cases that lie in a release's folder; None if they are not whole."""
    try:
        data = (folder / CASES_FILE).read_bytes()
        return _parse(data, lambda name: (folder / name).read_bytes(), str(folder / CASES_FILE))
    except (NotFoundError, ReleaseError):
        return None


def _parse(data: bytes, read: Callable[[str], bytes], where: str) -> GoldenCases:
    try:
        value = json.loads(data)
        version = value["version"]
        if version != _FORMAT_VERSION:
            raise ReleaseError(
                f"{where} has format version {version!r}, this Warren reads {_FORMAT_VERSION}: "
                "serve it with the Warren that published it, or release the checkpoint again"
            )
        files = {path: read(check_relative(path)) for case in value["cases"] for path in case["images"]}
        cases = tuple(GoldenCase.from_json(case, files) for case in value["cases"])
        names = ("model", "dtype", "rounding", "vocab_size", "eos_token_id")
        return GoldenCases(**{name: value[name] for name in names}, cases=cases)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ReleaseError(f"{where} cannot be read: {error!r}; release the checkpoint again") from None
