"""From a request to a prompt that the model may see.

A client's text never becomes a special token. A text that contains one (`<image>`, the end of sequence) is refused
rather than escaped, because escaping would change the question. Some texts become special tokens only by the
tokenizer's normalisation: so the special tokens of the encoded prompt must be those that its template writes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
from tokenizers import Tokenizer

from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Role, Turn
from warren.errors import BadSampleError
from warren.inference import GenerationRequest, SamplingParams
from warren_serve.data_uri import decode_data_uri
from warren_serve.errors import ApiError, bad_request
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
    ImageUrl,
    RequestT,
    SystemMessage,
    TextPart,
    UserMessage,
)
from warren_serve.settings import ServeSettings

_TEMPLATES_KEPT = 256
_PLACEHOLDER = "a"  # stands for a turn's text where only the template's tokens matter


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


@dataclass(frozen=True)
class _Conversation:
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
        self._tokenizer = tokenizer
        self.max_context_tokens = max_context_tokens
        self._settings = settings
        added = tokenizer.get_added_tokens_decoder()
        special = {number: str(token.content) for number, token in added.items() if token.special}
        self._special_ids = np.array(sorted(special.keys() - {inputs.tokens.image_token_id}), dtype=np.int32)
        self._special_texts = (IMAGE_MARK, inputs.tokens.eos_token, *special.values())
        self._template_tokens = lru_cache(_TEMPLATES_KEPT)(self._tokens_of_template)

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
            prompt_ids, images, param = self._encode_chat(conversation), conversation.images, "messages"
        else:
            assert isinstance(request, CompletionRequest)
            prompt_ids, param = self._encode_text(self._text(request.prompt, "prompt")), "prompt"
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

    def _conversation(self, request: ChatRequest) -> _Conversation:
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
        return _Conversation(tuple(turns), system, tuple(images), tuple(params))

    def _encode_chat(self, conversation: _Conversation) -> np.ndarray:
        turns, system = conversation.turns, conversation.system
        try:
            prompt_ids = self._inputs.encode_prompt(turns, self._tokenizer, len(conversation.images), system)
        except BadSampleError:  # a text becomes the image token
            raise self._special_token_error(conversation.texts, "messages") from None
        shapes = tuple((turn.role, bool(turn.text.strip())) for turn in turns)
        if self._special_tokens(prompt_ids) != self._template_tokens(shapes, system is None):
            raise self._special_token_error(conversation.texts, "messages")
        return prompt_ids

    def _encode_text(self, text: str) -> np.ndarray:
        try:
            prompt_ids = self._inputs.encode_text(text, self._tokenizer)
        except BadSampleError:  # the text becomes the image token
            raise self._special_token_error([("prompt", text)], "prompt") from None
        num_bos = int(self._inputs.tokens.bos_token_id is not None)
        if self._special_tokens(prompt_ids[num_bos:]):
            raise self._special_token_error([("prompt", text)], "prompt")
        return prompt_ids

    def _special_tokens(self, prompt_ids: np.ndarray) -> tuple[int, ...]:
        """Return the special tokens of a prompt in their order, without image tokens."""
        return tuple(prompt_ids[np.isin(prompt_ids, self._special_ids)].tolist())

    def _tokens_of_template(self, shapes: tuple[tuple[Role, bool], ...], keeps_system: bool) -> tuple[int, ...]:
        """Return the special tokens that the template writes around turns with these roles, with or without text."""
        turns = tuple(Turn(role, _PLACEHOLDER if has_text else "") for role, has_text in shapes)
        system = None if keeps_system else _PLACEHOLDER
        return self._special_tokens(self._inputs.encode_prompt(turns, self._tokenizer, 0, system))

    def _special_token_error(self, texts: Iterable[tuple[str, str]], param: str) -> ApiError:
        """Return the error that names the text and the special token in it; `param` if no text alone has one."""
        for name, text in texts:
            ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
            special = ids[np.isin(ids, self._special_ids) | (ids == self._inputs.tokens.image_token_id)]
            if len(special):
                return _special_token(str(self._tokenizer.id_to_token(int(special[0]))), name)
        message = "A text and the model's prompt template together form a special token; change the text's ends."
        return bad_request(message, "special_token_in_text", param)

    def _text(self, content: str | Sequence[TextPart | ImagePart], param: str) -> str:
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content if isinstance(part, TextPart))
        special = next((special for special in self._special_texts if special in content), None)
        if special is not None:
            raise _special_token(special, param)
        return content

    def _max_new_tokens(self, request: GenerationFields, num_prompt_tokens: int, param: str) -> int:
        """Return the most tokens of the answer.

        A request's own limit is lowered to the endpoint's ceiling and to the free context, as in vLLM's servers with a
        ceiling; strict settings refuse it instead.
        """
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


def _special_token(token: str, param: str) -> ApiError:
    message = f"The text contains {token!r}, which has a special meaning to the model; remove it."
    return bad_request(message, "special_token_in_text", param)


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
