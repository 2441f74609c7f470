"""Choosing between given answers: for which of them an image speaks most, by a model's likelihoods."""

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
from warren.inference.limits import context_limit
from warren.inference.prompts import Prompt
from warren.inference.transformers_engine.offline import load_alone
from warren.models.head import excluded


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with its decoded images.

    Attributes:
        turns: What is asked; one turn of the user.
        pixels: uint8 (images, 3, height, width).
        system: Replaces the template's system text; None keeps it.
    """

    turns: tuple[Turn, ...]
    pixels: np.ndarray
    system: str | None = None


class MultipleChoice:
    """A model that ranks answers by how much likelier an image makes them than a blank one of its mean colour.

    That is their pointwise mutual information with the image: an answer that is likely whatever is shown, being
    short or worded as most are, gains nothing by it. Without images, the likeliest answer is first.

    Args:
        folder: A model folder that Warren wrote.
        num_threads: Compute threads of this process.

    Raises:
        ReleaseError: The folder does not load.
    """

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        self._model, self.inputs, self._tokenizer = load_alone(folder, num_threads)
        self._excluded = excluded(self._model)
        self._limit = context_limit(self._model.config, None)
        self._blank: dict[tuple[tuple[Turn, ...], str | None, int, str], float] = {}

    def prepare(self, prompt: Prompt, answer: str) -> PreparedQuestion:
        """Decode a prompt's images, and check that it and its own answer can be asked.

        Raises:
            BadSampleError: Marks and images differ in number, an image cannot be decoded, or it is too long.
        """
        marks = sum(turn.text.count(IMAGE_MARK) for turn in prompt.turns)
        if marks != len(prompt.images):
            raise BadSampleError(f"{marks} image marks in the text, but {len(prompt.images)} images")
        length, limit = len(self._encode((*prompt.turns, Turn("assistant", answer)), prompt.system)[0]), self._limit
        if length > limit:
            raise BadSampleError(f"question and answer have {length} tokens; the model takes {limit}")
        return PreparedQuestion(prompt.turns, self.inputs.pixels(prompt.images, max_pixels=None), prompt.system)

    def choose(self, shown: PreparedQuestion, choices: Sequence[str]) -> int:
        """Return the position of the choice that the images speak for most, the first of equals."""
        found = self.log_likelihoods(shown.turns, shown.pixels, choices, shown.system)
        if len(shown.pixels):
            found = found - self._with_blank_images(shown, choices)
        return int(found.argmax())

    def _with_blank_images(self, shown: PreparedQuestion, choices: Sequence[str]) -> Tensor:
        """Return the choices' log-likelihoods, of which most are known: many samples ask the same."""
        num_images = len(shown.pixels)
        keys = [(shown.turns, shown.system, num_images, choice) for choice in choices]
        new = [choice for key, choice in zip(keys, choices, strict=True) if key not in self._blank]
        if new:
            colour = np.rint(255 * np.array(self.inputs.image.mean)).astype(np.uint8)
            size = self.inputs.image.size_px
            blank = np.broadcast_to(colour[None, :, None, None], (num_images, 3, size, size)).copy()
            found = self.log_likelihoods(shown.turns, blank, new, shown.system)
            self._blank |= {(*keys[0][:3], choice): float(v) for choice, v in zip(new, found, strict=True)}
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
        cache.batch_repeat_interleave(len(choices))
        ids = _padded([ids[shared:] for ids, _ in encoded], self.inputs.tokens.pad_token_id).to(device)
        labels = _padded([labels[shared:] for _, labels in encoded], IGNORED).to(device)
        lengths = torch.tensor([len(ids) for ids, _ in encoded], device=device)
        seen = torch.arange(shared + ids.shape[1], device=device) < lengths[:, None]
        after = self._model(input_ids=ids, attention_mask=seen.long(), past_key_values=cache, use_cache=True)
        first = before.logits[:, -1:].expand(len(choices), -1, -1)
        logits = torch.cat([first, after.logits[:, :-1]], dim=1).float()
        if self._excluded is not None:  # the likelihoods are those that were trained
            logits += self._excluded.to(device)
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        return -losses.sum(dim=1).cpu()

    def _encode(self, turns: tuple[Turn, ...], system: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        segments = self.inputs.prompts.training(turns, self.inputs.tokens.eos_token, system)
        return encode(segments, self._tokenizer, self.inputs.tokens)

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.inputs.image.mean, self.inputs.image.std))
        scaled = (torch.from_numpy(pixels).float() / 255.0 - mean) / std
        return scaled.to(self._model.device, self._model.dtype)


def _first_supervised(labels: np.ndarray) -> int:
    return int(np.argmax(labels != IGNORED))


def _shared_length(sequences: Sequence[np.ndarray], limit: int) -> int:
    """Return how many ids all sequences begin with, at most `limit`: a tokenizer may merge across it."""
    heads = np.stack([ids[:limit] for ids in sequences])
    differs = (heads != heads[0]).any(axis=0)
    return int(np.argmax(differs)) if differs.any() else limit


def _padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.stack(
        [torch.from_numpy(np.pad(row, (0, length - len(row)), constant_values=value)) for row in rows]
    ).long()
