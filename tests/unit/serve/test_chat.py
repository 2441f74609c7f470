"""What a chat request becomes, and what comes back."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from safetensors.torch import load_file, save_file

from chat_parts import assistant, image_part, text, user
from warren.errors import ReleaseError
from warren.inference import (
    EngineClosedError,
    GenerationFailedError,
    GenerationRequest,
    TokenDelta,
    TokenLogprob,
)
from warren.inference.testing import ScriptedEngine, png_bytes
from warren_serve.api import create_api
from warren_serve.service import load_backend
from warren_serve.settings import ServeSettings

HELLO = [TokenDelta("Hel", (5,)), TokenDelta("", (6,)), TokenDelta("lo", (7,), finish_reason="stop")]
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}]}


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return HELLO


def prompt_text(endpoint: Any, request: GenerationRequest) -> str:
    tokenizer = endpoint.service.backend.engine.tokenizer
    tokens = endpoint.service.backend.engine.inputs.tokens
    ids = [i for i in request.prompt_ids.tolist() if i != tokens.image_token_id]
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def events(answer: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_the_official_client_reads_whole_and_streamed_answers(endpoint: Any) -> None:
    async def main() -> None:
        async with endpoint.http() as http:
            client = openai.AsyncOpenAI(api_key="k", base_url="http://endpoint/v1", http_client=http, max_retries=0)
            ask: Any = {"model": "tiny", "messages": [user(image_part(), text("what?"))], "max_tokens": 12}
            whole = await client.chat.completions.create(**ask, seed=3, logprobs=True, top_logprobs=2)
            stream = await client.chat.completions.create(
                **ask, seed=3, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert streamed == whole.choices[0].message.content
            assert chunks[-1].usage == whole.usage
            assert chunks[0].choices[0].delta.role == "assistant"
            assert whole.choices[0].logprobs is not None
            assert len(whole.choices[0].logprobs.content or ()) == 12
            choices = (await client.chat.completions.create(**ask, seed=3, n=3)).choices
            assert choices[0].message == whole.choices[0].message
            assert len({choice.message.content for choice in choices}) > 1
            with pytest.raises(openai.BadRequestError) as error:
                await client.chat.completions.create(**(ask | {"temperature": 5}))
            assert error.value.param == "temperature"

    asyncio.run(main())


def test_messages_become_the_prompt_the_model_was_trained_on(scripted: Any) -> None:
    endpoint, engine = scripted(hello)
    messages = [
        {"role": "system", "content": "Be brief."},
        user(text("look"), image_part(), image_part(png_bytes((0, 0, 9)))),
        assistant("a blue circle"),
        {"role": "user", "content": "and?"},
    ]
    assert endpoint.chat(messages=messages).status_code == 200
    (request,) = engine.requests
    assert (
        prompt_text(endpoint, request)
        == "Be brief. USER: \n\nlook ASSISTANT: a blue circle<|endoftext|>USER: and? ASSISTANT:"
    )
    assert len(request.pixels) == 2
    assert request.pixels[1][:, 0, 0].tolist() == [0, 0, 9]


A = image_part(png_bytes((9, 0, 0)))


def test_the_bytes_of_log_probabilities_are_the_answers(endpoint: Any) -> None:
    """Also of tokens that are parts of a character, whose text cannot be shown."""
    answer = endpoint.chat(logprobs=True, top_logprobs=5, max_tokens=60, temperature=1.5, seed=4, messages=[user(A)])
    (choice,) = answer.json()["choices"]
    content = choice["logprobs"]["content"]
    written = b"".join(bytes(one["bytes"]) for one in content)
    assert (
        written.decode(errors="ignore")
        .replace("<|endoftext|>", "")
        .strip()
        .startswith(choice["message"]["content"].replace("\ufffd", "")[:3])
    )
    every = [one for each in content for one in (each, *each["top_logprobs"])]
    assert any(one["token"] == "\ufffd" for one in every), "no part of a character: choose another seed"
    for one in every:
        assert one["token"] == bytes(one["bytes"]).decode(errors="replace")
        assert one["bytes"] != list("\ufffd".encode())


def test_options_reach_the_engine(scripted: Any) -> None:
    endpoint, engine = scripted(hello)
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": -3,
        "stop": ["x", "y"],
        "presence_penalty": 1,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "max_completion_tokens": 9,
    }
    assert endpoint.chat(**options).status_code == 200
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 7, -3)
    assert (sampling.stop, sampling.max_new_tokens, sampling.repetition_penalty) == (("x", "y"), 9, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.num_logprobs) == (1.0, 0.5, None)
    endpoint.chat()
    assert engine.requests[1].sampling.max_new_tokens == 8


def test_what_clients_send_without_meaning_it_is_let_through(scripted: Any) -> None:
    endpoint, _ = scripted(hello)
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "tools": None,
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "max_tokens": None,
        "stream_options": None,
    }
    earlier = assistant("x") | {"refusal": None, "tool_calls": None, "annotations": []}
    messages = [{"role": "user", "content": "a", "name": "n"}, earlier, {"role": "user", "content": "b"}]
    assert endpoint.chat(messages=messages, **harmless).status_code == 200


def test_a_stream_has_openais_shape(scripted: Any) -> None:
    endpoint, _ = scripted(hello, delay_s=0.02)
    answer = endpoint.chat(stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(answer)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Hel", "lo", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert "usage" not in [key for chunk in events(endpoint.chat(stream=True))[:-1] for key in chunk]


def test_impossible_tokens_stay_within_json(scripted: Any) -> None:
    logprob = TokenLogprob(5, float("-inf"), ((6, float("-inf")),))
    endpoint, _ = scripted(lambda _: [TokenDelta("x", (5,), (logprob,), "stop")])
    content = endpoint.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"] == -9999.0


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_is_a_status_code(scripted: Any, stream: bool) -> None:
    for error, status in ((GenerationFailedError("secret"), 500), (EngineClosedError("secret"), 503)):
        endpoint, engine = scripted(lambda _, error=error: [error])
        answer = endpoint.chat(stream=stream)
        assert answer.status_code == status
        assert "secret" not in answer.text
        assert engine.num_running == 0


def test_a_failure_in_mid_stream_is_an_event_that_clients_raise_on(scripted: Any) -> None:
    endpoint, engine = scripted(lambda _: [HELLO[0], GenerationFailedError("secret")])
    *_, last = events(endpoint.chat(stream=True))
    assert last["error"]["code"] == "internal_error"
    assert engine.num_running == 0


def test_overload_is_429_with_retry_after_and_takes_nothing(scripted: Any) -> None:
    endpoint, engine = scripted(hello, max_requests=2)
    answer = endpoint.chat(n=3)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert engine.num_running == 0
    assert endpoint.chat(n=2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_deadline_ends_an_answer_and_frees_its_slot(scripted: Any, stream: bool) -> None:
    endpoint, engine = scripted(hello, {"request_timeout_s": 1.0}, delay_s=0.4)
    answer = endpoint.chat(stream=stream)
    error = events(answer)[-1]["error"] if stream else answer.json()["error"]
    assert error["code"] == "deadline_exceeded"
    assert answer.status_code == (200 if stream else 504)
    assert engine.num_running == 0
    assert engine.num_aborted == 1


def test_the_deadline_counts_what_comes_before_the_model_too(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, engine = scripted(hello, {"request_timeout_s": 0.2})
    prompts = endpoint.service.backend.prompts
    prepare = prompts.prepare

    def slowly(request: Any) -> Any:
        time.sleep(0.5)
        return prepare(request)

    monkeypatch.setattr(prompts, "prepare", slowly)
    answer = endpoint.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert not engine.requests


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(scripted: Any, stream: bool) -> None:
    endpoint, engine = scripted(lambda _: [TokenDelta("x", (5,))] * 1000, delay_s=0.01)

    async def main() -> None:
        body = json.dumps(ASK | {"stream": stream}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.Event()

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        scope |= {"query_string": b"", "asgi": {"version": "3.0"}, "server": ("x", 80), "scheme": "http"}
        request = asyncio.create_task(endpoint.app(scope, receive, send))
        while not engine.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert engine.num_running == 1
        left.set()
        await asyncio.wait_for(request, 3)
        assert engine.num_running == 0

    asyncio.run(main())
    assert engine.num_aborted == 1


def test_a_body_that_does_not_come_is_given_up(scripted: Any) -> None:
    endpoint, _ = scripted(hello)

    async def slowly() -> Any:
        yield b"{"
        await asyncio.sleep(30)

    answer = endpoint.request(
        "POST", "/v1/chat/completions", content=slowly(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")


def test_an_unexpected_exception_is_a_500_without_details(scripted: Any, caplog: Any) -> None:
    def explode(_: GenerationRequest) -> Any:
        raise ZeroDivisionError("secret")

    endpoint, _ = scripted(explode)
    answer = endpoint.chat()
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


def test_head_is_get_without_a_body_and_a_slash_behind_a_path_is_nothing(endpoint: Any) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/tiny", "/openapi.json", "/readyz/"):
        head = endpoint.request("HEAD", path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == endpoint.request("GET", path).headers["content-type"]
    assert endpoint.request("HEAD", "/nothing").status_code == 404
    assert endpoint.request("HEAD", "/v1/chat/completions").status_code == 405
    forged = {"host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-host": "evil.example"}
    for path in ("/v1/models/", "/healthz/", "/v1/models//"):
        answer = endpoint.request("GET", path, headers=forged)
        assert (answer.status_code, answer.text) == (200, endpoint.request("GET", path.rstrip("/")).text)
    assert endpoint.request("POST", "/v1/chat/completions/", json=ASK | {"max_tokens": 1}).status_code == 200
    assert endpoint.request("GET", "//evil.example/").status_code == 404


def test_an_id_of_the_proxy_is_logged_as_the_client_sees_it(scripted: Any, caplog: Any) -> None:
    caplog.set_level("INFO")
    endpoint, _ = scripted(hello)
    app = create_api(endpoint.service, names_requests=False)

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            return await client.get("/healthz" + "/x" * 999, headers={"x-request-id": 'a"b ' + "c" * 999})

    assert "x-request-id" not in asyncio.run(get()).headers
    (line,) = (record.message for record in caplog.records if record.name == "warren_serve.access")
    assert json.loads(line)["request_id"] == "a?b?" + "c" * 124
    assert len(line) < 1000


def test_request_ids_are_kept_when_they_are_harmless(endpoint: Any) -> None:
    assert endpoint.request("GET", "/healthz", headers={"x-request-id": "a-1"}).headers["x-request-id"] == "a-1"
    request_id = "x" * 200
    assert (
        endpoint.request("GET", "/healthz", headers={"x-request-id": request_id}).headers["x-request-id"] != request_id
    )


def test_models_tell_lineage_and_scores(endpoint: Any) -> None:
    (card,) = endpoint.request("GET", "/v1/models").json()["data"]
    assert card["lineage"] == {"run": "run-1", "checkpoint_step": 9}
    assert card["scores"] == {"exact_match": 0.5}
    assert card == endpoint.request("GET", "/v1/models/tiny").json()


def test_readiness_follows_the_engine(scripted: Any) -> None:
    endpoint, engine = scripted(hello)
    assert endpoint.request("GET", "/readyz").json()["version"] == "v7"
    engine.close()
    assert endpoint.request("GET", "/readyz").status_code == 503
    assert endpoint.request("GET", "/healthz").status_code == 200
    assert endpoint.chat().status_code == 503


def test_keys_are_needed_hashed_rotated_and_never_logged(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("INFO")
    digest = hashlib.sha256(b"first-key").hexdigest
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"file-key").hexdigest() + "\n")
    monkeypatch.setenv("KEYS", f"{digest()}, {hashlib.sha256(b'second').hexdigest()}")
    endpoint, _ = scripted(hello, {"api_keys_env": "KEYS", "api_keys_file": str(keys)})

    def ask(key: str | None) -> int:
        headers = {} if key is None else {"authorization": key}
        return int(endpoint.request("POST", "/v1/chat/completions", json=ASK, headers=headers).status_code)

    assert [ask(None), ask("Bearer wrong"), ask("first-key"), ask(f"Bearer {digest()}")] == [401] * 4
    assert [ask("Bearer first-key"), ask("bearer second"), ask("Bearer file-key")] == [200] * 3
    keys.write_text(hashlib.sha256(b"a-new-key").hexdigest() + "\n" * 2)
    assert [ask("Bearer file-key"), ask("Bearer a-new-key")] == [401, 200]
    assert endpoint.request("GET", "/v1/models").status_code == 401
    assert endpoint.request("GET", "/healthz").status_code == 200
    assert "-key" not in caplog.text


def test_the_description_is_sound(endpoint: Any) -> None:
    schema = endpoint.request("GET", "/openapi.json").json()
    references = {part.split('"')[0] for part in json.dumps(schema).split("#/components/schemas/")[1:]}
    assert references <= set(schema["components"]["schemas"])
    assert "$defs" not in json.dumps(schema)


def test_a_release_that_does_not_generate_is_refused(fetch: Callable[..., Any]) -> None:
    def broken(uri: str, target: Path) -> Any:
        release = fetch(uri, target)
        weights = target / "model.safetensors"
        save_file(
            {name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights, {"format": "pt"}
        )
        return release

    with pytest.raises(ReleaseError, match="does not generate"):
        load_backend(ServeSettings.parse({"release": "x"}), 1, broken)


def test_the_scripted_engine_counts() -> None:
    assert ScriptedEngine(hello).stats().num_running == 0
