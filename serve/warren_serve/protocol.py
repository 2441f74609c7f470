"""OpenAI's requests as pydantic models.

A field that would change the answer and is not supported is refused by name. One that cannot change it is dropped.
"""

import codecs
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from warren_serve.errors import ApiError, bad_request, clipped

_INT64 = 2**63
_VALUE_OF = "value_of_"  # an error type of this and a field's name is about that field

_NO_BEARING = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

_UNSUPPORTED: Mapping[str, Sequence[Any]] = {  # with the values that change nothing
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


def _discriminated_by(field: str, *values: str) -> Discriminator:
    """Choose a union's member by the value of one field; its tag is the value in angle brackets."""

    def tag(value: Any) -> str | None:
        actual = value.get(field) if isinstance(value, dict) else getattr(value, field, values[0])
        return f"<{actual}>" if actual in values else None

    allowed = ", ".join(repr(value) for value in values)
    message = f"Input should be one of {allowed}"
    return Discriminator(tag, custom_error_type=_VALUE_OF + field, custom_error_message=message)


class _FirstProblem(FailFast):
    """Validates a list up to its first problem, because a body can have a million. Unions need it to be hashable."""

    __hash__ = object.__hash__


_TEXT_OR_LIST = Discriminator(
    lambda value: "<one>" if isinstance(value, str) else "<many>" if isinstance(value, list) else None,
    custom_error_type="text_or_list_type",
    custom_error_message="Input should be a string or a list",
)
_One = Annotated[str, Tag("<one>")]


class _Protocol(BaseModel):
    """An object of a request. A null counts as an absent field; unknown fields are refused after all other problems."""

    model_config = ConfigDict(extra="forbid", strict=True)
    no_bearing: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        known: dict[str, Any] = {}
        unknown: str | None = None
        for name, item in value.items():
            if (field := cls.model_fields.get(name)) is not None:
                # A required field keeps its null, so that the error is about its type and not about a missing field.
                if item is not None or field.is_required():
                    known[name] = item
            elif item is None or name in cls.no_bearing or item in _UNSUPPORTED.get(name, ()):
                continue
            elif name in _UNSUPPORTED:
                raise PydanticCustomError("unsupported_parameter", "This endpoint does not support it", {"name": name})
            else:
                unknown = unknown or name
        read = handler(known)
        if unknown is not None:
            raise PydanticCustomError("unknown_parameter", "There is no such field", {"name": unknown})
        return read


class TextPart(_Protocol):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Protocol):
    """An image's `data:` URI or URL. `detail` is accepted and ignored, because the model has one resolution."""

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Protocol):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    _discriminated_by("type", "text", "image_url"),
]
_Texts = Annotated[_One | Annotated[list[TextPart], _FirstProblem(), Tag("<many>")], _TEXT_OR_LIST]
_Parts = Annotated[_One | Annotated[list[ContentPart], _FirstProblem(), Tag("<many>")], _TEXT_OR_LIST]


class _Message(_Protocol):
    no_bearing = frozenset({"name", "annotations", "refusal"})


class SystemMessage(_Message):
    """The system text, which replaces the template's own."""

    role: Literal["system", "developer"]
    content: _Texts


class UserMessage(_Message):
    """A user's text and images."""

    role: Literal["user"]
    content: _Parts


class AssistantMessage(_Message):
    """An earlier answer."""

    role: Literal["assistant"]
    content: _Texts


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    _discriminated_by("role", "user", "assistant", "system", "developer"),
]


class StreamOptions(_Protocol):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _whole(value: Any) -> Any:
    """Take 3.0 as 3, because JSON Schema counts both as integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
_TopK = Annotated[int, Field(ge=-1, le=1_000_000), BeforeValidator(_whole)]
_Seed = Annotated[int, Field(ge=-_INT64, lt=_INT64), BeforeValidator(_whole)]
_Alternatives = Annotated[int, Field(ge=0, le=20), BeforeValidator(_whole)]


def _number(default: Any, **limits: Any) -> Any:
    return Field(default=default, allow_inf_nan=False, **limits)


class GenerationFields(_Protocol):
    """The fields that both routes have in common. `top_k` and `repetition_penalty` are named as in vLLM."""

    no_bearing = _NO_BEARING

    model: str
    max_tokens: _Count | None = None
    temperature: float = _number(1.0, ge=0.0, le=2.0)
    top_p: float = _number(1.0, ge=0.0, le=1.0)
    top_k: _TopK = 0
    n: _Count = 1
    seed: _Seed | None = None
    stop: Annotated[_One | Annotated[list[str], _FirstProblem(), Tag("<many>")], _TEXT_OR_LIST] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float = _number(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = _number(0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = _number(1.0, gt=0.0, le=10.0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are reported beside each token; None for no log-probabilities."""
        return None

    @property
    def length_limit(self) -> tuple[str, int | None]:
        """The name and value of the field that limits the answer's length."""
        return "max_tokens", self.max_tokens

    def check_combinations(self) -> None:
        """Refuse combinations of fields that contradict each other.

        Raises:
            ApiError: 400.
        """
        if self.stream_options is not None and not self.stream:
            raise bad_request("'stream_options' needs 'stream': true.", "invalid_value", "stream_options")
        stop = self.stop_strings
        if len(stop) > 4 or any(not 1 <= len(text) <= 256 for text in stop):
            raise bad_request("'stop' takes up to 4 strings of 1 to 256 characters.", "invalid_value", "stop")


class ChatRequest(GenerationFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], _FirstProblem()] = Field(min_length=1)
    max_completion_tokens: _Count | None = None
    logprobs: bool = False
    top_logprobs: _Alternatives | None = None

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationFields.num_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def length_limit(self) -> tuple[str, int | None]:
        """See `GenerationFields.length_limit`."""
        if self.max_tokens is None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def check_combinations(self) -> None:
        """See `GenerationFields.check_combinations`."""
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            message = "'max_tokens' and 'max_completion_tokens' differ; send one of them."
            raise bad_request(message, "invalid_value", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs': true.", "invalid_value", "top_logprobs")
        super().check_combinations()


class CompletionRequest(GenerationFields):
    """The body of `POST /v1/completions`: one text that the model continues, without a template."""

    prompt: str = Field(min_length=1)


RequestT = TypeVar("RequestT", bound=GenerationFields)


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read the body of a chat request.

    Raises:
        ApiError: The body is not JSON, is nested too deeply, or is no `ChatRequest`; `param` names the field.
    """
    return _validated(ChatRequest, body)


def parse_completion_request(body: bytes) -> CompletionRequest:
    """Read the body of a completion request.

    Raises:
        ApiError: As `parse_chat_request`.
    """
    return _validated(CompletionRequest, body)


def _validated(kind: type[RequestT], body: bytes) -> RequestT:
    try:
        # The parser limits nesting to 200. NaN passes here, so that the error can name its field.
        raw = from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=True)
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON: {error}.", "invalid_json") from None
    if not isinstance(raw, dict):
        raise bad_request("The body must be a JSON object.", "invalid_json")
    try:
        request = kind.model_validate(raw)
    except ValidationError as error:
        raise _first_problem(error) from None
    request.check_combinations()
    return request


def _first_problem(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    kind, name = str(first["type"]), first.get("ctx", {}).get("name")
    if kind.startswith(_VALUE_OF):
        kind, name = "unknown", kind.removeprefix(_VALUE_OF)
    # A location has tags of union members in angle brackets, which are left out. It never has names from the client.
    parts = [str(part) for part in first["loc"] if not str(part).startswith("<")]
    param = ".".join([*parts, name] if name else parts)
    message = "Input should be an object" if kind == "model_type" else first["msg"]
    codes = {"missing": "missing_required_parameter", "unsupported_parameter": kind, "unknown_parameter": kind}
    code = codes.get(kind) or ("invalid_type" if "type" in kind else "invalid_value")
    return bad_request(f"'{clipped(param)}': {message}.", code, param)
