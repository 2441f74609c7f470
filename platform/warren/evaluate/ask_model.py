"""Asking a model in this process the questions of a benchmark: pieces are prepared first, then answered."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warren.data.model_inputs import Inputs
from warren.errors import AccessDeniedError, BadSampleError, StorageError, WarrenError
from warren.evaluate.answer_file import StoredAnswer
from warren.evaluate.answer_pieces import Outcome, PieceEffort, QuestionPiece
from warren.evaluate.benchmarks import Question
from warren.inference.engine import Completion, GenerationFailedError, GenerationRequest
from warren.inference.transformers_engine.offline import Finished, OfflineGenerator
from warren.storage import digest_bytes

_TRIES = 3
"""How often a question is asked whose forward pass failed: memory may be short for a moment."""
_REASON_CHARS = 300


@dataclass(frozen=True)
class PreparedPiece:
    """A piece with its images decoded.

    Attributes:
        piece: What is asked.
        pixels: uint8 (3, size_px, size_px) by the digest of the encoded image; questions share images.
        images: The digests of each question's images, in the order of the questions.
        errors: Why a question cannot be asked, by its key.
    """

    piece: QuestionPiece
    pixels: Mapping[str, np.ndarray]
    images: Sequence[tuple[str, ...]]
    errors: Mapping[str, str]


def prepare_piece(piece: QuestionPiece, inputs: Inputs) -> PreparedPiece:
    """Read and decode the images of a piece; one that cannot be used is an error of its question alone.

    Raises:
        StorageError: Storage did not answer within its deadline.
    """
    pixels: dict[str, np.ndarray] = {}
    images: list[tuple[str, ...]] = []
    errors: dict[str, str] = {}
    for question in piece.questions:
        try:
            images.append(_decode(question, inputs, pixels) if question.fixed_answer is None else ())
        except (BadSampleError, AccessDeniedError) as error:
            errors[question.key] = one_line(error)
            images.append(())
        # Storage is not the image's fault: the attempt ends, and the next one asks the piece.
        except StorageError:
            raise
        except Exception as error:  # decoding reads nothing but the image: the image caused what it raises
            errors[question.key] = one_line(error)
            images.append(())
    return PreparedPiece(piece, pixels, images, errors)


class ModelAsker:
    """A loaded model that answers prepared pieces greedily. The answers of a piece depend on that piece alone.

    Args:
        folder: A model folder that Warren wrote.
        max_new_tokens: Longest answer.

    Raises:
        ReleaseError: The folder does not load.
    """

    def __init__(self, folder: Path, max_new_tokens: int) -> None:
        self._generator = OfflineGenerator(folder)
        self._max_new_tokens = max_new_tokens

    def ask(self, prepared: PreparedPiece, attempt: str = "") -> tuple[list[Outcome], PieceEffort]:
        """Return what became of each question, in their order, and what it cost.

        Raises:
            EngineError: The model failed for all questions.
        """
        started = time.monotonic()
        outcomes: dict[str, Outcome] = {}
        requests: dict[str, GenerationRequest] = {}
        for question, images in zip(prepared.piece.questions, prepared.images, strict=True):
            refusal = self._refusal_or_request(question, images, prepared, requests)
            if refusal is not None:
                outcomes[question.key] = refusal
        finished = self._finish(requests)
        for question, images in zip(prepared.piece.questions, prepared.images, strict=True):
            if question.key in finished:
                outcomes[question.key] = _outcome(question, finished[question.key], digest_of(images))
        effort = PieceEffort(len(requests), time.monotonic() - started, attempt)
        return [outcomes[question.key] for question in prepared.piece.questions], effort

    def _refusal_or_request(
        self,
        question: Question,
        images: tuple[str, ...],
        prepared: PreparedPiece,
        requests: dict[str, GenerationRequest],
    ) -> Outcome | None:
        """Add the question's request, or return the outcome of a question that is not asked."""
        if question.fixed_answer is not None:
            return fixed(question)
        if question.key in prepared.errors:
            return failed(question, prepared.errors[question.key])
        size_px = self._generator.inputs.image.size_px
        pixels = [prepared.pixels[digest] for digest in images]
        stacked = np.stack(pixels) if pixels else np.empty((0, 3, size_px, size_px), np.uint8)
        try:
            requests[question.key] = self._generator.encode(question.prompt, stacked, self._max_new_tokens)
        except Exception as error:  # tokenising reads nothing but the question: it caused what this raises
            return failed(question, one_line(error), digest_of(images))
        return None

    def _finish(self, requests: Mapping[str, GenerationRequest]) -> dict[str, Finished]:
        """Answer requests; those whose forward pass failed are tried again, one by one."""
        # In a scheduler of their own, so that the answers do not depend on what was asked before.
        answered = self._generator.finish_apart(list(requests.values()))
        finished = dict(zip(requests, answered, strict=True))
        for key, request in requests.items():
            for _ in range(_TRIES - 1):
                if not isinstance(finished[key].result, GenerationFailedError):
                    break
                [finished[key]] = self._generator.finish_apart([request])
        return finished


def fixed(question: Question) -> Outcome:
    """Return the outcome of a question whose answer its convention fixes: no model is asked."""
    return Outcome(StoredAnswer(question.key, question.text, answer=question.fixed_answer, num_tokens=0))


def failed(question: Question, reason: str, images: str = "", is_transient: bool = False) -> Outcome:
    """Return the outcome of a request that failed."""
    return Outcome(StoredAnswer(question.key, question.text, error=reason), images, is_transient)


def digest_of(images: Sequence[str]) -> str:
    """Return one digest for the digests of several images; empty for none."""
    return digest_bytes("\n".join(images).encode()) if images else ""


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of bounded length, which UTF-8 can hold."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, WarrenError):
        text = f"{type(error).__name__}: {text}"
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}…"


def _decode(question: Question, inputs: Inputs, pixels: dict[str, np.ndarray]) -> tuple[str, ...]:
    digests = []
    for source in question.images:
        data = source.read()
        digest = digest_bytes(data)
        if digest not in pixels:
            [pixels[digest]] = inputs.pixels((data,))
        digests.append(digest)
    return tuple(digests)


def _outcome(question: Question, finished: Finished, images: str) -> Outcome:
    if not isinstance(finished.result, Completion):
        transient = isinstance(finished.result, GenerationFailedError)
        return failed(question, one_line(finished.result), images, transient)
    text, num_tokens = finished.result.text.strip(), len(finished.result.token_ids)
    answer = StoredAnswer(question.key, question.text, text, num_tokens, finished.seconds)
    return Outcome(answer, images)
