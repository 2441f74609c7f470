"""The responses of the endpoint as models: the routes send them, and `/openapi.json` describes them.

Fields that were not set are left out of the JSON (`exclude_unset`), so a constructor sets every field that is sent.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from warren.inference.engine import FinishReason


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorDetail(_Response):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = Field(description="The field of the request at fault.")
    code: str


class ErrorResponse(_Response):
    """The body of every response other than 200."""

    error: ErrorDetail


class Usage(_Response):
    """Tokens of the prompt, and of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ScoredToken(_Response):
    """A token and its log-probability."""

    token: str = Field(description="The token's text; U+FFFD where it is a part of a character.")
    logprob: float
    bytes: list[int] = Field(description="The token's own bytes.")


class GeneratedToken(ScoredToken):
    """A token of the answer, with the likeliest alternatives."""

    top_logprobs: list[ScoredToken]


class ChoiceLogprobs(_Response):
    """Log-probabilities of a choice's tokens."""

    content: list[GeneratedToken]
    refusal: None


class AnswerMessage(_Response):
    """The answer to a chat request."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Response):
    """One of the answers to a chat request."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None


class ResponseHead(_Response):
    """The fields that responses and chunks of both routes have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str = Field(description="The release's version.")


class ChatCompletion(ResponseHead):
    """The response to a chat request."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class MessageDelta(_Response):
    """The text that a chunk adds to a message; the first chunk of a choice names the role."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChunkChoice(_Response):
    """The part of a chunk that belongs to one choice."""

    index: int
    delta: MessageDelta
    finish_reason: FinishReason | None
    logprobs: ChoiceLogprobs | None


class ChatCompletionChunk(ResponseHead):
    """One event of a streamed chat response; the last may hold the usage and no choice."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChoice(_Response):
    """One of the continuations of a text."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: None


class TextCompletion(ResponseHead):
    """The response to a completion request."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(_Response):
    """The part of a chunk that belongs to one continuation."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: None


class TextCompletionChunk(ResponseHead):
    """One event of a streamed completion response; the last may hold the usage and no choice."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class HealthStatus(_Response):
    """The process runs."""

    status: Literal["ok"]


class ReadyStatus(_Response):
    """The model answers."""

    status: Literal["ready"]
    model: str
    version: str


class ServedModel(_Response):
    """The model served here, with its origin."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["warren"]
    release: str
    version: str
    lineage: dict[str, Any] = Field(description="Run, checkpoint and dataset that the release was made from.")
    scores: dict[str, float]
    max_context_tokens: int = Field(description="Most tokens of prompt and answer together.")


class ServedModels(_Response):
    """All models served here: one."""

    object: Literal["list"]
    data: list[ServedModel]
