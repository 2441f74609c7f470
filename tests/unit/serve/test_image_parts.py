"""Images in a chat request: where they stand in the prompt, and how a data URI may be spelt."""

import base64
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from chat_parts import image_part, text, user
from warren.inference import GenerationRequest, TokenDelta
from warren.inference.testing import png_bytes


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("hello", (5,), finish_reason="stop")]


A, B = image_part(png_bytes((9, 0, 0))), image_part(png_bytes((0, 0, 9)))


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        ([text("look"), A], "@\nlook"),
        ([text("look"), A, text("here")], "@\nlook\nhere"),
        ([A, text("look"), text("here")], "@\nlook\nhere"),
        ([text("look"), A, B], "@\n@\nlook"),
        ([A], "@\n"),
        ([text("first"), A, text("second"), B], "first\n@\nsecond\n@"),
        ([A, text("and"), B], "@\nand\n@"),
        ([A, text("and"), B, text("which?")], "@\nand\n@\nwhich?"),
        ([A, A, text("and"), B], "@\n@\nand\n@"),
    ],
)
def test_an_images_place_between_texts_is_kept(scripted: Any, parts: list[Any], prompt: str) -> None:
    """As trained where that says the same: Bunny writes an image in front of its message's text."""
    endpoint, engine = scripted(hello, {"max_images": 3})
    assert endpoint.chat(messages=[user(*parts)]).status_code == 200
    (request,) = engine.requests
    prompts = endpoint.service.backend.prompts
    tokens = prompts._inputs.tokens
    pieces: list[str] = []
    ids = request.prompt_ids.tolist()
    while tokens.image_token_id in ids:
        at = ids.index(tokens.image_token_id)
        pieces.append(prompts._tokenizer.decode(ids[:at]))
        ids = ids[at + tokens.tokens_per_image :]
    pieces.append(prompts._tokenizer.decode(ids))
    assert "@".join(pieces) == f"USER: {prompt} ASSISTANT:"
    shown = [image["image_url"]["url"] for image in parts if image["type"] == "image_url"]
    assert [pixels[0, 0, 0] > 0 for pixels in request.pixels] == [url == A["image_url"]["url"] for url in shown]


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:image/PNG;BASE64,",
        "data:image/png;charset=utf-8;base64,",
        'data:image/png; name="a,b;c.png" ;base64,',
        "data:application/octet-stream;base64,",
        "data:;base64,",
    ],
)
def test_data_uris_may_be_spelt_as_rfc_2397_allows(endpoint: Any, head: str) -> None:
    data = base64.b64encode(png_bytes()).decode()
    for payload in (data, data.replace("=", "%3D").replace("+", "%2b").replace("/", "%2F")):
        part = {"type": "image_url", "image_url": {"url": head + payload}}
        answer = endpoint.chat(messages=[user(part)], max_tokens=1)
        assert answer.status_code == 200, answer.text
    plain = "data:image/png," + quote_from_bytes(png_bytes())
    answer = endpoint.chat(messages=[user({"type": "image_url", "image_url": {"url": plain}})], max_tokens=1)
    assert answer.status_code == 200, answer.text
