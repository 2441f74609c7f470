"""Hostile values in every field of every body: a typed 4xx or an answer, never a failure, never a long echo."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_parts import assistant, image_part, image_url, text, user
from warren.inference import TokenDelta

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COMMON = {
    "model": "tiny",
    "max_tokens": 1,
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "n": 1,
    "seed": 1,
    "stop": ["x"],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "metadata": {"a": "b"},
    "user": "u",
    "tools": [],
    "response_format": {"type": "text"},
}
MESSAGES = [
    {"role": "system", "content": [text("be brief")]},
    user(text("what?"), {"type": "image_url", "image_url": {**image_part()["image_url"], "detail": "low"}}),
    assistant("a") | {"name": "n", "tool_calls": None},
    {"role": "user", "content": "and?"},
]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: COMMON | {"messages": MESSAGES, "max_completion_tokens": 1, "logprobs": True, "top_logprobs": 2},
    COMPLETIONS: COMMON | {"prompt": "what?"},
}
MOST_ECHOED_BYTES = 1000
LONG = 30_000


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a body."""
    yield path
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, item in inner:
        yield from places(item, (*path, name))


PLACES = [(route, path) for route, body in BODIES.items() for path in places(body)]

PLAIN_TEXTS = ["", " ", "\x00", "\n", "<image>", "<|endoftext|>", "<text>", "null", "../x", "é" * 99, "x" * LONG]
URIS = ["data:", "data:image/png;base64,", "DATA:,", "data:image/png," + "%ff" * LONG, "http://a/" + "b" * LONG]
TEXTS = st.sampled_from([*PLAIN_TEXTS, *URIS, "🙂" * LONG])
SCALARS = st.sampled_from([None, True, False, 0, -1, 1, 0.5, 3.0, 2**63, -(2**80), 1e308, 10**400]) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
) | st.sampled_from([[{}] * 3000, ["x"] * 3000, [None] * 3000, {str(n): n for n in range(3000)}])


def put(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a body with another value at a path."""
    if not path:
        return value
    body = copy.deepcopy(body)
    node = body
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return body


def check(endpoint: Any, route: str, body: Any) -> None:
    content = json.dumps(body).encode()
    answer = endpoint.request("POST", route, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["code"], error
        assert len(answer.content) + sum(len(k) + len(v) for k, v in answer.headers.items()) < 2 * MOST_ECHOED_BYTES
        assert len(error["message"].encode()) < MOST_ECHOED_BYTES
        assert len((error["param"] or "").encode()) < MOST_ECHOED_BYTES
    assert endpoint.service.backend.engine.stats().num_running == 0


quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_no_value_in_any_field_fails_or_comes_back(endpoint: Any, place: tuple[str, Any], value: Any) -> None:
    route, path = place
    check(endpoint, route, put(BODIES[route], path, value))


@quick
@given(place=st.sampled_from(PLACES), name=TEXTS | st.text(max_size=9), value=VALUES)
def test_no_unknown_name_fails_or_comes_back(endpoint: Any, place: tuple[str, Any], name: str, value: Any) -> None:
    route, path = place
    node = BODIES[route]
    for part in path:
        node = node[part]
    if isinstance(node, dict):
        check(endpoint, route, put(BODIES[route], (*path, name), value))


@pytest.mark.parametrize("route", BODIES)
def test_a_long_value_is_answered_by_a_line_wherever_it_stands(scripted: Any, route: str) -> None:
    hello = [TokenDelta("hello", (5,), finish_reason="stop")]
    endpoint, _ = scripted(lambda _: hello, {"max_body_bytes": 3_000_000})
    long = "k" * 20_000
    for path in places(BODIES[route]):
        for value in (long, {long: 1}, [long], {long: None, "b": long}):
            check(endpoint, route, put(BODIES[route], path, value))
    check(endpoint, route, BODIES[route] | {"k" * 1_000_000: 1})
    check(endpoint, route, BODIES[route] | {f"{n}": 1 for n in range(50_000)})


@pytest.mark.parametrize("piece", [";a=  ", ';a="" ', ";a=;", " ", ";", '"', ";base64", "image/", "a="])
def test_the_head_of_a_data_uri_is_refused_at_once(endpoint: Any, piece: str) -> None:
    """A head that fits in many ways until its end must not be tried in all of them: that would take years."""
    url = "data:" + piece * 200
    for end in ("!", '"', "\x00", "x" * 1000):
        check(endpoint, CHAT, {"model": "tiny", "messages": [user(image_url(url + end))]})


def test_paths_and_headers_are_not_echoed_at_length(endpoint: Any) -> None:
    long = "k" * 20_000
    for method, path in (("GET", f"/{long}"), ("GET", f"/v1/models/{long}"), ("DELETE", f"/v1/models/{long}")):
        answer = endpoint.request(method, path, headers={"x-request-id": long, "authorization": f"Bearer {long}"})
        assert answer.status_code in (404, 405)
        assert len(answer.content) + sum(len(k) + len(v) for k, v in answer.headers.items()) < MOST_ECHOED_BYTES
