"""Other people's evaluation harnesses drive the endpoint without glue: their request bodies get answers.

The bodies are those that lmms-eval 0.7.3 (`models/chat/openai.py` and `async_openai.py`) and VLMEvalKit
(`vlmeval/api/gpt.py`, `openai_sdk.py` and `lmdeploy.py`) build.
"""

import io
from typing import Any

import pytest
from PIL import Image

from chat_parts import assistant, data_uri, image_part, image_url, text, user
from warren.inference import GenerationRequest, TokenDelta
from warren.inference.testing import png_bytes

CEILING = 64
QUESTION = "What is in the image?\nAnswer the question using a single word or phrase."
IMAGE = image_url(data_uri(png_bytes()))


def jpeg_uri() -> str:
    """Return an image as VLMEvalKit encodes it, at least 100 px wide and high."""
    buffer = io.BytesIO()
    Image.new("RGB", (100, 100), (200, 30, 30)).save(buffer, "JPEG")
    return data_uri(buffer.getvalue(), "jpeg")


def detailed(**fields: Any) -> dict[str, Any]:
    """Return the part of a message that shows VLMEvalKit's image."""
    return {"type": "image_url", "image_url": {"url": jpeg_uri(), **fields}}


LMMS_EVAL: dict[str, dict[str, Any]] = {
    "short answer": {"messages": [user(IMAGE, text(QUESTION))], "max_tokens": 16, "temperature": 0},
    "no limit in the task": {"messages": [user(IMAGE, text(QUESTION))], "max_tokens": 1024, "temperature": 0},
    "mathvista": {"messages": [user(IMAGE, text(QUESTION))], "max_tokens": 16384, "temperature": 0.0},
    "interleaved": {
        "messages": [user(text("First"), IMAGE, text("second"), IMAGE)],
        "max_tokens": 128,
        "temperature": 0,
    },
    "no image": {"messages": [user(text(QUESTION))], "max_tokens": 128, "temperature": 0},
    "several turns": {
        "messages": [
            {"role": "system", "content": [text("Be brief.")]},
            user(IMAGE, text(QUESTION)),
            {"role": "assistant", "content": [text("A cat.")]},
            user(text("Why?")),
        ],
        "max_tokens": 32,
        "temperature": 0,
    },
    "all parameters": {
        "messages": [user(IMAGE, text(QUESTION))],
        "max_tokens": 4096,
        "temperature": 0.2,
        "top_p": 1.0,
        "seed": 42,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "n": 1,
    },
    "a model called like o1": {
        "messages": [user(IMAGE, text(QUESTION))],
        "response_format": {"type": "text"},
        "max_completion_tokens": 16384,
    },
}
VLMEVALKIT: dict[str, dict[str, Any]] = {
    "--base-url": {"messages": [user(detailed(), text(QUESTION))], "n": 1, "max_tokens": 32768, "temperature": 0.0},
    "all parameters": {
        "messages": [user(detailed(), text(QUESTION))],
        "n": 1,
        "max_tokens": 32768,
        "temperature": 0.0,
        "top_k": -1,
        "top_p": 0.001,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "seed": 3407,
    },
    "low detail": {
        "messages": [user(detailed(detail="low"), text(QUESTION))],
        "n": 1,
        "temperature": 0,
        "max_tokens": 2048,
    },
    "high detail": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(detailed(detail="high"), text("and"), detailed(detail="high"), text(QUESTION)),
        ],
        "n": 1,
        "temperature": 0,
        "max_tokens": 2048,
    },
    "several turns": {
        "messages": [user(detailed(), text(QUESTION)), assistant("A cat."), user(text("Why?"))],
        "n": 1,
        "temperature": 0,
        "max_tokens": 1024,
    },
    "a model called like o1": {
        "messages": [user(text(QUESTION))],
        "n": 1,
        "max_completion_tokens": 32768,
    },
    "a retry after an empty answer": {
        "messages": [user(text(QUESTION))],
        "n": 1,
        "temperature": 2.0,
        "max_tokens": 32768,
    },
    "streamed": {
        "messages": [user(detailed(), text(QUESTION))],
        "n": 1,
        "max_tokens": 32768,
        "temperature": 0.0,
        "stream": True,
    },
}
OTHERS: dict[str, dict[str, Any]] = {  # what forks and wrappers of both add, and its values that change nothing
    "names": {"messages": [{**user(image_part(), text(QUESTION)), "name": "user"}], "max_tokens": 32768},
    "one stop string": {"messages": [user(text(QUESTION))], "max_tokens": 32768, "stop": "ASSISTANT:"},
    "stop strings": {"messages": [user(text(QUESTION))], "max_tokens": 32768, "stop": ["\n", "ASSISTANT:"]},
    "nulls": {"messages": [user(text(QUESTION))], "max_tokens": 32768, "stop": None, "seed": None, "top_p": None},
    "equal limits": {"messages": [user(text(QUESTION))], "max_tokens": 4096, "max_completion_tokens": 4096},
    "content as text": {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1},
    "a limit as JSON number": {"messages": [user(text(QUESTION))], "max_tokens": 32768.0, "temperature": 0},
}
REQUESTS = {
    f"{harness}: {name}": {"model": "tiny", **body}
    for harness, bodies in (("lmms-eval", LMMS_EVAL), ("VLMEvalKit", VLMEVALKIT), ("others", OTHERS))
    for name, body in bodies.items()
}


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("hello", (5,), finish_reason="stop")]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_harnesss_request_gets_an_answer(scripted: Any, name: str) -> None:
    endpoint, engine = scripted(hello)
    body = REQUESTS[name]
    answer = endpoint.request("POST", "/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-any"})
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert '"content":"hello"' in answer.text
    else:
        message = answer.json()["choices"][0]["message"]
        assert message["content"] == "hello", "both harnesses read the first choice's content as text"
        assert answer.json()["usage"]["completion_tokens"] == 1, "lmms-eval sums these"
    asked = body.get("max_tokens") or body["max_completion_tokens"]
    sampling = engine.requests[-1].sampling
    assert sampling.max_new_tokens == min(int(asked), CEILING), "a limit is lowered to the ceiling, not refused"
    assert sampling.temperature == body.get("temperature", 1.0)
    assert len(engine.requests[-1].pixels) == str(body).count("'image_url': {"), "every image arrives"


def test_the_first_listed_model_is_the_one_to_ask(scripted: Any) -> None:
    """VLMEvalKit's LMDeploy wrapper takes its name from the list."""
    endpoint, _ = scripted(hello)
    assert endpoint.request("GET", "/v1/models").json()["data"][0]["id"] == "tiny"
