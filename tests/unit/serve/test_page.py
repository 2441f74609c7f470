"""The chat page: what is served, and what a person sees in a real browser."""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import warren_serve
from live import listening
from warren.inference import GenerationFailedError, GenerationRequest, TokenDelta
from warren.inference.testing import png_bytes

FOLDER = Path(warren_serve.__file__).parent / "page"
ASK = "what is there?"


def answer(request: GenerationRequest) -> list[Any]:
    words = ["A ", "red ", "square" if len(request.pixels) else "nothing", "."]
    return [*(TokenDelta(word, (5,)) for word in words), TokenDelta("", (6,), finish_reason="stop")]


def test_the_page_is_there_only_where_asked(scripted: Any) -> None:
    closed, _ = scripted(answer)
    assert closed.request("GET", "/").status_code == 404
    endpoint, _ = scripted(answer, {"web_page": True})
    page = endpoint.request("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("chat.js", "chat.css", "deep-chat/deepChat.bundle.js", "deep-chat/LICENSE"):
        assert endpoint.request("GET", f"/page/{name}").text == (FOLDER / name).read_text()
    for name in ("../pages.py", "%2e%2e/pages.py", "deep-chat/../../pages.py", "", "deep-chat"):
        assert endpoint.request("GET", f"/page/{name}").status_code == 404
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_page_below_a_route_prefix_is_found_without_its_slash(scripted: Any) -> None:
    endpoint, _ = scripted(answer, {"web_page": True})
    app = endpoint.app

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"root_path": "/chat"}, receive, send)

    endpoint.app = below
    redirect = endpoint.request("GET", "/chat", headers={"host": "evil.example"})
    assert (redirect.status_code, redirect.headers["location"]) == (307, "chat/")
    assert endpoint.request("GET", "/chat/").headers["content-type"].startswith("text/html")
    assert endpoint.request("HEAD", "/chat/healthz/").status_code == 200


def test_the_component_is_the_one_that_its_origin_names() -> None:
    origin = (FOLDER / "deep-chat" / "ORIGIN.md").read_text()
    assert hashlib.sha256((FOLDER / "deep-chat" / "deepChat.bundle.js").read_bytes()).hexdigest() in origin


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    names = (os.environ.get("WARREN_BROWSER"), "chromium", "chromium-browser", "google-chrome")
    path = next((located for name in names if name and (located := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in WARREN_BROWSER")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may talk to the endpoint only; what its console complains of fails the test."""
    page = browser.new_page(viewport={"width": 800, "height": 700})
    page.set_default_timeout(20_000)
    page.complaints = []
    page.asked = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda line: page.complaints.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def send(page: Any, text: str, *images: bytes) -> None:
    """Drop images on the chat, write and send."""
    box = page.locator("#text-input")
    if images:
        drop(page, images)
        page.locator("#file-attachment-container img").nth(len(images) - 1).wait_for()
    box.fill(text)
    # The component takes the key only once it has found that there is something to send.
    page.locator(".input-button-svg-container .loading-button, #submit-icon").first.wait_for()
    box.press("Enter")


def drop(page: Any, images: tuple[bytes, ...]) -> None:
    files = [{"name": f"{number}.png", "data": list(data)} for number, data in enumerate(images)]
    page.evaluate(
        """files => {
            const chat = document.querySelector("deep-chat").shadowRoot.querySelector("#chat-view").parentElement;
            const data = new DataTransfer();
            for (const file of files)
                data.items.add(new File([new Uint8Array(file.data)], file.name, {type: "image/png"}));
            for (const kind of ["dragenter", "drop"]) {
                const area = chat.querySelector("#drag-and-drop") ?? chat;
                (kind === "drop" ? area : chat).dispatchEvent(
                    new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
            }
        }""",
        files,
    )


def test_a_person_drops_an_image_asks_and_reads_the_answer(scripted: Any, page: Any, tmp_path: Path) -> None:
    number = itertools.count(1)
    failing: Any = [GenerationFailedError("no")]
    script = lambda request: failing if next(number) == 3 else answer(request)  # noqa: E731
    endpoint, engine = scripted(script, {"web_page": True}, delay_s=0.02)
    with listening(endpoint.app) as url:
        page.goto(url)
        page.get_by_role("heading", name="tiny").wait_for()
        facts = page.locator("#lineage").inner_text()
        assert "run-1" in facts
        assert "50.0 %" in facts
        assert "v7" in facts
        assert "Nov 14, 2023" in facts
        assert "1700000000" not in facts

        send(page, ASK, png_bytes())
        page.get_by_text("A red square.").wait_for()
        send(page, "and now?")
        page.get_by_text("A red square.").nth(1).wait_for()

        # A failed question is forgotten, and its image with it: neither may go with the next question.
        send(page, "too much", png_bytes((0, 0, 250)))
        page.get_by_text("The server had an error").wait_for()
        assert page.locator("#file-attachment-container img").count() == 0
        page.screenshot(path=tmp_path / "page.png")
        print(f"screenshot: {tmp_path / 'page.png'}")
        send(page, "still there?")
        page.get_by_text("A red square.").nth(2).wait_for()
    first, second, _, last = engine.requests
    assert first.pixels[:, :, 0, 0].tolist() == [[200, 30, 30]]
    assert len(second.prompt_ids) > len(first.prompt_ids)
    assert last.pixels[:, :, 0, 0].tolist() == [[200, 30, 30]]
    assert {asked.split("/page")[0].startswith((url, "data:", "blob:")) for asked in page.asked} == {True}, page.asked
    assert [line for line in page.complaints if "500" not in line and "had an error" not in line] == []


def test_a_page_without_a_key_asks_for_one(scripted: Any, page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", hashlib.sha256(b"sesame").hexdigest())
    endpoint, _ = scripted(answer, {"web_page": True, "api_keys_env": "KEYS"})
    with listening(endpoint.app) as url:
        page.goto(url)
        page.get_by_role("heading", name="An API key is needed").wait_for()
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use").click()
        page.get_by_role("heading", name="This API key is not valid.").wait_for()
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Use").click()
        page.get_by_role("heading", name="tiny").wait_for()
        send(page, ASK)
        page.get_by_text("A red nothing.").wait_for()
