"""From chat messages to a prompt the model may see.

User text never becomes a special token. A text that holds one literally (`<image>`, the end of sequence) is
refused rather than changed: escaping would alter what the user asked about. The same check covers what only
the tokenizer's normalisation turns into a special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Turn
from warren.inference import GenerationRequest, SamplingParams
from warren.inference.detokenize import TokenBytes
from warren_serve.data_uri import decode_data_uri
from warren_serve.errors import bad_request
from warren_serve.image_checks import check_format
from warren_serve.image_decoder import ImageDecoder
from warren_serve.image_fetcher import ImageSource
from warren_serve.protocol import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationFields,
    ImagePart,
    RequestT,
    SystemMessage,
    TextPart,
    UserMessage,
)
from warren_serve.settings import ServeSettings


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A request that fits the model, before its images are looked at.

    Attributes:
        prompt_ids: int32 (num_prompt_tokens,), image tokens expanded.
        images: In the order of their places in the prompt.
    """

    prompt_ids: np.ndarray
    images: tuple[ImageSource, ...]
    sampling: SamplingParams


class PromptBuilder:
    """Builds generation requests for one model under one set of limits. Thread-safe.

    Args:
        inputs: What the model was trained on.
        tokenizer: Its tokenizer.
        max_context_tokens: Of the engine.
        settings: The limits.
    """

    def __init__(self, inputs: Inputs, tokenizer: Tokenizer, max_context_tokens: int, settings: ServeSettings) -> None:
        self._inputs = inputs
        self._tokenizer = tokenizer
        self.token_bytes = TokenBytes(tokenizer)
        self.max_context_tokens = max_context_tokens
        self._settings = settings
        added = tokenizer.get_added_tokens_decoder()
        special = {number: str(token.content) for number, token in added.items() if token.special}
        self._special_ids = frozenset(special)
        self._special_texts = (IMAGE_MARK, inputs.tokens.eos_token, *special.values())

    def check_shape(self, request: GenerationFields) -> None:
        """Refuse what is too much or out of order, by counting only; safe on the event loop.

        Raises:
            ApiError: 400.
        """
        if request.n > self._settings.max_choices:
            raise bad_request(f"'n' is at most {self._settings.max_choices}.", "invalid_value", "n")
        if isinstance(request, CompletionRequest):
            self._check_length(len(request.prompt), "prompt")
        if isinstance(request, ChatRequest):
            self._check_messages(request.messages)
            _check_roles(request)

    def prepare(self, request: GenerationFields) -> PreparedPrompt:
        """Tokenise and count, before any image is fetched or decoded; call it off the event loop.

        Raises:
            ApiError: 400.
        """
        images: tuple[ImageSource, ...] = ()
        if isinstance(request, ChatRequest):
            turns, system, images = self._conversation(request)
            prompt_ids, param = self._inputs.encode_prompt(turns, self._tokenizer, len(images), system), "messages"
        else:
            assert isinstance(request, CompletionRequest)
            text = self._text(request.prompt, "prompt")
            prompt_ids, param = self._inputs.encode_text(text, self._tokenizer), "prompt"
        new = self._new_tokens(request, len(prompt_ids), param)
        return PreparedPrompt(prompt_ids, images, _sampling(request, new))

    def read_images(self, sources: Sequence[ImageSource]) -> tuple[bytes, ...]:
        """Return the encoded images of a prompt, now fetched, checked by their first bytes; call it off the event loop.

        Raises:
            ApiError: 400.
        """
        images = []
        for source in sources:
            data = decode_data_uri(source.url, source.param) if source.data is None else source.data
            check_format(data, source.param)
            images.append(data)
        return tuple(images)

    def decode(self, prompt: PreparedPrompt, images: tuple[bytes, ...], decoder: ImageDecoder) -> GenerationRequest:
        """Decode the images of a prompt; slow, so call it off the event loop.

        Raises:
            ApiError: As `ImageDecoder.pixels`.
        """
        pixels = decoder.pixels(self._inputs, images, [source.param for source in prompt.images])
        return GenerationRequest(prompt.prompt_ids, pixels, prompt.sampling)

    def _check_messages(self, messages: Sequence[ChatMessage]) -> None:
        limits = self._settings
        if len(messages) > limits.max_messages:
            message = f"{len(messages)} messages; at most {limits.max_messages} are allowed."
            raise bad_request(message, "too_many_messages", "messages")
        parts = [part for m in messages if not isinstance(m.content, str) for part in m.content]
        num_images = sum(isinstance(part, ImagePart) for part in parts)
        if num_images > limits.max_images:
            message = f"{num_images} images; at most {limits.max_images} are allowed."
            raise bad_request(message, "too_many_images", "messages")
        num_chars = sum(len(m.content) for m in messages if isinstance(m.content, str))
        num_chars += sum(len(part.text) for part in parts if isinstance(part, TextPart))
        self._check_length(num_chars, "messages")

    def _check_length(self, num_chars: int, param: str) -> None:
        if num_chars > self._settings.max_text_chars:
            message = f"{num_chars} characters of text; at most {self._settings.max_text_chars} are allowed."
            raise bad_request(message, "text_too_long", param)

    def _conversation(self, request: ChatRequest) -> tuple[tuple[Turn, ...], str | None, tuple[ImageSource, ...]]:
        system: str | None = None
        turns: list[Turn] = []
        images: list[ImageSource] = []
        for index, message in enumerate(request.messages):
            param = f"messages.{index}.content"
            text = self._text(message.content, param)
            if isinstance(message, SystemMessage):
                system = text
            elif isinstance(message, AssistantMessage):
                turns.append(Turn("assistant", text))
            else:
                own = _images(message, param)
                if not own and not text.strip():
                    raise bad_request("The message is empty.", "invalid_value", param)
                images += own
                turns.append(Turn("user", _with_marks(message, text) if own else text))
        return tuple(turns), system, tuple(images)

    def _text(self, content: str | Sequence[TextPart | ImagePart], param: str) -> str:
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content if isinstance(part, TextPart))
        found = next((special for special in self._special_texts if special in content), None)
        if found is None and self._special_ids:
            ids = self._tokenizer.encode(content, add_special_tokens=False).ids
            hidden = next((number for number in ids if number in self._special_ids), None)
            found = None if hidden is None else self._tokenizer.id_to_token(hidden)
        if found is not None:
            message = f"The text holds {found!r}, which has a special meaning to the model; remove it."
            raise bad_request(message, "special_token_in_text", param)
        return content

    def _new_tokens(self, request: GenerationFields, num_prompt_tokens: int, param: str) -> int:
        room = self.max_context_tokens - num_prompt_tokens
        name, asked = request.length_limit
        if asked is not None and asked > self._settings.max_new_tokens:
            message = f"'{name}' is {asked}; at most {self._settings.max_new_tokens} are allowed."
            raise bad_request(message, "invalid_value", name)
        if room < (asked or 1):
            message = (
                f"The model's context is {self.max_context_tokens} tokens; the prompt takes "
                f"{num_prompt_tokens} and the answer {asked or 1}. Send less, or ask for fewer tokens."
            )
            raise bad_request(message, "context_length_exceeded", param if asked is None else name)
        return asked or min(room, self._settings.default_max_new_tokens, self._settings.max_new_tokens)


def without_images(request: RequestT) -> RequestT:
    """Empty a request's image URLs, which may be megabytes: what they named travels beside it."""
    for message in request.messages if isinstance(request, ChatRequest) else ():
        for part in () if isinstance(message.content, str) else message.content:
            if isinstance(part, ImagePart):
                part.image_url.url = ""
    return request


def _images(message: UserMessage, param: str) -> list[ImageSource]:
    parts = () if isinstance(message.content, str) else message.content
    return [
        ImageSource(part.image_url.url, f"{param}.{index}.image_url.url")
        for index, part in enumerate(parts)
        if isinstance(part, ImagePart)
    ]


def _with_marks(message: UserMessage, text: str) -> str:
    """Return a message's text with a mark for each image.

    Images that stand together come first, wherever they stood: that is how Bunny's training writes a message with an
    image. Where text stands between images, its place says which is meant, so every mark stays where its part stood.
    """
    parts = () if isinstance(message.content, str) else message.content
    is_image = [isinstance(part, ImagePart) for part in parts]
    first, last = is_image.index(True), len(parts) - is_image[::-1].index(True)
    if all(is_image[first:last]):
        return f"{IMAGE_MARK}\n" * (last - first) + text
    return "\n".join(part.text if isinstance(part, TextPart) else IMAGE_MARK for part in parts)


def _check_roles(request: ChatRequest) -> None:
    """Allow an optional system message, then user and assistant in turn, the user last."""
    talk = [(index, m.role) for index, m in enumerate(request.messages) if not isinstance(m, SystemMessage)]
    systems = [index for index, m in enumerate(request.messages) if isinstance(m, SystemMessage)]
    if systems not in ([], [0]):
        message = "One system message is allowed, and it comes first."
        raise bad_request(message, "invalid_role_order", f"messages.{systems[-1]}.role")
    for position, (index, role) in enumerate(talk):
        if role != ("user", "assistant")[position % 2]:
            message = "After the system message, user and assistant take turns; the user begins."
            raise bad_request(message, "invalid_role_order", f"messages.{index}.role")
    if len(talk) % 2 == 0:
        message = "The last message must be the user's."
        raise bad_request(message, "invalid_role_order", f"messages.{len(request.messages) - 1}.role")


def _sampling(request: GenerationFields, max_new_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(0, request.top_k),
        seed=request.seed,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        stop=request.stop_strings,
        num_logprobs=request.num_logprobs,
        keeps_leading_space=isinstance(request, CompletionRequest),
    )
