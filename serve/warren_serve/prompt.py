"""From a request to a prompt that fits the model and the endpoint's limits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from tokenizers import Tokenizer

from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Turn
from warren.inference import GenerationRequest, SamplingParams
from warren_serve.data_uri import decode_data_uri
from warren_serve.errors import bad_request
from warren_serve.image_checks import check_format
from warren_serve.image_decoder import ImageDecoder
from warren_serve.image_fetcher import ImageSource
from warren_serve.prompt_encoder import Conversation, PromptEncoder
from warren_serve.protocol import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationFields,
    ImagePart,
    ImageUrl,
    RequestT,
    SystemMessage,
    TextPart,
    UserMessage,
)
from warren_serve.settings import ServeSettings


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A tokenised request that fits the model, before its images are fetched or decoded.

    Attributes:
        prompt_ids: int32 (num_prompt_tokens,), image tokens expanded.
        images: In the order of their places in the prompt.
        sampling: How the answer is generated.
    """

    prompt_ids: np.ndarray
    images: tuple[ImageSource, ...]
    sampling: SamplingParams


class PromptBuilder:
    """Checks and tokenises requests for one model under one set of limits. Thread-safe.

    Args:
        inputs: The model's prompt template, special tokens and image preprocessing.
        tokenizer: The model's tokenizer.
        max_context_tokens: Most tokens of prompt and answer together.
        settings: The endpoint's settings, with the limits.
    """

    def __init__(self, inputs: Inputs, tokenizer: Tokenizer, max_context_tokens: int, settings: ServeSettings) -> None:
        self._inputs = inputs
        self._encoder = PromptEncoder(inputs, tokenizer)
        self.max_context_tokens = max_context_tokens
        self._settings = settings

    def check_shape(self, request: GenerationFields) -> None:
        """Refuse what is too much or out of order. It only counts, so it may run on the event loop.

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
        """Tokenise a request once, and check its length; call it off the event loop.

        Raises:
            ApiError: 400.
        """
        images: tuple[ImageSource, ...] = ()
        if isinstance(request, ChatRequest):
            conversation = self._conversation(request)
            prompt_ids, images, param = self._encoder.encode_chat(conversation), conversation.images, "messages"
        else:
            assert isinstance(request, CompletionRequest)
            prompt_ids, param = self._encoder.encode_text(self._text(request.prompt, "prompt")), "prompt"
        max_new_tokens = self._max_new_tokens(request, len(prompt_ids), param)
        return PreparedPrompt(prompt_ids, images, _sampling(request, max_new_tokens))

    def read_images(self, sources: Sequence[ImageSource]) -> tuple[bytes, ...]:
        """Return the encoded images of fetched sources, and check their first bytes; call it off the event loop.

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
        """Decode the images of a prompt; this is slow, so call it off the event loop.

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

    def _conversation(self, request: ChatRequest) -> Conversation:
        system: str | None = None
        turns: list[Turn] = []
        images: list[ImageSource] = []
        params: list[str] = []
        for index, message in enumerate(request.messages):
            param = f"messages.{index}.content"
            text = self._text(message.content, param)
            if isinstance(message, SystemMessage):
                system = text
                continue
            params.append(param)
            if isinstance(message, AssistantMessage):
                turns.append(Turn("assistant", text))
            else:
                own = _images(message, param)
                if not own and not text.strip():
                    raise bad_request("The message is empty.", "invalid_value", param)
                images += own
                turns.append(Turn("user", _with_marks(message, text) if own else text))
        if system is not None:
            params.append("messages.0.content")  # `check_shape` refuses it anywhere else
        return Conversation(tuple(turns), system, tuple(images), tuple(params))

    def _text(self, content: str | Sequence[TextPart | ImagePart], param: str) -> str:
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content if isinstance(part, TextPart))
        self._encoder.check_text(content, param)
        return content

    def _max_new_tokens(self, request: GenerationFields, num_prompt_tokens: int, param: str) -> int:
        """Return the most tokens of the answer.

        A request's own limit is lowered to the endpoint's ceiling and to the free context, as in vLLM's servers with a
        ceiling; strict settings refuse it instead.
        """
        # `room` may be negative: the prompt alone is then too long, whatever answer is asked for.
        ceiling, room = self._settings.max_new_tokens, self.max_context_tokens - num_prompt_tokens
        name, requested = request.length_limit
        required = requested if self._settings.strict_max_tokens else None
        if required is not None and required > ceiling:
            raise bad_request(f"'{name}' is {required}; at most {ceiling} are allowed.", "invalid_value", name)
        if room < (required or 1):
            message = (
                f"The model's context is {self.max_context_tokens} tokens; the prompt takes "
                f"{num_prompt_tokens} and the answer {required or 1}. Send less, or ask for fewer tokens."
            )
            raise bad_request(message, "context_length_exceeded", param if required is None else name)
        return min(requested or self._settings.default_max_new_tokens, ceiling, room)


def detach_images(request: RequestT) -> RequestT:
    """Return a copy whose image URLs, which may be megabytes, are the images' indexes: `attachment:0`, …."""
    if not isinstance(request, ChatRequest):
        return request
    indexes = count()
    return request.model_copy(update={"messages": [_detached(message, indexes) for message in request.messages]})


def _detached(message: ChatMessage, indexes: Iterator[int]) -> ChatMessage:
    if not isinstance(message, UserMessage) or isinstance(message.content, str):
        return message
    parts = [
        part.model_copy(update={"image_url": ImageUrl(url=f"attachment:{next(indexes)}")})
        if isinstance(part, ImagePart)
        else part
        for part in message.content
    ]
    return message.model_copy(update={"content": parts})


def _images(message: UserMessage, param: str) -> list[ImageSource]:
    parts = () if isinstance(message.content, str) else message.content
    return [
        ImageSource(part.image_url.url, f"{param}.{index}.image_url.url")
        for index, part in enumerate(parts)
        if isinstance(part, ImagePart)
    ]


def _with_marks(message: UserMessage, text: str) -> str:
    """Return a message's text with a mark for each image.

    Adjacent images come before the text, because Bunny's training writes messages so. Where text separates images, it
    says which of them is meant, so every mark stays in its place.
    """
    parts = () if isinstance(message.content, str) else message.content
    is_image = [isinstance(part, ImagePart) for part in parts]
    first, last = is_image.index(True), len(parts) - is_image[::-1].index(True)
    if all(is_image[first:last]):
        return f"{IMAGE_MARK}\n" * (last - first) + text
    return "\n".join(part.text if isinstance(part, TextPart) else IMAGE_MARK for part in parts)


def _check_roles(request: ChatRequest) -> None:
    """Allow an optional system message, then user and assistant in turn, with the user last."""
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
