"""Choosing between given answers: which of them a model finds likeliest after a picture and a question."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from warren.data.sample import Turn
from warren.data.template import IGNORED, encode
from warren.inference.offline import load_alone
from warren.inference.prompts import Prompt


class Chooser:
    """A model that ranks answers by the mean log-likelihood of their tokens, the end of the answer included.

    Args:
        folder: A model folder that Warren wrote.
        num_threads: Compute threads of this process.

    Raises:
        ReleaseError: The folder does not load.
    """

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        self._model, self.inputs, self._tokenizer = load_alone(folder, num_threads)

    def choose(self, prompt: Prompt, choices: Sequence[str]) -> int:
        """Return the position of the likeliest choice, the first of equals."""
        return int(self.log_likelihoods(prompt, choices).argmax())

    @torch.inference_mode()
    def log_likelihoods(self, prompt: Prompt, choices: Sequence[str]) -> Tensor:
        """Return the mean log-likelihood of each choice's tokens, float32 (choices,).

        The picture and the question are computed once, for all choices.

        Raises:
            BadSampleError: Marks and images differ in number, or a picture cannot be decoded.
        """
        encoded = [self._encode((*prompt.turns, Turn("assistant", choice))) for choice in choices]
        shared = _shared_length([ids for ids, _ in encoded], min(_first_supervised(labels) for _, labels in encoded))
        device, pixels = self._model.device, self.inputs.pixels(prompt.images)
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
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        means: Tensor = -losses.sum(dim=1) / (labels != IGNORED).sum(dim=1)
        return means.cpu()

    def _encode(self, turns: tuple[Turn, ...]) -> tuple[np.ndarray, np.ndarray]:
        segments = self.inputs.prompts.training(turns, self.inputs.tokens.eos_token)
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
