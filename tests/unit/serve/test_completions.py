"""Texts that the model continues as they stand."""

import asyncio
import json
from typing import Any

import openai
import pytest

from warren.inference import GenerationRequest, TokenDelta

PATH = "/v1/completions"


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("Hel", (5,)), TokenDelta("lo", (7,)), TokenDelta("", (6,), finish_reason="stop")]


def test_the_official_client_reads_whole_and_streamed_texts(endpoint: Any) -> None:
    async def main() -> None:
        async with endpoint.http() as http:
            client = openai.AsyncOpenAI(api_key="k", base_url="http://endpoint/v1", http_client=http, max_retries=0)
            ask: Any = {"model": "tiny", "prompt": "a blue", "max_tokens": 9, "temperature": 0}
            whole = await client.completions.create(**ask)
            stream = await client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
            assert chunks[-1].usage == whole.usage
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 9
            assert whole.object == "text_completion"
            with pytest.raises(openai.BadRequestError) as error:
                await client.completions.create(model="tiny", prompt="x", echo=True)
            assert error.value.param == "echo"

    asyncio.run(main())


def test_the_prompt_reaches_the_engine_as_it_is(scripted: Any) -> None:
    endpoint, engine = scripted(hello)
    body = {"model": "tiny", "prompt": "what shape", "n": 2, "stop": "x"}
    answer = endpoint.request("POST", PATH, json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == ["Hello", "Hello"]
    ids = engine.requests[0].prompt_ids.tolist()
    assert engine.tokenizer.decode(ids) == "what shape"
    assert engine.requests[0].sampling.stop == ("x",)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": ["a", "b"]}, "prompt", "invalid_type"),
        ({"prompt": [1, 2]}, "prompt", "invalid_type"),
        ({"prompt": "x" * 5001}, "prompt", "text_too_long"),
        ({"prompt": "é" * 400}, "prompt", "context_length_exceeded"),
        ({"prompt": "a<|endoftext|>"}, "prompt", "special_token_in_text"),
        ({"prompt": "<image>"}, "prompt", "special_token_in_text"),
        ({"suffix": "b"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"logprobs": 2}, "logprobs", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"n": 9}, "n", "invalid_value"),
    ],
)
def test_a_bad_body_is_a_typed_400(endpoint: Any, changes: Any, param: str, code: str) -> None:
    answer = endpoint.request("POST", PATH, json={"model": "tiny", "prompt": "a"} | changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error["message"]


def _streamed(endpoint: Any, body: dict[str, Any]) -> dict[int, str]:
    answer = endpoint.request("POST", PATH, json=body | {"stream": True})
    texts: dict[int, str] = {}
    for line in answer.text.split("\n\n")[:-2]:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def test_stop_strings_cut_a_continuation_where_they_stand_whole_and_streamed(endpoint: Any) -> None:
    """Of a text that begins with white space, too: nothing is dropped in front of it."""
    ask: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "temperature": 0, "n": 2}
    in_front = 0
    for number in (1, 2, 21, 38, 78, 100):
        body = ask | {"prompt": f"what {number}"}
        text = endpoint.request("POST", PATH, json=body).json()["choices"][0]["text"]
        assert _streamed(endpoint, body) == {0: text, 1: text}
        in_front += text[:1].isspace()
        for stop in (text[:1], text[:3], text[1:3], text[2:7], text[-1:]):
            whole = endpoint.request("POST", PATH, json=body | {"stop": [stop, "\x00"]}).json()
            assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "stop"], repr(stop)
            cut = text[: text.index(stop)]
            assert [choice["text"] for choice in whole["choices"]] == [cut, cut]
            assert _streamed(endpoint, body | {"stop": [stop, "\x00"]}) == {0: cut, 1: cut}
    assert in_front >= 3, "choose prompts that the model continues with a space"


def test_limits_hold_for_texts_too(scripted: Any) -> None:
    endpoint, _ = scripted(hello, {"requests_per_minute": 1})
    body = {"model": "tiny", "prompt": "a", "stream": True}
    answer = endpoint.request("POST", PATH, json=body)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]][-1] == "stop"
    assert endpoint.request("POST", PATH, json=body).status_code == 429
