"""The parity certificate: compares what an engine makes of the golden cases with what the training side made of them.

Every difference is a `ReleaseError` of one line: the case, what differs, and both values. Ids, pixels and the
vocabulary must be equal. Log-probabilities may differ by a bound, because sums are rounded in another order. The tokens
of an answer must be equal up to the first step at which the two likeliest tokens are closer to each other than rounding
can move them, because after another token everything else is another, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from warren.data.golden_cases import GoldenCase, GoldenCases, GoldenStep, channel_means
from warren.data.model_inputs import Inputs
from warren.errors import ReleaseError
from warren.inference.engine import Completion, GenerationRequest, SamplingParams, TokenLogprob

FLOAT32_BOUND = 1e-4
"""Between two implementations on a CPU that both compute in float32."""

GPU_FLOAT32_BOUND = 2e-2
"""On a GPU, whose convolutions round to TF32, and for vLLM's kernels."""

ROUNDINGS = 3
"""For weights of fewer bits: how many times the cases' own `rounding`, as every kernel rounds in its own order."""

_MEANS_BOUND = 1e-3  # float32 rounds them by 1e-6; swapped means differ by 1e-2 and more
_SPARE_ALTERNATIVES = 5  # beyond those of the cases, since rounding may put others in front of the last


def logprob_bound(golden: GoldenCases, engine: str, on_gpu: bool) -> float:
    """Return how far an engine's log-probabilities may lie from the golden cases'.

    Args:
        golden: They say in which type the engine computes, and what that costs.
        engine: `transformers` or `vllm`.
        on_gpu: Whether it computes on a GPU.
    """
    exact = GPU_FLOAT32_BOUND if on_gpu or engine != "transformers" else FLOAT32_BOUND
    return exact if golden.dtype == "float32" else max(exact, ROUNDINGS * golden.rounding)


@dataclass(frozen=True)
class ParityReport:
    """What a passed certificate was about.

    Attributes:
        num_cases: Cases that were compared.
        num_left_out: Cases that are too long for this engine's context.
        largest_difference: Of two log-probabilities of the same token.
    """

    num_cases: int
    num_left_out: int
    largest_difference: float


def cases_within(golden: GoldenCases, max_context_tokens: int) -> list[GoldenCase]:
    """Return the cases that fit into a context together with their answers."""
    return [case for case in golden.cases if len(case.prompt_ids) + len(case.steps) < max_context_tokens]


def check_vocabulary(golden: GoldenCases, inputs: Inputs, tokenizer: Tokenizer) -> None:
    """Compare the size of the vocabulary and the token that ends an answer.

    Raises:
        ReleaseError: One differs.
    """
    size, eos = tokenizer.get_vocab_size(with_added_tokens=True), tokenizer.token_to_id(inputs.tokens.eos_token)
    if size != golden.vocab_size:
        raise _difference("all golden cases", "number of tokens in the vocabulary", size, golden.vocab_size)
    if eos != golden.eos_token_id:
        raise _difference("all golden cases", "id of the token that ends an answer", eos, golden.eos_token_id)


def check_prompt(case: GoldenCase, prompt_ids: np.ndarray) -> None:
    """Compare the ids of a case's prompt.

    Raises:
        ReleaseError: They differ.
    """
    here, expected = prompt_ids.tolist(), list(case.prompt_ids)
    if here == expected:
        return
    shared = min(len(here), len(expected))
    place = next((place for place in range(shared) if here[place] != expected[place]), shared)
    own_id, golden_id = (ids[place] if place < len(ids) else "the end" for ids in (here, expected))
    raise _difference(case.name, f"prompt id {place} (of {len(here)} and {len(expected)})", own_id, golden_id)


def check_request(case: GoldenCase, request: GenerationRequest, inputs: Inputs) -> None:
    """Compare what a case's question became on its way to the model: pixels, then ids.

    Raises:
        ReleaseError: They differ.
    """
    means = channel_means(request.pixels, inputs.image)
    for number, expected in enumerate(case.pixel_digests):
        if number >= len(request.digests):
            raise _difference(case.name, "number of images", len(request.digests), len(case.pixel_digests))
        here = request.digests[number]
        if here != expected:
            raise _difference(case.name, f"SHA-256 of image {number}'s pixels", here[:12], expected[:12])
        if not np.allclose(means[number], case.channel_means[number], rtol=0, atol=_MEANS_BOUND):
            here_means, case_means = (_rounded(each[number]) for each in (means, case.channel_means))
            raise _difference(case.name, f"means of image {number}'s normalised channels", here_means, case_means)
    check_prompt(case, request.prompt_ids)


def sampling_of(case: GoldenCase) -> SamplingParams:
    """Return how a case's answer is asked for: one token further than the case goes, so that its end shows."""
    num_logprobs = max(len(step.token_ids) for step in case.steps) + _SPARE_ALTERNATIVES
    return SamplingParams(max_new_tokens=len(case.steps) + 1, num_logprobs=num_logprobs)


def check_answer(case: GoldenCase, answer: Completion, eos_token_id: int | None, bound: float) -> float:
    """Compare an answer, step by step, and return the largest difference of two log-probabilities.

    Args:
        case: What is expected.
        answer: To the case's question, generated as `sampling_of` says.
        eos_token_id: Ends an answer.
        bound: The largest difference allowed; see `logprob_bound`.

    Raises:
        ReleaseError: A log-probability or a token differs.
    """
    largest = 0.0
    for number, step in enumerate(case.steps):
        if number >= len(answer.token_ids) or number >= len(answer.logprobs):
            raise _difference(case.name, "number of the answer's tokens", len(answer.token_ids), len(case.steps))
        largest = max(largest, _check_logprobs(case.name, number, step, answer.logprobs[number], bound))
        token_id = answer.token_ids[number]
        if token_id == step.token_id:
            continue
        if step.margin > 2 * bound:
            raise _difference(case.name, f"token {number} of the answer", token_id, step.token_id)
        return largest
    if case.steps[-1].token_id == eos_token_id and len(answer.token_ids) != len(case.steps):
        raise _difference(case.name, "number of the answer's tokens", len(answer.token_ids), len(case.steps))
    return largest


def _check_logprobs(name: str, number: int, step: GoldenStep, here: TokenLogprob, bound: float) -> float:
    """Compare the likeliest tokens of one step and return the largest difference."""
    by_token = dict(here.alternatives)
    least = min(by_token.values(), default=-np.inf)  # a token that is not reported is less likely than all that are
    largest = 0.0
    for token_id, expected in zip(step.token_ids, step.logprobs, strict=True):
        logprob = by_token.get(token_id, min(expected, least))
        largest = max(largest, abs(logprob - expected))
        if not abs(logprob - expected) <= bound:  # also if it is not a number
            what = f"log-probability of token {token_id} at step {number} of the answer"
            raise _difference(name, what, f"{logprob:.6f}", f"{expected:.6f}", f" (they may differ by {bound:g})")
    return largest


def _rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _difference(case: str, what: str, here: object, expected: object, bound: str = "") -> ReleaseError:
    return ReleaseError(
        f"golden case {case!r}: {what} is {here} here and {expected} in training{bound}: the release is not served; "
        "serve it with the code and packages that trained it, or release the checkpoint again"
    )
