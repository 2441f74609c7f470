"""Multiple choice: which of several answers an image makes likeliest, by a model's likelihoods."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from warren.data.sample import IMAGE_MARK, Turn
from warren.data.template import IGNORED, encode
from warren.errors import BadSampleError
from warren.inference.engine_options import context_limit
from warren.inference.prompts import Prompt
from warren.inference.transformers_engine.offline import load_alone
from warren.models.head import excluded
from warren.models.image_normalizer import ImageNormalizer


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with its decoded images.

    Attributes:
        turns: The question; one turn of the user.
        pixels: uint8 (images, 3, height, width).
        system: Replaces the template's system text; None keeps it.
    """

    turns: tuple[Turn, ...]
    pixels: np.ndarray
    system: str | None = None


class MultipleChoice:
    """A model that ranks answers by how much likelier an image makes them than a blank one of its mean colour.

    The rank is an answer's pointwise mutual information with the image. So an answer that is likely for every image,
    because it is short or its words are common, gains nothing. Without images, the likeliest answer is first.

    Args:
        folder: A model folder that Warren wrote.
        num_threads: Compute threads of this process.

    Raises:
        ReleaseError: The folder does not load.
    """

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        self._model, self.inputs, self._tokenizer = load_alone(folder, num_threads)
        self._excluded = excluded(self._model)
        self._normalizer = ImageNormalizer(self.inputs.image).to(self._model.device)
        self._limit = context_limit(self._model.config, None)
        self._blank: dict[tuple[tuple[Turn, ...], str | None, int, str], float] = {}

    def prepare(self, prompt: Prompt, answer: str) -> PreparedQuestion:
        """Decode a prompt's images, and check that the prompt and its own answer fit the model.

        Raises:
            BadSampleError: Marks and images differ in number, an image cannot be decoded, or the text is too long.
        """
        marks = sum(turn.text.count(IMAGE_MARK) for turn in prompt.turns)
        if marks != len(prompt.images):
            raise BadSampleError(f"{marks} image marks in the text, but {len(prompt.images)} images")
        length, limit = len(self._encode((*prompt.turns, Turn("assistant", answer)), prompt.system)[0]), self._limit
        if length > limit:
            raise BadSampleError(f"question and answer have {length} tokens; the model takes {limit}")
        return PreparedQuestion(prompt.turns, self.inputs.pixels(prompt.images, max_pixels=None), prompt.system)

    def choose(self, question: PreparedQuestion, choices: Sequence[str]) -> int:
        """Return the index of the choice that the images raise most; the first of equals."""
        scores = self.log_likelihoods(question.turns, question.pixels, choices, question.system)
        if len(question.pixels):
            scores = scores - self._with_blank_images(question, choices)
        return int(scores.argmax())

    def _with_blank_images(self, question: PreparedQuestion, choices: Sequence[str]) -> Tensor:
        """Return the choices' log-likelihoods with blank images; cached, as many samples have the same question."""
        num_images = len(question.pixels)
        keys = [(question.turns, question.system, num_images, choice) for choice in choices]
        new = [choice for key, choice in zip(keys, choices, strict=True) if key not in self._blank]
        if new:
            # A blank image of the mean colour is all zeros after normalisation.
            colour = np.rint(255 * np.array(self.inputs.image.mean)).astype(np.uint8)
            size = self.inputs.image.size_px
            blank = np.broadcast_to(colour[None, :, None, None], (num_images, 3, size, size)).copy()
            values = self.log_likelihoods(question.turns, blank, new, question.system)
            self._blank |= {(*keys[0][:3], choice): float(v) for choice, v in zip(new, values, strict=True)}
        return torch.tensor([self._blank[key] for key in keys])

    @torch.inference_mode()
    def log_likelihoods(
        self, turns: tuple[Turn, ...], pixels: np.ndarray, choices: Sequence[str], system: str | None = None
    ) -> Tensor:
        """Return the log-likelihood of each choice, the end of the answer included, in nats: float32 (choices,).

        The images and the question are computed once, for all choices.

        Args:
            pixels: uint8 (images, 3, height, width).
        """
        encoded = [self._encode((*turns, Turn("assistant", choice)), system) for choice in choices]
        shared = _shared_length([ids for ids, _ in encoded], min(_first_supervised(labels) for _, labels in encoded))
        device = self._model.device
        before = self._model(
            input_ids=torch.from_numpy(encoded[0][0][:shared]).long()[None].to(device),
            pixel_values=self._normalised(pixels) if len(pixels) else None,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = before.past_key_values
        # The choices are a batch that shares the keys and values of the question.
        cache.batch_repeat_interleave(len(choices))
        ids = _padded([ids[shared:] for ids, _ in encoded], self.inputs.tokens.pad_token_id).to(device)
        labels = _padded([labels[shared:] for _, labels in encoded], IGNORED).to(device)
        lengths = torch.tensor([len(ids) for ids, _ in encoded], device=device)
        seen = torch.arange(shared + ids.shape[1], device=device) < lengths[:, None]
        after = self._model(input_ids=ids, attention_mask=seen.long(), past_key_values=cache, use_cache=True)
        first = before.logits[:, -1:].expand(len(choices), -1, -1)
        # A position's logits are of the token behind it: the first token is predicted by the shared part.
        logits = torch.cat([first, after.logits[:, :-1]], dim=1).float()
        if self._excluded is not None:  # as in training, rows outside the softmax have no probability
            logits += self._excluded.to(device)
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        return -losses.sum(dim=1).cpu()

    def _encode(self, turns: tuple[Turn, ...], system: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        segments = self.inputs.prompts.training(turns, self.inputs.tokens.eos_token, system)
        return encode(segments, self._tokenizer, self.inputs.tokens)

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        normalised: Tensor = self._normalizer(torch.from_numpy(pixels).to(self._model.device), self._model.dtype)
        return normalised


def _first_supervised(labels: np.ndarray) -> int:
    return int(np.argmax(labels != IGNORED))


def _shared_length(sequences: Sequence[np.ndarray], limit: int) -> int:
    """Return how many ids all sequences share at their start, at most `limit`; tokenizers may merge across it."""
    heads = np.stack([ids[:limit] for ids in sequences])
    differs = (heads != heads[0]).any(axis=0)
    return int(np.argmax(differs)) if differs.any() else limit


def _padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.stack(
        [torch.from_numpy(np.pad(row, (0, length - len(row)), constant_values=value)) for row in rows]
    ).long()
