"""Encoding of a conversation as a generation request, for evaluation and tests."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from warren.data.model_inputs import Inputs
from warren.data.sample import Turn
from warren.inference.engine import GenerationRequest, SamplingParams


@dataclass(frozen=True)
class Prompt:
    """A conversation that the model is to continue.

    Attributes:
        turns: They alternate and begin and end with the user's; the n-th image mark takes the n-th image.
        images: Encoded images of a dataset, whose size was checked at ingest.
        system: Replaces the template's system text; None keeps it.
    """

    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    system: str | None = None


def encode_request(prompt: Prompt, inputs: Inputs, tokenizer: Tokenizer, sampling: SamplingParams) -> GenerationRequest:
    """Tokenise a prompt and decode its images.

    Raises:
        BadSampleError: Marks and images differ in number, or an image cannot be decoded.
    """
    ids = inputs.encode_prompt(prompt.turns, tokenizer, len(prompt.images), prompt.system)
    return GenerationRequest(ids, inputs.pixels(prompt.images, max_pixels=None), sampling)
