"""One forward pass over the tokens that are due; returns one logit vector per row that gets a new token."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from warren.compat.transformers import handed_to_layers
from warren.data.model_inputs import Inputs
from warren.inference.detokenize import Detokenizer
from warren.inference.engine import GenerationRequest
from warren.inference.transformers_engine.attention import NAME, CacheSpan, reading
from warren.inference.transformers_engine.decode_kernel import can_attend, compiled
from warren.inference.transformers_engine.packed_linear import pack_weights
from warren.inference.transformers_engine.sampling import Sampler
from warren.inference.transformers_engine.slot_cache import SlotCache
from warren.inference.transformers_engine.vision_cache import VisionCache


@dataclass(eq=False)
class BatchRow:
    """One running or waiting request.

    Attributes:
        costs: int64 (num_prompt_tokens,), the cost of reading the prompt up to and including each token, in tokens.
        length: Positions that are in the cache.
        next_token: Sampled, but not in the cache yet.
        features: Visual features by image digest, kept until the prompt is read.
    """

    key: int
    request: GenerationRequest
    sampler: Sampler
    detokenizer: Detokenizer
    costs: np.ndarray
    length: int = 0
    next_token: int = -1
    num_generated: int = 0
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_unread(self) -> int:
        """Prompt tokens that are not in the cache yet."""
        return len(self.request.prompt_ids) - self.length

    def affordable(self, budget: int) -> int:
        """Return how many more prompt tokens fit into a budget."""
        paid = self.costs[self.length - 1] if self.length else 0
        return max(0, int(np.searchsorted(self.costs, paid + budget, side="right")) - self.length)

    def cost(self, count: int) -> int:
        """Return the cost of reading `count` more prompt tokens."""
        stop = self.length + count
        return int(self.costs[stop - 1] - (self.costs[self.length - 1] if self.length else 0))


PrefillPlan = Sequence[tuple[BatchRow, int]]
"""Rows, and how many prompt tokens of each the next step reads."""


class ModelRunner:
    """A model with its key/value cache and its cache of visual features."""

    def __init__(
        self, model: LlavaForConditionalGeneration, inputs: Inputs, cache: SlotCache, image_cache_bytes: int
    ) -> None:
        self.cache = cache
        self.features = VisionCache(model, inputs.image, image_cache_bytes)
        self._model = model
        self._embed = model.get_input_embeddings()
        self._image_token_id = inputs.tokens.image_token_id
        self._tokens_per_image = inputs.tokens.tokens_per_image
        self.device = model.lm_head.weight.device
        self._no_mask = handed_to_layers(torch.ones(1, dtype=torch.bool, device=self.device))  # so none is built
        self._image_cost = _image_cost(model, self._tokens_per_image)
        model.model.language_model.set_attn_implementation(NAME)
        pack_weights(model, self._embed)
        if can_attend(model.lm_head.weight):
            compiled()  # here, so that the first answer does not wait for it

    def costs_of(self, prompt_ids: np.ndarray) -> np.ndarray:
        """Return `BatchRow.costs` of a prompt; the cost of an image's features is at its first token."""
        is_image = prompt_ids == self._image_token_id
        # The remainder is 1 at an image's first token, and 0 where images have one token each.
        is_first = is_image & (np.cumsum(is_image) % self._tokens_per_image == 1 % self._tokens_per_image)
        return np.cumsum(1 + is_first * self._image_cost)

    def run(self, decoding: Sequence[BatchRow], plan: PrefillPlan, first_slot: int) -> Tensor:
        """Run the model over the next tokens of running answers and over chunks of prompts.

        Args:
            decoding: Rows that decode a token; they have the slots 0, 1, ….
            plan: Rows whose prompts are read; they have the slots from `first_slot` on.
            first_slot: See `plan`.

        Returns:
            Logits [B, vocabulary] of the next token of every row in `decoding`, then of every prompt read to its end.
        """
        parts = [torch.tensor([row.next_token for row in decoding], dtype=torch.long)]
        parts += [torch.from_numpy(row.request.prompt_ids[row.length : row.length + n]).long() for row, n in plan]
        embeddings = self._embedded(torch.cat(parts).to(self.device), len(decoding), plan)
        spans, positions, slots = self._layout(decoding, plan, first_slot)
        ends, end = list(range(len(decoding))), len(decoding)
        for row, count in plan:
            end += count
            if count == row.num_unread:
                ends.append(end - 1)
        logits = self._forward(embeddings, positions, slots, spans, ends)
        # Only now, so that a pass that raises leaves the rows as they were.
        for row in decoding:
            row.length += 1
        for row, count in plan:
            row.length += count
        return logits

    def _layout(
        self, decoding: Sequence[BatchRow], plan: PrefillPlan, first_slot: int
    ) -> tuple[list[CacheSpan], Tensor, Tensor]:
        """Return the spans of the pass, and the position and slot of each token, int64 [T]."""
        blocks = [(0, torch.tensor([[row.length] for row in decoding]))] if decoding else []
        for number, (row, count) in enumerate(plan):
            blocks.append((first_slot + number, torch.arange(row.length, row.length + count)[None]))
        spans, slots, start = [], [], 0
        for slot, positions in blocks:
            spans.append(CacheSpan.of(start, slot, positions, self.device))
            slots.append(torch.arange(slot, slot + len(positions)).repeat_interleave(positions.shape[1]))
            start += positions.numel()
        positions = torch.cat([positions.flatten() for _, positions in blocks])
        return spans, positions.to(self.device), torch.cat(slots).to(self.device)

    def _embedded(self, tokens: Tensor, num_decoding: int, plan: PrefillPlan) -> Tensor:
        """Return embeddings [T, E], with visual features in place of the prompts' image tokens."""
        embeddings: Tensor = self._embed(tokens)
        if features := self._features_of(plan):
            is_image = tokens == self._image_token_id
            is_image[:num_decoding] = False  # an answer may contain that token too
            embeddings = embeddings.masked_scatter(is_image[:, None], torch.cat(features).to(embeddings.dtype))
        return embeddings

    def _features_of(self, plan: PrefillPlan) -> list[Tensor]:
        """Return the visual features that the planned chunks need, in the order of their image tokens."""
        spans: list[tuple[BatchRow, int, int]] = []
        missing: dict[str, np.ndarray] = {}
        for row, count in plan:
            is_image = row.request.prompt_ids[: row.length + count] == self._image_token_id
            first, stop = int(is_image[: row.length].sum()), int(is_image.sum())
            for image in range(first // self._tokens_per_image, -(-stop // self._tokens_per_image)):
                if (digest := row.request.digests[image]) not in row.features:
                    missing[digest] = row.request.pixels[image]
            if stop > first:
                spans.append((row, first, stop))
        computed = self.features.get(missing) if missing else {}
        features = []
        for row, first, stop in spans:
            # A row keeps its own until its prompt is read, because the cache may drop them between two chunks.
            row.features |= {digest: computed[digest] for digest in row.request.digests if digest in computed}
            whole = [row.features[digest] for digest in row.request.digests if digest in row.features]
            features.append(torch.cat(whole)[first:stop] if len(whole) > 1 else whole[0][first:stop])
        return features

    def _forward(
        self, embeddings: Tensor, positions: Tensor, slots: Tensor, spans: Sequence[CacheSpan], ends: Sequence[int]
    ) -> Tensor:
        """Run the language model over embeddings [T, E]; returns logits float32 [B, vocabulary] at the B `ends`."""
        self.cache.prepare(slots, positions)
        with reading(spans):
            output = self._model.model.language_model(
                inputs_embeds=embeddings[None],
                attention_mask=self._no_mask,
                position_ids=positions[None],
                past_key_values=self.cache,
                use_cache=True,
            )
        hidden = output.last_hidden_state[0, torch.tensor(ends, dtype=torch.long, device=self.device)]
        logits: Tensor = self._model.lm_head(hidden)
        return logits.float()


def _image_cost(model: LlavaForConditionalGeneration, tokens_per_image: int) -> int:
    """Return how many prompt tokens take about as long as one image's features, judged by the weights of both."""
    per_token = sum(weight.numel() for weight in model.model.language_model.layers.parameters())
    per_patch = sum(weight.numel() for weight in model.model.vision_tower.parameters())
    cost: int = round(tokens_per_image * per_patch / per_token)
    return cost
