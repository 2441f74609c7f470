"""Tokenising of prompts whose special tokens are the template's alone.

A client's text never becomes a special token. A text that contains one (`<image>`, the end of sequence) is refused
rather than escaped, because escaping would change the question. Some texts become special tokens only by the
tokenizer's normalisation, so the special tokens of the encoded prompt must be those that its template writes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Role, Turn
from warren.errors import BadSampleError
from warren_serve.errors import ApiError, bad_request
from warren_serve.image_fetcher import ImageSource

_TEMPLATES_KEPT = 256
_PLACEHOLDER = "a"  # stands for a turn's text where only the template's tokens matter


@dataclass(frozen=True)
class Conversation:
    """A chat request's messages as turns.

    Attributes:
        turns: The n-th image mark takes the n-th image.
        system: Replaces the template's system text; None keeps it.
        images: In the order of their marks.
        params: The field of each turn's text, then that of the system text if there is one.
    """

    turns: tuple[Turn, ...]
    system: str | None
    images: tuple[ImageSource, ...]
    params: tuple[str, ...]

    @property
    def texts(self) -> Iterator[tuple[str, str]]:
        """The field and text of each message."""
        texts = [turn.text for turn in self.turns] + ([] if self.system is None else [self.system])
        return zip(self.params, texts, strict=True)


class PromptEncoder:
    """Encodes prompts for one model, and refuses special tokens in them. Thread-safe.

    Args:
        inputs: The model's prompt template, special tokens and image preprocessing.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, inputs: Inputs, tokenizer: Tokenizer) -> None:
        self._inputs, self._tokenizer = inputs, tokenizer
        added = tokenizer.get_added_tokens_decoder()
        special = {number: str(token.content) for number, token in added.items() if token.special}
        self._special_ids = np.array(sorted(special.keys() - {inputs.tokens.image_token_id}), dtype=np.int32)
        self._special_texts = (IMAGE_MARK, inputs.tokens.eos_token, *special.values())
        self._template_tokens = lru_cache(_TEMPLATES_KEPT)(self._tokens_of_template)

    def check_text(self, text: str, param: str) -> None:
        """Refuse a text that contains a special token as it is written.

        Raises:
            ApiError: 400.
        """
        special = next((special for special in self._special_texts if special in text), None)
        if special is not None:
            raise _special_token(special, param)

    def encode_chat(self, conversation: Conversation) -> np.ndarray:
        """Return the prompt's ids, int32 (num_prompt_tokens,), image tokens expanded.

        Raises:
            ApiError: 400; a text becomes a special token.
        """
        turns, system = conversation.turns, conversation.system
        try:
            prompt_ids = self._inputs.encode_prompt(turns, self._tokenizer, len(conversation.images), system)
        except BadSampleError:  # a text becomes the image token
            raise self._error(conversation.texts, "messages") from None
        shapes = tuple((turn.role, bool(turn.text.strip())) for turn in turns)
        if self._special_tokens(prompt_ids) != self._template_tokens(shapes, system is None):
            raise self._error(conversation.texts, "messages")
        return prompt_ids

    def encode_text(self, text: str) -> np.ndarray:
        """Return the ids of a plain text, int32 (num_prompt_tokens,).

        Raises:
            ApiError: 400; the text becomes a special token.
        """
        try:
            prompt_ids = self._inputs.encode_text(text, self._tokenizer)
        except BadSampleError:  # the text becomes the image token
            raise self._error([("prompt", text)], "prompt") from None
        num_bos = int(self._inputs.tokens.bos_token_id is not None)
        if self._special_tokens(prompt_ids[num_bos:]):
            raise self._error([("prompt", text)], "prompt")
        return prompt_ids

    def _special_tokens(self, prompt_ids: np.ndarray) -> tuple[int, ...]:
        """Return the special tokens of a prompt in their order, without image tokens."""
        return tuple(prompt_ids[np.isin(prompt_ids, self._special_ids)].tolist())

    def _tokens_of_template(self, shapes: tuple[tuple[Role, bool], ...], keeps_system: bool) -> tuple[int, ...]:
        """Return the special tokens that the template writes around turns with these roles, with or without text."""
        turns = tuple(Turn(role, _PLACEHOLDER if has_text else "") for role, has_text in shapes)
        system = None if keeps_system else _PLACEHOLDER
        return self._special_tokens(self._inputs.encode_prompt(turns, self._tokenizer, 0, system))

    def _error(self, texts: Iterable[tuple[str, str]], param: str) -> ApiError:
        """Return the error that names the text and the special token in it; `param` if no text alone has one."""
        for name, text in texts:
            ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
            special = ids[np.isin(ids, self._special_ids) | (ids == self._inputs.tokens.image_token_id)]
            if len(special):
                return _special_token(str(self._tokenizer.id_to_token(int(special[0]))), name)
        message = "A text and the model's prompt template together form a special token; change the text's ends."
        return bad_request(message, "special_token_in_text", param)


def _special_token(token: str, param: str) -> ApiError:
    message = f"The text contains {token!r}, which has a special meaning to the model; remove it."
    return bad_request(message, "special_token_in_text", param)
