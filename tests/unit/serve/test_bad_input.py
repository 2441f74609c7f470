"""Invariant 11: whatever comes over HTTP, the answer to bad input is a typed 4xx that names the field."""

import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chat_parts import assistant, data_uri, image_part, image_url, text, user
from warren.inference.testing import png_bytes


def _animated_gif() -> bytes:
    frames = [Image.new("P", (8, 8), index) for index in range(2)]
    for index, frame in enumerate(frames):
        frame.putpalette([index * 90] * 768)
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _huge_png() -> bytes:
    """Return a PNG of a few bytes that claims 10,000 x 10,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    chunks = b"\x00\x00\x00\x0d" + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + b"\x00\x00\x00\x02IDAT\x00\x00" + b"\x00" * 4


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "JPEG")
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
URL = "messages.0.content.0.image_url.url"
SPECIAL, CONTEXT, VALUE = "special_token_in_text", "context_length_exceeded", "invalid_value"
HI = {"role": "user", "content": "hi"}

BODIES: list[tuple[str, dict[str, Any], str | None, str]] = [
    # what, changes to a good body, param, code
    ("temperature high", {"temperature": 2.1}, "temperature", "invalid_value"),
    ("temperature negative", {"temperature": -0.1}, "temperature", "invalid_value"),
    ("temperature text", {"temperature": "hot"}, "temperature", "invalid_type"),
    ("top_p", {"top_p": 1.1}, "top_p", "invalid_value"),
    ("top_k", {"top_k": -2}, "top_k", "invalid_value"),
    ("repetition_penalty", {"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ("n zero", {"n": 0}, "n", "invalid_value"),
    ("n many", {"n": 4}, "n", "invalid_value"),
    ("max_tokens negative", {"max_tokens": -1}, "max_tokens", "invalid_value"),
    ("max_tokens zero", {"max_tokens": 0}, "max_tokens", "invalid_value"),
    ("max_tokens over the limit", {"max_tokens": 65}, "max_tokens", "invalid_value"),
    ("max_completion_tokens", {"max_completion_tokens": 65}, "max_completion_tokens", "invalid_value"),
    ("two limits", {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
    ("max_tokens float", {"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ("max_tokens true", {"max_tokens": True}, "max_tokens", "invalid_type"),
    ("seed huge", {"seed": 2**63}, "seed", "invalid_value"),
    ("stop empty", {"stop": ""}, "stop", "invalid_value"),
    ("stop many", {"stop": list("abcde")}, "stop", "invalid_value"),
    ("logprobs", {"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ("too many logprobs", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ("stream_options", {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ("unknown", {"best_off": 3}, "best_off", "unknown_parameter"),
    ("tools", {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ("json mode", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ("logit_bias", {"logit_bias": {"5": 100}}, "logit_bias", "unsupported_parameter"),
    ("no model", {"model": None}, "model", "invalid_type"),
    ("no messages", {"messages": []}, "messages", "invalid_value"),
    ("messages null", {"messages": None}, "messages", "invalid_type"),
    ("messages text", {"messages": "hi"}, "messages", "invalid_type"),
    ("message text", {"messages": ["hi"]}, "messages.0", "invalid_type"),
    ("many messages", {"messages": [HI, assistant("x")] * 5000}, "messages", "too_many_messages"),
    ("unknown role", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ("no role", {"messages": [{"content": "x"}]}, "messages.0.role", "invalid_value"),
    ("no content", {"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
    ("null content", {"messages": [{"role": "user", "content": None}]}, "messages.0.content", "invalid_type"),
    ("tool calls", {"messages": [HI | {"tool_calls": [1]}]}, "messages.0.tool_calls", "unsupported_parameter"),
    ("extra in message", {"messages": [HI | {"x": 1}]}, "messages.0.x", "unknown_parameter"),
    ("two users", {"messages": [HI, HI]}, "messages.1.role", "invalid_role_order"),
    ("assistant first", {"messages": [assistant("x"), HI]}, "messages.0.role", "invalid_role_order"),
    ("assistant last", {"messages": [HI, assistant("x")]}, "messages.1.role", "invalid_role_order"),
    ("only system", {"messages": [{"role": "system", "content": "x"}]}, "messages.0.role", "invalid_role_order"),
    ("late system", {"messages": [HI, {"role": "system", "content": "x"}]}, "messages.1.role", "invalid_role_order"),
    ("empty", {"messages": [{"role": "user", "content": " "}]}, "messages.0.content", "invalid_value"),
    ("empty parts", {"messages": [user()]}, "messages.0.content", "invalid_value"),
    ("unknown part", {"messages": [user({"type": "audio"})]}, "messages.0.content.0.type", "invalid_value"),
    ("extra in part", {"messages": [user(text("a") | {"cache_control": {"type": "ephemeral"}})]},
     "messages.0.content.0.cache_control", "unknown_parameter"),
    ("extra in image", {"messages": [user(image_part() | {"image_id": 1})]}, "messages.0.content.0.image_id",
     "unknown_parameter"),
    ("extra in url", {"messages": [user({"type": "image_url", "image_url": {"url": "data:,", "text": 1}})]},
     "messages.0.content.0.image_url.text", "unknown_parameter"),
    ("extra named as a field", {"messages": [HI | {"type": "text"}]}, "messages.0.type", "unknown_parameter"),
    ("extra beside options", {"stream": True, "stream_options": {"messages": 1}}, "stream_options.messages",
     "unknown_parameter"),
    ("url as text", {"messages": [user({"type": "image_url", "image_url": "data:,"})]},
     "messages.0.content.0.image_url", "invalid_type"),
    ("text as list", {"messages": [user({"type": "text", "text": ["a"]})]}, "messages.0.content.0.text",
     "invalid_type"),
    ("content as object", {"messages": [{"role": "user", "content": text("a")}]}, "messages.0.content", "invalid_type"),
    ("content of texts", {"messages": [user("a")]}, "messages.0.content.0", "invalid_type"),
    ("stop of numbers", {"stop": ["a", 1]}, "stop.1", "invalid_type"),
    ("stop as number", {"stop": 1}, "stop", "invalid_type"),
    ("detail", {"messages": [user({"type": "image_url", "image_url": {"url": "data:,", "detail": "x"}})]},
     "messages.0.content.0.image_url.detail", "invalid_value"),
    ("no text", {"messages": [user({"type": "text"})]}, "messages.0.content.0.text", "missing_required_parameter"),
    ("image mark", {"messages": [user(text("<image>"))]}, "messages.0.content", SPECIAL),
    ("mark in two", {"messages": [user(text("a <image> b"), image_part())]}, "messages.0.content", SPECIAL),
    ("eos", {"messages": [HI, assistant("a<|endoftext|>"), HI]}, "messages.1.content", SPECIAL),
    ("pad in system", {"messages": [{"role": "system", "content": "<|pad|>"}, HI]}, "messages.0.content", SPECIAL),
    ("long text", {"messages": [user(text("x" * 5001))]}, "messages", "text_too_long"),
    ("context", {"messages": [user(text("é" * 300))]}, "messages", CONTEXT),
    ("context and answer", {"messages": [user(text("é" * 200))], "max_tokens": 64}, "max_tokens", CONTEXT),
    ("many images", {"messages": [user(*[image_part()] * 3)]}, "messages", "too_many_images"),
    (
        "its image",
        {"messages": [HI, {**user(image_part()), "role": "assistant"}, HI]},
        "messages.1.content.0.type",
        VALUE,
    ),
    ("http url", {"messages": [user(image_url("http://169.254.169.254/latest"))]}, URL, "image_url_not_allowed"),
    ("https url", {"messages": [user(image_url("https://example.com/a.png"))]}, URL, "image_url_not_allowed"),
    ("file url", {"messages": [user(image_url("file:///etc/passwd"))]}, URL, "invalid_image_url"),
    ("text data uri", {"messages": [user(image_url("data:text/html;base64,AAAA"))]}, URL, "invalid_image_url"),
    ("url null", {"messages": [user(image_url(None))]}, URL, "invalid_type"),
    ("base64", {"messages": [user(image_url("data:image/png;base64,AA-A"))]}, URL, "invalid_base64"),
    ("base64 padding", {"messages": [user(image_url("data:image/png;base64,AAA"))]}, URL, "invalid_base64"),
    ("base64 spaces", {"messages": [user(image_url("data:image/png;base64,AA AA"))]}, URL, "invalid_base64"),
    ("base64 unicode", {"messages": [user(image_url("data:image/png;base64,ÄÄÄÄ"))]}, URL, "invalid_base64"),
    ("no bytes", {"messages": [user(image_part(b""))]}, URL, "invalid_image"),
    ("noise", {"messages": [user(image_part(b"\x00" * 99))]}, URL, "invalid_image"),
    ("svg", {"messages": [user(image_url(data_uri(SVG, "svg+xml")))]}, URL, "invalid_image"),
    ("animated gif", {"messages": [user(image_part(_animated_gif()))]}, URL, "animated_image"),
    ("100 megapixels", {"messages": [user(image_part(_huge_png()))]}, URL, "image_too_large"),
    ("pixels", {"messages": [user(image_part(png_bytes(size=(101, 100))))]}, URL, "image_too_large"),
    ("cut jpeg", {"messages": [user(image_part(_jpeg()[:400]))]}, URL, "invalid_image"),
    ("cut png", {"messages": [user(image_part(png_bytes()[:60]))]}, URL, "invalid_image"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "code"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES])
def test_a_bad_body_is_a_typed_400(endpoint: Any, changes: dict[str, Any], param: str, code: str) -> None:
    answer = endpoint.chat(**changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]
    assert endpoint.service.backend.engine.stats().num_running == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"model": "tiny", "messages": [', None),
        (b"\xff\xfe", None),
        (b"[" * 50_000, None),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, None),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_p": Infinity}', "top_p"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "temperature"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
    ],
)
def test_what_is_hardly_json_is_a_typed_400(endpoint: Any, body: bytes, param: str | None) -> None:
    answer = endpoint.raw(body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_nulls_ask_for_nothing_at_any_depth(endpoint: Any) -> None:
    without_detail = {"type": "image_url", "image_url": image_part()["image_url"] | {"detail": None}}
    messages = [user(text("a") | {"annotations": None}, without_detail) | {"name": None}]
    options = {"include_usage": None, "include_obfuscation": None, "unknown": None}
    nulls: Any = dict.fromkeys(["temperature", "top_p", "n", "stop", "seed", "tools", "logprobs", "unknown"])
    answer = endpoint.chat(messages=messages, stream=True, stream_options=options, max_tokens=1, **nulls)
    assert answer.status_code == 200, answer.text


def test_a_byte_order_mark_is_passed_over(endpoint: Any) -> None:
    body = b'\xef\xbb\xbf{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
    assert endpoint.raw(body).status_code == 200


def test_an_unknown_model_is_openais_404(endpoint: Any) -> None:
    answer = endpoint.chat(model="gpt-9")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_routes_that_do_not_exist_answer_as_openai_does(endpoint: Any, method: str, path: str, status: int) -> None:
    answer = endpoint.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_large_body_is_refused_by_its_announced_and_by_its_counted_length(endpoint: Any) -> None:
    assert endpoint.raw(b" " * 600_001).status_code == 413

    async def pieces() -> Any:
        for _ in range(700):
            yield b" " * 1000

    answer = endpoint.request(
        "POST", "/v1/chat/completions", content=pieces(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert endpoint.raw(b"{}", content_length="abc").status_code == 413


def test_only_json_is_read(endpoint: Any) -> None:
    assert endpoint.raw(b"{}", content_type="text/plain").status_code == 415
    assert endpoint.raw(b"{}", content_type="multipart/form-data").status_code == 415


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["messages", "temperature", "stop", "n", "stream", "seed", "tools", "logprobs", "stream_options", "model"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_no_field_makes_the_server_fail(endpoint: Any, field: str, value: Any) -> None:
    status = endpoint.chat(**{"max_tokens": 1} | {field: value}).status_code
    assert status == 200 or 400 <= status < 500


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x"]), "content": JSON}))
def test_no_message_makes_the_server_fail(endpoint: Any, message: Any) -> None:
    status = endpoint.chat(max_tokens=1, messages=[message]).status_code
    assert status == 200 or 400 <= status < 500


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000), kind=st.sampled_from(["png", "jpeg", "gif"]))
def test_no_image_makes_the_server_fail(endpoint: Any, cut: int, flip: int, kind: str) -> None:
    data = bytearray({"png": png_bytes(), "jpeg": _jpeg(), "gif": _animated_gif()}[kind])
    data[flip % len(data)] ^= 0x55
    status = endpoint.chat(max_tokens=1, messages=[user(image_part(bytes(data[: max(1, cut)])))]).status_code
    assert status in (200, 400)
