"""Warren, and one `generate` after another as Bunny's evaluation scripts do, on one core of this process."""

import base64
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.serve.load import make_image
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Turn
from warren.evaluate.answer_pieces import QuestionPiece
from warren.evaluate.ask_model import ModelAsker, prepare_piece
from warren.evaluate.benchmarks import Question
from warren.evaluate.benchmarks.question import ImageBase64
from warren.inference import Prompt, SamplingParams, encode_request
from warren.models import load_bundle
from warren.models.image_normalizer import ImageNormalizer

_SEED = 7
_SUBJECTS = ("animal", "vehicle", "colour of the sky", "number of people", "shape on the left", "kind of food")


@dataclass(frozen=True)
class Questions:
    """Questions with an image of their own each, and the length of every answer."""

    texts: tuple[str, ...]
    images: tuple[bytes, ...]
    num_new_tokens: int

    @classmethod
    def make(cls, number: int, image_px: int, num_new_tokens: int) -> "Questions":
        """Make up questions of different lengths, as a benchmark with short answers has them."""
        rng = random.Random(_SEED)
        ending = "Answer the question using a single word or phrase."
        texts = tuple(
            f"What is the {rng.choice(_SUBJECTS)}{' here' * rng.randint(0, 8)}? {ending}" for _ in range(number)
        )
        return cls(texts, tuple(make_image(image_px, rng) for _ in range(number)), num_new_tokens)

    def first(self, number: int) -> "Questions":
        """Return the first questions."""
        return Questions(self.texts[:number], self.images[:number], self.num_new_tokens)


class OneByOne:
    """`generate` with a batch of one, as `bunny/eval/model_vqa_loader.py` calls it."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model, self._inputs, tokenizer_json = load_bundle(folder)
        self._tokenizer = tokenizer_from_json(tokenizer_json)
        self._normalizer = ImageNormalizer(self._inputs.image)

    @torch.inference_mode()
    def ask(self, questions: Questions) -> tuple[float, list[str]]:
        """Answer all questions; returns the seconds and the answers."""
        started, answers = time.perf_counter(), []
        for text, image in zip(questions.texts, questions.images, strict=True):
            prompt = Prompt((Turn("user", f"{IMAGE_MARK}\n{text}"),), (image,))
            sampling = SamplingParams(max_new_tokens=questions.num_new_tokens)
            request = encode_request(prompt, self._inputs, self._tokenizer, sampling)
            ids = torch.from_numpy(np.asarray([request.prompt_ids], dtype=np.int64))
            written = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=self._normalizer(torch.from_numpy(request.pixels), torch.float32),
                max_new_tokens=questions.num_new_tokens,
                do_sample=False,
                pad_token_id=self._inputs.tokens.pad_token_id,
            )
            answers.append(self._tokenizer.decode(written[0, ids.shape[1] :].tolist()).strip())
        return time.perf_counter() - started, answers


class Pieces:
    """What one of Warren's evaluators does: pieces of questions, answered with continuous batching."""

    def __init__(self, folder: Path, questions_per_piece: int, num_new_tokens: int) -> None:
        torch.set_num_threads(1)
        self._asker, self._inputs = ModelAsker(folder, num_new_tokens), Inputs.load(folder)
        self._size = questions_per_piece

    def ask(self, questions: Questions) -> tuple[float, list[str]]:
        """Answer all questions; returns the seconds and the answers."""
        started, answers = time.perf_counter(), []
        for piece in self._pieces(questions):
            outcomes, _ = self._asker.ask(prepare_piece(piece, self._inputs))
            answers += [str(outcome.answer.answer) for outcome in outcomes]
        return time.perf_counter() - started, answers

    def _pieces(self, questions: Questions) -> Iterator[QuestionPiece]:
        asked = [
            Question(str(number), f"{IMAGE_MARK}\n{text}", (ImageBase64(base64.b64encode(image).decode()),))
            for number, (text, image) in enumerate(zip(questions.texts, questions.images, strict=True))
        ]
        for start in range(0, len(asked), self._size):
            part = tuple(asked[start : start + self._size])
            yield QuestionPiece(start, start + len(part), 1, part)
