"""OpenAI's requests, as far as this endpoint understands them, and what it does with the rest.

What changes the answer and is not supported is refused by name; what has no bearing on it is dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from warren_serve.errors import ApiError, bad_request

_INT64 = 2**63

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
_NO_BEARING_IN_MESSAGE = frozenset({"name", "annotations", "refusal"})

_UNSUPPORTED: Mapping[str, Sequence[Any]] = {  # with the values that ask for nothing
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


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Wire):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Wire):
    """Where a picture is: a `data:` URI. `detail` is accepted; the model has one resolution."""

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Wire):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_Wire):
    """Replaces the system text of the model's template."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(_Wire):
    """What the user wrote and showed."""

    role: Literal["user"]
    content: str | list[Part]


class AssistantMessage(_Wire):
    """An earlier answer."""

    role: Literal["assistant"]
    content: str | list[TextPart]


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Wire):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _whole(value: Any) -> Any:
    """Take 3.0 for 3: JSON has one kind of number, and JSON Schema calls both integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
_TopK = Annotated[int, Field(ge=-1, le=1_000_000), BeforeValidator(_whole)]
_Seed = Annotated[int, Field(ge=-_INT64, lt=_INT64), BeforeValidator(_whole)]
_Alternatives = Annotated[int, Field(ge=0, le=20), BeforeValidator(_whole)]


def _number(default: Any, **limits: Any) -> Any:
    return Field(default=default, allow_inf_nan=False, **limits)


class GenerationFields(_Wire):
    """What chats and completions have in common. `top_k` and `repetition_penalty` are named as in vLLM."""

    model: str
    max_tokens: _Count | None = None
    temperature: float = _number(1.0, ge=0.0, le=2.0)
    top_p: float = _number(1.0, ge=0.0, le=1.0)
    top_k: _TopK = 0
    n: _Count = 1
    seed: _Seed | None = None
    stop: str | list[str] | None = None
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
        """The field that limits the answer, and its value."""
        return "max_tokens", self.max_tokens

    def check_combinations(self) -> None:
        """Refuse fields that do not go together.

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

    messages: list[Message] = Field(min_length=1)
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
            message = "'max_tokens' and 'max_completion_tokens' differ; give one."
            raise bad_request(message, "invalid_value", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs': true.", "invalid_value", "top_logprobs")
        super().check_combinations()


class CompletionRequest(GenerationFields):
    """The body of `POST /v1/completions`: one text, which the model continues as it stands, without a template."""

    prompt: str = Field(min_length=1)


RequestT = TypeVar("RequestT", bound=GenerationFields)


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read the body of a chat request.

    Raises:
        ApiError: It is no JSON (too deep included), or does not fit `ChatRequest`; `param` names the field.
    """
    cleaned = _drop_what_asks_for_nothing(_json_object(body), "", _NO_BEARING)
    messages = cleaned.get("messages")
    if isinstance(messages, list):
        cleaned["messages"] = [
            _drop_what_asks_for_nothing(message, f"messages.{index}.", _NO_BEARING_IN_MESSAGE)
            if isinstance(message, dict)
            else message
            for index, message in enumerate(messages)
        ]
    return _validated(ChatRequest, cleaned)


def parse_completion_request(body: bytes) -> CompletionRequest:
    """Read the body of a completion request.

    Raises:
        ApiError: As `parse_chat_request`.
    """
    return _validated(CompletionRequest, _drop_what_asks_for_nothing(_json_object(body), "", _NO_BEARING))


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        # The parser has its own limit of nesting (200). NaN passes here, so that its field can be named.
        raw = from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON: {error}.", "invalid_json") from None
    if not isinstance(raw, dict):
        raise bad_request("The body must be a JSON object.", "invalid_json")
    return raw


def _validated(kind: type[RequestT], cleaned: dict[str, Any]) -> RequestT:
    try:
        request = kind.model_validate(cleaned)
    except ValidationError as error:
        raise _first_problem(error, cleaned) from None
    request.check_combinations()
    return request


def _drop_what_asks_for_nothing(value: Mapping[str, Any], path: str, no_bearing: frozenset[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, item in value.items():
        if name in no_bearing or (item is None and name not in ("model", "messages", "prompt", "role", "content")):
            continue
        if name in _UNSUPPORTED:
            if item not in _UNSUPPORTED[name]:
                raise bad_request(
                    f"'{path}{name}' is not supported by this endpoint.", "unsupported_parameter", path + name
                )
            continue
        kept[name] = item
    return kept


def _first_problem(error: ValidationError, raw: Any) -> ApiError:
    problems = error.errors(include_url=False, include_input=False)
    # Of a union every member complains: the longest path is the member that fitted best.
    same = [problem for problem in problems if problem["loc"][:2] == problems[0]["loc"][:2]]
    first = max(same, key=lambda problem: len(problem["loc"]))
    param = _path(first["loc"], raw)
    if first["type"].startswith("union_tag"):
        param = f"{param}.{first['ctx']['discriminator'].strip(chr(39))}"
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(first["type"])
    known_code = code or ("invalid_type" if "type" in first["type"] else "invalid_value")
    return bad_request(f"'{param}': {first['msg']}.", known_code, param)


def _path(location: Sequence[str | int], raw: Any) -> str:
    """Join an error's location, without the names of union members that pydantic puts between."""
    parts: list[str] = []
    node = raw
    for index, part in enumerate(location):
        inside = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int))
        if inside:
            node = node[part] if isinstance(node, dict) or int(part) < len(node) else None
            parts.append(str(part))
        elif index == len(location) - 1 and isinstance(node, dict):
            parts.append(str(part))  # the missing field itself
    return ".".join(parts)
