"""The loss of a micro-batch: a sum over supervised tokens, computed where there are labels and nowhere else."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from warren.compat.torch import replace_forward, tensor_of
from warren.compat.transformers import attention_of, image_features
from warren.data.batch import MicroBatch
from warren.data.model_inputs import Inputs
from warren.data.template import IGNORED
from warren.errors import ModelError
from warren.models.head import Head, excluded
from warren.models.image_normalizer import ImageNormalizer
from warren.train import packed_attention

_MAX_LOGITS = 1 << 23
"""Logits that are in memory at once: 32 MiB in float32, which fit into caches."""
_MIN_ROWS = 256
"""Tokens that are computed together even if they give more logits: products of fewer rows are slow."""


class Objective(nn.Module):
    """Wraps the model so that DeepSpeed sees one module whose forward is the loss.

    Args:
        model: A `LlavaForConditionalGeneration`.
        inputs: Its image normalisation.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model: Any = model
        # Under ZeRO-3 the head's matrix is whole only while the head itself runs, so the loss is computed inside it.
        head: Any = self.model.lm_head
        replace_forward(head, partial(_head, head, Head.of(self.model.config).divisor))
        self._pad_token_id = inputs.tokens.pad_token_id
        self._tokens_per_image = inputs.tokens.tokens_per_image
        self._image_size_px = inputs.image.size_px
        self.image_normalizer = ImageNormalizer(inputs.image)
        self.excluded: torch.Tensor | None
        self.register_buffer("excluded", excluded(self.model), persistent=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        lengths: tuple[int, ...],
        places: torch.Tensor,
        predicting: torch.Tensor,
        targets: torch.Tensor,
        pixels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the summed cross-entropy over supervised tokens, a scalar.

        The softmax is over the rows that the language model had before it was extended (`Head.unpredicted_ids`).

        Every module runs in every call, also for text-only and empty micro-batches, and in the same order: ranks
        that skip a module leave the others waiting in ZeRO-3's gathers, and ZeRO-2 adds gradients up over the ranks
        in the order in which they become ready, whichever parameters they belong to. The head is called once,
        however many tokens are supervised.

        Args:
            input_ids: int64 (sequences, length), right-padded.
            positions: int64 (sequences, length), each token's place in its sample.
            attention_mask: int64 (sequences, length), 1 for tokens; None for packed sequences, whose samples are told
                apart by the positions.
            lengths: Tokens of each sample, in the order of the tokens.
            places: int64 (tokens,), where they are among the flat slots; the other slots are padding.
            predicting: int64 (supervised tokens,), which tokens' successors are supervised.
            targets: int64 (supervised tokens,), those successors.
            pixels: uint8 (images, 3, height, width).
        """
        if input_ids.numel() == 0:
            input_ids = input_ids.new_full((1, 2), self._pad_token_id)
            places = torch.arange(2, device=input_ids.device)
            attention_mask, positions, lengths = torch.ones_like(input_ids), places[None], (2,)
        embeddings = self._embed(input_ids, pixels)
        if self._is_flat:
            embeddings, positions = embeddings.flatten(0, 1)[None, places], positions.reshape(1, -1)[:, places]
            attention_mask = (
                packed_attention.lengths_mask(lengths) if self._attention == packed_attention.NAME else None
            )
        else:
            predicting = places[predicting]
        hidden = self.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=positions if self._is_flat or attention_mask is None else None,
            use_cache=False,
        ).last_hidden_state
        loss: torch.Tensor = self.model.lm_head(hidden.flatten(0, 1)[predicting], targets, self.excluded)
        return loss

    def _embed(self, input_ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Return embeddings with the visual features in place. Without images, a blank one runs with weight zero."""
        embeddings = self.model.get_input_embeddings()(input_ids)
        if len(pixels) == 0:
            blank = pixels.new_zeros((1, 3, self._image_size_px, self._image_size_px))
            unchanged: torch.Tensor = embeddings + 0.0 * self._features(blank).sum()
            return unchanged
        features = self._features(pixels).flatten(0, -2).to(embeddings.dtype)
        if len(features) != len(pixels) * self._tokens_per_image:
            raise ModelError(
                f"{len(pixels)} images have {len(features)} visual features, but {self._tokens_per_image} image "
                "tokens each: the model is not the one the samples were encoded for"
            )
        is_image = input_ids == self.model.config.image_token_id
        filled: torch.Tensor = embeddings.masked_scatter(is_image[..., None], features)
        return filled

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        return torch.cat(list(image_features(self.model, self.image_normalizer(pixels, dtype))))

    @property
    def _attention(self) -> str:
        return attention_of(self.model.model.language_model.config)

    @property
    def _is_flat(self) -> bool:
        """Whether samples follow each other without padding, as kernels for different lengths need them."""
        return self._attention == packed_attention.NAME or self._attention.startswith("flash")


def to_tensors(micro_batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """Move a micro-batch to the training device as `Objective.forward`'s arguments.

    The places of supervised tokens and samples are computed here, on the host: if a device had to report how many there
    are, the host would wait for all earlier work of the device.
    """
    send: Callable[[np.ndarray], torch.Tensor] = partial(_send, device=device)
    positions, is_token = _positions(micro_batch)
    labels = micro_batch.labels.reshape(-1)
    supervised = np.flatnonzero(labels != IGNORED)
    places = np.flatnonzero(is_token)
    return {
        "input_ids": send(micro_batch.input_ids.astype(np.int64)),
        "positions": send(positions),
        "attention_mask": None if micro_batch.is_packed else send(is_token.astype(np.int64)),
        "lengths": tuple(micro_batch.lengths.tolist()),
        "places": send(places),
        "predicting": send(np.searchsorted(places, supervised - 1)),
        "targets": send(labels[supervised].astype(np.int64)),
        "pixels": send(micro_batch.pixels),
    }


def _positions(micro_batch: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return each slot's place in its sample (padding counts from 0 anew), and whether it holds a token."""
    num_sequences, length = micro_batch.input_ids.shape
    positions = np.tile(np.arange(length, dtype=np.int64), (num_sequences, 1))
    used = np.zeros(num_sequences, dtype=np.int64)
    for sequence, tokens in zip(micro_batch.sequences, micro_batch.lengths, strict=True):
        used[sequence] += tokens
        positions[sequence, used[sequence] :] = np.arange(length - used[sequence])
    return positions, np.arange(length) < used[:, None]


def _send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = tensor_of(array)  # arrays from Ray's object store are read-only
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _head(
    head: nn.Linear,
    divisor: float,
    hidden: torch.Tensor,
    targets: torch.Tensor | None = None,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return logits, or with targets their summed cross-entropy, in float32.

    Args:
        head: Its matrix is read here, while it is whole.
        divisor: Of the logits.
        hidden: (tokens, width).
        targets: int64 (tokens,).
        excluded: (vocabulary,), added to the logits: -inf for tokens outside the softmax.
    """
    hidden = hidden if divisor == 1.0 else hidden / divisor
    bias = head.bias if excluded is None else excluded.to(hidden.dtype)
    if excluded is not None and head.bias is not None:
        bias = head.bias + bias
    if targets is None:
        return functional.linear(hidden, head.weight, bias)
    rows_at_once = max(_MIN_ROWS, _MAX_LOGITS // head.out_features)
    if len(targets) > rows_at_once:
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows_at_once, acc_policy="accurate")
        return functional.linear_cross_entropy(
            hidden, head.weight, targets, linear_bias=bias, reduction="sum", options=options
        )
    logits = functional.linear(hidden, head.weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, targets, reduction="sum")
