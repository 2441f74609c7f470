"""Warren's sampling parameters as vLLM's, and vLLM's token ids as Warren's deltas."""

from collections.abc import Collection
from typing import Any

from warren.compat.vllm import delta_sampling
from warren.inference.detokenize import Detokenizer
from warren.inference.engine import FinishReason, SamplingParams, TokenDelta, TokenLogprob

_LOWEST_BIAS = -100.0
"""The lowest logit bias that vLLM takes: it leaves e^-100 of a token's probability."""

_LOWEST_TOP_P = 1e-6
"""vLLM refuses 0, which keeps the likeliest token alone; so does this."""


def vllm_sampling(params: SamplingParams, unsampled_ids: Collection[int]) -> Any:
    """Return vLLM's `SamplingParams`; text and stop strings are left to Warren's detokenizer.

    Args:
        params: How the next token is chosen.
        unsampled_ids: Tokens that are never chosen.
    """
    return delta_sampling(
        max_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_p=max(params.top_p, _LOWEST_TOP_P),
        top_k=params.top_k,
        seed=params.seed,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logprobs=params.num_logprobs,
        ignore_eos=params.ignore_eos,
        logit_bias=dict.fromkeys(unsampled_ids, _LOWEST_BIAS),
    )


class DeltaBuilder:
    """Turns vLLM's outputs for one request into deltas.

    Args:
        params: The request's.
        detokenizer: Writes the text of this one answer, and finds stop strings in it.
        eos_id: The end-of-sequence token; None where the model has none.
        unsampled_ids: Tokens that are never chosen, and so never reported as alternatives.
    """

    def __init__(
        self, params: SamplingParams, detokenizer: Detokenizer, eos_id: int | None, unsampled_ids: Collection[int]
    ) -> None:
        self._params, self._detokenizer = params, detokenizer
        self._eos_id, self._unsampled_ids = eos_id, frozenset(unsampled_ids)

    def build(self, output: Any) -> TokenDelta:
        """Return the delta of vLLM's next output; a stop string may cut it."""
        text, num_kept = "", 0
        reason: FinishReason | None = {"stop": "stop", "length": "length"}.get(output.finish_reason)  # type: ignore[assignment]
        for token in output.token_ids:
            num_kept += 1
            if token != self._eos_id or self._params.ignore_eos:
                text += self._detokenizer.push(token)
            if self._detokenizer.is_stopped:
                reason = "stop"
                break
        if reason:
            text += self._detokenizer.flush()
            reason = "stop" if self._detokenizer.is_stopped else reason
        return TokenDelta(text, tuple(output.token_ids[:num_kept]), self._logprobs(output, num_kept), reason)

    def _logprobs(self, output: Any, count: int) -> tuple[TokenLogprob, ...]:
        num_alternatives = self._params.num_logprobs
        if num_alternatives is None or not output.logprobs:
            return ()
        logprobs = []
        for token, by_token in zip(output.token_ids[:count], output.logprobs[:count], strict=True):
            sampled = ((i, float(one.logprob)) for i, one in by_token.items() if i not in self._unsampled_ids)
            ranked = sorted(sampled, key=lambda pair: -pair[1])
            logprobs.append(TokenLogprob(token, float(by_token[token].logprob), tuple(ranked[:num_alternatives])))
        return tuple(logprobs)
