"""The loss of a micro-batch: a sum over supervised tokens, computed where there are labels and nowhere else."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from warren.data.batch import MicroBatch
from warren.data.inputs import Inputs
from warren.data.template import IGNORED


class Objective(nn.Module):
    """Wraps the model so that DeepSpeed sees one module whose forward is the loss.

    Args:
        model: A `LlavaForConditionalGeneration`.
        inputs: Its image normalisation.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model: Any = model
        self._pad_token_id = inputs.tokens.pad_token_id
        self._image_size_px = inputs.image.size_px
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", _per_channel(inputs.image.mean), persistent=False)
        self.register_buffer("std", _per_channel(inputs.image.std), persistent=False)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor, pixels: torch.Tensor
    ) -> torch.Tensor:
        """Return the summed cross-entropy over supervised tokens, a scalar.

        Every module runs in every call, also for text-only and empty micro-batches, and in the same order: ranks
        that skip a module leave the others waiting in ZeRO-3's gathers, and ZeRO-2 adds gradients up over the ranks
        in the order in which they become ready, whichever parameters they belong to.

        Args:
            input_ids: int64 (samples, length), right-padded.
            labels: int64 (samples, length).
            lengths: int64 (samples,).
            pixels: uint8 (images, 3, height, width).
        """
        if len(input_ids) == 0:
            input_ids = input_ids.new_full((1, 2), self._pad_token_id)
            labels = torch.full_like(input_ids, IGNORED)
            lengths = input_ids.new_full((1,), 2)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.model.model(
            **self._embedded(input_ids, pixels),
            attention_mask=(positions < lengths[:, None]).long(),
            use_cache=False,
        ).last_hidden_state
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        logits = self.model.lm_head(hidden[:, :-1][supervised])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(logits, targets[supervised], reduction="sum")

    def _embedded(self, input_ids: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the model's inputs; where there is no picture, a blank one goes through the tower for nothing."""
        if len(pixels):
            return {"input_ids": input_ids, "pixel_values": self._normalise(pixels)}
        embeddings = self.model.get_input_embeddings()(input_ids)  # before the tower, as the model itself does
        blank = self._normalise(pixels.new_zeros((1, 3, self._image_size_px, self._image_size_px)))
        return {"inputs_embeds": embeddings + 0.0 * _features(self.model.model.get_image_features(blank)).sum()}

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        return ((pixels.float() / 255.0 - self.mean) / self.std).to(dtype)


def to_tensors(micro_batch: MicroBatch, device: torch.device) -> dict[str, torch.Tensor]:
    """Move a micro-batch to the training device as `Objective.forward`'s arguments."""
    return {
        "input_ids": torch.from_numpy(micro_batch.input_ids).long().to(device, non_blocking=True),
        "labels": torch.from_numpy(micro_batch.labels).long().to(device, non_blocking=True),
        "lengths": torch.from_numpy(micro_batch.lengths).long().to(device, non_blocking=True),
        "pixels": torch.from_numpy(micro_batch.pixels).to(device, non_blocking=True),
    }


def _features(output: Any) -> torch.Tensor:
    pooled: Any = getattr(output, "pooler_output", output)
    features: torch.Tensor = torch.cat(list(pooled)) if isinstance(pooled, list | tuple) else pooled
    return features


def _per_channel(values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
