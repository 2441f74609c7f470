"""From logits to tokens. Every request has its own random numbers, so other requests never change its answer."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from warren.inference.engine import SamplingParams, TokenLogprob


@dataclass(frozen=True)
class SampledToken:
    """The token chosen for one row, with its log-probability if the request wants it."""

    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """The sampling state of one request.

    The repetition penalty counts the tokens of prompt and answer, as transformers does; an image counts as the image
    token, which is never sampled. Bunny replaces the image token by token 0 in the ids that the penalty sees, so a
    prompt with an image also penalises token 0 (`!` in most of its tokenizers). Warren does not, because that token
    was never in the prompt.
    """

    def __init__(self, params: SamplingParams, prompt_ids: np.ndarray) -> None:
        self.params = params
        # A generator of its own: drawing from torch's would make answers depend on the rows beside them.
        self._random = random.Random(params.seed)
        self._generated: Counter[int] = Counter()
        self._seen = torch.tensor(sorted(set(prompt_ids.tolist()))) if params.repetition_penalty != 1.0 else None

    def record(self, token_id: int) -> None:
        """Count a token that was generated."""
        if self.params.has_penalties:
            self._generated[token_id] += 1

    def penalised(self, logits: Tensor) -> Tensor:
        """Return logits [vocabulary] after the request's penalties."""
        params = self.params
        if not params.has_penalties:
            return logits
        logits = logits.clone()
        own = torch.tensor(list(self._generated), dtype=torch.long, device=logits.device)
        if self._seen is not None:
            seen = torch.cat([self._seen.to(logits.device), own])
            values = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
        if len(own) and (params.presence_penalty or params.frequency_penalty):
            counts = torch.tensor(list(self._generated.values()), dtype=logits.dtype, device=logits.device)
            logits[own] -= params.presence_penalty + params.frequency_penalty * counts
        return logits

    def draw(self, logits: Tensor) -> int:
        """Choose a token from penalised logits [vocabulary]."""
        params = self.params
        if params.temperature == 0.0:
            return int(logits.argmax())
        # In float64, because float32 would overflow at very low temperatures.
        scaled = (logits.double() - logits.max().double()) / params.temperature
        if 0 < params.top_k < len(scaled):
            scaled, tokens = scaled.topk(params.top_k)
        else:
            scaled, tokens = scaled.sort(descending=True)
        total = scaled.softmax(-1).cumsum(-1)
        # A token stays when what comes before it has less than top_p; the likeliest always stays.
        kept = max(1, int((total < params.top_p).sum()) + 1) if params.top_p < 1.0 else len(total)
        total = total[:kept]
        point = self._random.random() * float(total[-1])
        last = int(torch.searchsorted(total, total[-1]))  # later tokens have no probability
        # Rounding can put the point behind the last sum.
        return int(tokens[min(int(torch.searchsorted(total, point, right=True)), last)])


def choose(logits: Tensor, samplers: Sequence[Sampler], unsampled: Tensor | None = None) -> list[SampledToken | None]:
    """Choose one token per row.

    Args:
        logits: float [B, vocabulary]; those of unsampled tokens are overwritten.
        samplers: One per row.
        unsampled: int64, tokens that are never chosen and have no probability; None if there are none.

    Returns:
        One token per row; None where the logits are not finite.
    """
    is_finite = torch.isfinite(logits.sum(dim=-1))
    if unsampled is not None:
        logits.index_fill_(-1, unsampled, -torch.inf)
    best = logits.max(dim=-1)
    finite = is_finite.tolist()
    greedy = best.indices.tolist()
    tokens: list[SampledToken | None] = []
    for row, sampler in enumerate(samplers):
        if not finite[row]:
            tokens.append(None)
        elif sampler.params.is_plain_greedy:
            tokens.append(SampledToken(greedy[row]))
        else:
            token_id = sampler.draw(sampler.penalised(logits[row]))
            tokens.append(SampledToken(token_id, _logprob(logits[row], token_id, sampler.params.num_logprobs)))
    for sampler, token in zip(samplers, tokens, strict=True):
        if token is not None:
            sampler.record(token.token_id)
    return tokens


def _logprob(logits: Tensor, token_id: int, num_alternatives: int | None) -> TokenLogprob | None:
    if num_alternatives is None:
        return None
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(num_alternatives, int((logprobs > -torch.inf).sum())))
    alternatives = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), alternatives)
