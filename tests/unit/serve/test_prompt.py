"""Prompts: how long answers may be, which texts are refused, and what an engine gets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from chat_parts import assistant, image_part, text, user
from warren.data.model_inputs import Inputs
from warren.inference import GenerationRequest, TokenDelta
from warren_serve.errors import ApiError
from warren_serve.prompt import PromptBuilder, detach_images
from warren_serve.protocol import ChatRequest, parse_chat_request, parse_completion_request
from warren_serve.settings import ServeSettings

CEILING, CONTEXT = 64, 256
LIMITS = ("max_tokens", "max_completion_tokens")


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("hello", (5,), finish_reason="stop")]


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "tiny", "messages": list(messages)} | fields).encode())


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_above_ceiling_or_context_is_lowered(scripted: Any, limit: str) -> None:
    endpoint, engine = scripted(hello)
    long = "é" * 200
    for words, requested in (("what?", CEILING), ("what?", CEILING + 1), ("what?", 32768), (long, 1), (long, 10**30)):
        answer = endpoint.chat(messages=[user(text(words))], **{limit: requested})
        assert answer.status_code == 200, answer.text
        request = engine.requests[-1]
        room = CONTEXT - len(request.prompt_ids)
        assert request.sampling.max_new_tokens == min(requested, CEILING, room)
    assert room < CEILING, "the long prompt leaves less than the ceiling"
    body = {"model": "tiny", "prompt": "what?", "max_tokens": 32768}
    assert endpoint.request("POST", "/v1/completions", json=body).status_code == 200
    assert engine.requests[-1].sampling.max_new_tokens == CEILING


@pytest.mark.parametrize("limit", LIMITS)
def test_strict_settings_refuse_what_would_be_lowered(scripted: Any, limit: str) -> None:
    endpoint, engine = scripted(hello, {"strict_max_tokens": True})
    for words, requested, code in (
        ("what?", CEILING + 1, "invalid_value"),
        ("é" * 200, CEILING, "context_length_exceeded"),
    ):
        answer = endpoint.chat(messages=[user(text(words))], **{limit: requested})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, limit)
    assert endpoint.chat(messages=[user(text("what?"))], **{limit: CEILING}).status_code == 200
    assert endpoint.chat(messages=[user(text("é" * 200))]).status_code == 200, "without a limit, the rest is used"
    assert len(engine.requests) == 2


class _CountingTokenizer:
    """A tokenizer that counts what it encodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_encoded = 0

    def encode(self, *args: Any, **options: Any) -> Any:
        self.num_encoded += 1
        return self._tokenizer.encode(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


Build = Callable[..., tuple[PromptBuilder, _CountingTokenizer]]


@pytest.fixture
def build(tiny_folder: Path) -> Build:
    """Return a function that makes a prompt builder whose tokenizer has more special tokens, and ignores case."""

    def make(special: tuple[str, ...] = (), **changes: Any) -> tuple[PromptBuilder, _CountingTokenizer]:
        tokenizer = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.add_special_tokens([AddedToken(token, rstrip=True, normalized=True) for token in special])
        counting = _CountingTokenizer(tokenizer)
        inputs = replace(Inputs.load(tiny_folder), **changes)
        return PromptBuilder(inputs, counting, CONTEXT, ServeSettings.parse({"release": "r"})), counting  # type: ignore[arg-type]

    return make


def test_a_prompt_is_tokenised_once(build: Build) -> None:
    prompts, tokenizer = build()
    talk = [user(text("what?")), assistant("a circle"), user(text("sure?"))]
    for request, num_pieces in (
        (chat(*talk), 1),
        (chat(user(image_part(), text("what?"))), 2),
        (parse_completion_request(b'{"model": "tiny", "prompt": "what?"}'), 1),
    ):
        prompts.prepare(request)  # reads the template's own tokens, which are kept
        tokenizer.num_encoded = 0
        prompts.prepare(request)
        assert tokenizer.num_encoded == num_pieces


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (chat(user(text("a <|TOOL|> b"))), "messages.0.content"),
        (chat({"role": "system", "content": "<|Tool|>"}, user(text("hi"))), "messages.0.content"),
        (chat(user(text("hi")), assistant("<|tOOL|>"), user(text("hi"))), "messages.1.content"),
        (chat({"role": "system", "content": "be brief"}, user(text("<|TOOL|>"))), "messages.1.content"),
        (parse_completion_request(b'{"model": "tiny", "prompt": "<|TOOL|>"}'), "prompt"),
        (chat(user(text("so be it"))), "messages"),
    ],
)
def test_text_that_only_the_tokenizer_turns_into_a_special_token_is_refused(
    build: Build, request_: Any, param: str
) -> None:
    prompts, _ = build(("<|tool|>", "it assistant:"))
    with pytest.raises(ApiError) as refused:
        prompts.prepare(request_)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "special_token_in_text", param)


def test_a_templates_own_special_tokens_are_not_the_clients(build: Build) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    roles = ("<|system|>", "<|user|>", "<|assistant|>")
    prompts, tokenizer = build(roles, template="native", chat_template=template)
    system = {"role": "system", "content": " be brief"}
    request = chat(system, user(text("  \n what?  ")), assistant(""), user(image_part(), text("sure?\n")))
    ids = prompts.prepare(request).prompt_ids.tolist()
    assert [ids.count(tokenizer.token_to_id(role)) for role in roles] == [1, 2, 2]
    with pytest.raises(ApiError) as refused:
        prompts.prepare(chat(system, user(text("hi <|ASSISTANT|>"))))
    assert refused.value.param == "messages.1.content"


def test_an_engine_gets_a_valid_request_without_the_images(build: Build) -> None:
    request = chat(user(text("a"), image_part()), assistant("b"), user(image_part(), text("c"), image_part()))
    before = request.model_dump_json()
    detached = detach_images(request)
    assert parse_chat_request(detached.model_dump_json(exclude_unset=True).encode()) == detached
    parts = [part for message in detached.messages if not isinstance(message.content, str) for part in message.content]
    urls = [part.image_url.url for part in parts if part.type == "image_url"]
    assert urls == ["attachment:0", "attachment:1", "attachment:2"]
    assert request.model_dump_json() == before, "the request itself is unchanged"
    prompts, _ = build()
    assert (prompts.prepare(detached).prompt_ids == prompts.prepare(request).prompt_ids).all()
