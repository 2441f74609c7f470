"""One forward pass over the rows that are due: token ids and features in, one logit vector per row out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from warren.data.inputs import Inputs
from warren.inference.cache import SlotCache
from warren.inference.detokenize import Detokenizer
from warren.inference.engine import GenerationRequest
from warren.inference.features import ImageFeatures
from warren.inference.sampling import Sampler


@dataclass(eq=False)
class Row:
    """One running request. `length` positions are in the cache; `next_token` is chosen but not yet there."""

    key: int
    request: GenerationRequest
    sampler: Sampler
    detokenizer: Detokenizer
    length: int = 0
    next_token: int = -1
    num_generated: int = 0
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_unread(self) -> int:
        """Prompt tokens that are not in the cache yet."""
        return len(self.request.prompt_ids) - self.length


class Runner:
    """A model with its key/value slots and its image features."""

    def __init__(
        self, model: LlavaForConditionalGeneration, inputs: Inputs, cache: SlotCache, image_cache_bytes: int
    ) -> None:
        self.cache = cache
        self.features = ImageFeatures(model, inputs.image, image_cache_bytes)
        self._model = model
        self._embed = model.get_input_embeddings()
        self._image_token_id = inputs.tokens.image_token_id
        self._tokens_per_image = inputs.tokens.tokens_per_image
        self._device = model.lm_head.weight.device

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """Put the rows' next tokens into slots 0, 1, …; returns logits [B, vocabulary] of what follows."""
        ids = torch.tensor([[row.next_token] for row in rows], device=self._device)
        positions = torch.tensor([[row.length] for row in rows], device=self._device)
        logits = self._forward(0, self._embed(ids), positions, positions, [1] * len(rows))
        for row in rows:
            row.length += 1
        return logits

    def read(self, first_row: int, plan: Sequence[tuple[Row, int]]) -> Tensor:
        """Read the next prompt tokens of each row into the slots from `first_row` on.

        Returns:
            Logits [B, vocabulary] of each row's last token read.
        """
        counts = [count for _, count in plan]
        width = max(counts)
        ids = np.zeros((len(plan), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        write_at = np.full_like(ids, self.cache.capacity_tokens)
        for index, (row, count) in enumerate(plan):
            start = row.length
            ids[index, :count] = row.request.prompt_ids[start : start + count]
            positions[index, :count] = write_at[index, :count] = np.arange(start, start + count)
        tokens = torch.from_numpy(ids).to(self._device)
        embeddings = self._embed(tokens)
        features = self._features_of(plan)
        if features:
            mask = (tokens == self._image_token_id).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(mask, torch.cat(features).to(embeddings.dtype))
        at, where = (torch.from_numpy(array).to(self._device) for array in (positions, write_at))
        logits = self._forward(first_row, embeddings, at, where, counts)
        for row, count in plan:
            row.length += count
        return logits

    def _features_of(self, plan: Sequence[tuple[Row, int]]) -> list[Tensor]:
        """Return the visual features that the planned pieces need, in the order of their image tokens."""
        spans: list[tuple[Row, int, int]] = []
        missing: dict[str, np.ndarray] = {}
        for row, count in plan:
            is_image = row.request.prompt_ids[: row.length + count] == self._image_token_id
            first, stop = int(is_image[: row.length].sum()), int(is_image.sum())
            for image in range(first // self._tokens_per_image, -(-stop // self._tokens_per_image)):
                if (digest := row.request.digests[image]) not in row.features:
                    missing[digest] = row.request.pixels[image]
            if stop > first:
                spans.append((row, first, stop))
        found = self.features.get(missing) if missing else {}
        features = []
        for row, first, stop in spans:
            # A row keeps its own until its prompt is read: the cache may drop them between two pieces.
            row.features |= {digest: found[digest] for digest in row.request.digests if digest in found}
            whole = [row.features[digest] for digest in row.request.digests if digest in row.features]
            features.append(torch.cat(whole)[first:stop] if len(whole) > 1 else whole[0][first:stop])
        return features

    def _forward(
        self, first_row: int, embeddings: Tensor, positions: Tensor, write_at: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """Run the language model.

        Shape letters: B rows, T new positions per row, L longest row, E hidden.

        Args:
            first_row: The rows' first slot.
            embeddings: [B, T, E].
            positions: int64 [B, T]; 0 for padding.
            write_at: int64 [B, T].
            counts: New positions of each row, padding excluded.

        Returns:
            Logits of each row's last new position, float32 [B, vocabulary].
        """
        length = int(positions.max()) + 1
        self.cache.prepare(first_row, write_at, length)
        # Everything at or before a position was written: one comparison is causality and padding at once.
        mask = torch.arange(length, device=self._device) <= positions[:, None, :, None]
        output = self._model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        last = torch.tensor(counts, device=self._device) - 1
        hidden = output.last_hidden_state[torch.arange(len(counts), device=self._device), last]
        logits: Tensor = self._model.lm_head(hidden).float()
        return logits
