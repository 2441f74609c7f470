"""An endpoint is asked with patience: bounded, paused where it says so, each failure its own question's."""

import argparse
import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from benchmark_asking import write_benchmark
from live import listening
from warren.cli.ask import ask_options, run_endpoint
from warren.errors import ConfigError, QuarantineError, ServiceError
from warren.evaluate import endpoint_client
from warren.evaluate.ask_endpoint import ask_at_endpoint, content_parts, data_uri, find_model
from warren.evaluate.benchmark_result import finish
from warren.evaluate.benchmark_run import BenchmarkRun, QuestionSource
from warren.evaluate.endpoint_client import EndpointClient, EndpointOptions, retry_after_s
from warren.storage import Location

Script = Callable[[str, int], Response | None]
REFUSALS = {400: {"error": {"message": "too long"}}, 401: {"error": {"message": "no such key"}}}


class FakeEndpoint:
    """Answers with the question's last word; a script may answer otherwise, by text and number of its repetition."""

    def __init__(self) -> None:
        self.script: Script = lambda text, number: None
        self.asked: Counter[str] = Counter()
        self.images: list[bytes] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.running = self.most_running = 0
        self.models = ["tiny"]
        routes = [
            Route("/v1/models", self._list, methods=["GET"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _list(self, request: Request) -> Response:
        data = [{"id": name, "created": self.asked.total(), "object": "model"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})

    async def _chat(self, request: Request) -> Response:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            body = await request.json()
            await asyncio.sleep(0.002)
        finally:
            self.running -= 1
        self.keys.add(request.headers.get("authorization"))
        parts = body["messages"][0]["content"]
        text = next(part["text"] for part in parts if part["type"] == "text")
        self.images += [_decoded(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        self.bodies.append(body)
        self.asked[text] += 1
        answer = {"role": "assistant", "content": f" {text.split()[-1]}\n"}
        choice = {"choices": [{"message": answer}], "usage": {"completion_tokens": 3}}
        return self.script(text, self.asked[text]) or JSONResponse(choice)


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeEndpoint, str]]:
    fake = FakeEndpoint()
    with listening(fake.app) as url:
        yield fake, url


@pytest.fixture
def fake(served: tuple[FakeEndpoint, str], monkeypatch: pytest.MonkeyPatch) -> FakeEndpoint:
    """The server, as new; nobody pauses."""
    monkeypatch.setattr(endpoint_client, "_jittered", lambda longest_s: 0.0)
    endpoint = served[0]
    endpoint.script, endpoint.models = (lambda text, number: None), ["tiny"]
    for kept in (endpoint.asked, endpoint.images, endpoint.bodies, endpoint.keys):
        kept.clear()
    endpoint.most_running = 0
    return endpoint


@pytest.fixture
def url(served: tuple[FakeEndpoint, str]) -> str:
    return served[1]


def run_at(options: EndpointOptions, benchmark: str, folder: Path) -> BenchmarkRun:
    source = QuestionSource.of(benchmark, None)
    return BenchmarkRun(source, find_model(options), Location(str(folder)), None, 8)


def test_all_is_asked_once_and_losslessly_with_bounded_requests(fake: FakeEndpoint, url: str, tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path / "data", 20)
    options = EndpointOptions(f"{url}/v1/", api_key="secret", concurrency=3)
    run = run_at(options, benchmark, tmp_path / "run")
    seen: list[int] = []
    assert ask_at_endpoint(run, options, seen.append) == (20, 0)
    assert sum(seen) == 20
    assert set(fake.asked.values()) == {1}
    assert fake.most_running <= 3
    assert fake.keys == {"Bearer secret"}
    assert set(fake.images) == {path.read_bytes() for path in (tmp_path / "data/images").iterdir()}
    [body] = [each for each in fake.bodies if "number 3?" in json.dumps(each)]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 8, 0)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    outcomes, _ = run.join()
    assert (outcomes[0].answer.answer, outcomes[0].answer.num_tokens) == ("0?", 3)
    assert all(outcome.images for outcome in outcomes)
    assert ask_at_endpoint(run_at(options, benchmark, tmp_path / "run"), options) == (0, 20)


def test_a_busy_or_stumbling_endpoint_is_asked_again(fake: FakeEndpoint, url: str, tmp_path: Path) -> None:
    def script(text: str, number: int) -> Response | None:
        if "number 1?" in text and number < 8:
            return PlainTextResponse("slow down", 429, {"retry-after": "0"})
        if "number 2?" in text and number < 3:
            return PlainTextResponse("starting", 503)
        if "number 3?" in text and number < 4:
            return PlainTextResponse("oops", 500)
        if "number 4?" in text and number < 2:
            return PlainTextResponse("<html>")
        if "number 5?" in text and number < 2:
            return JSONResponse({"choices": []}, 504)
        return None

    fake.script = script
    options = EndpointOptions(url)
    run = run_at(options, write_benchmark(tmp_path / "data", 9), tmp_path / "run")
    ask_at_endpoint(run, options)
    assert finish(run).report["num_answered"] == 9
    assert sorted(fake.asked.values()) == [1, 1, 1, 1, 2, 2, 3, 4, 8]


def test_what_an_endpoint_refuses_fails_alone_and_what_may_pass_is_asked_by_the_next_attempt(
    fake: FakeEndpoint, url: str, tmp_path: Path
) -> None:
    def script(text: str, number: int) -> Response | None:
        if "number 1?" in text:
            return JSONResponse(REFUSALS[400], 400)
        if "number 7?" in text and number < 5:
            return PlainTextResponse("broken", 500)
        return JSONResponse({"choices": [{"message": {"content": None}}]}) if "number 8?" in text else None

    fake.script = script
    options = EndpointOptions(url)
    benchmark = write_benchmark(tmp_path / "data", 12)
    (tmp_path / "data/images/5.png").write_bytes(b"not sent to anybody, but not decoded here either")
    run = run_at(options, benchmark, tmp_path / "run")
    ask_at_endpoint(run, options)
    with pytest.raises(QuarantineError, match="3 of 12 questions failed") as failed:
        finish(run)
    assert 'HTTP 400: {"error":{"message":"too long"}}' in str(failed.value)
    assert "run this again to ask the 2 whose reason may pass" in str(failed.value)
    before = Counter(fake.asked)
    assert ask_at_endpoint(run, options) == (2, 10)
    again = fake.asked - before
    assert {text.split("?")[0][-1] for text in again} == {"7", "8"}
    assert finish(run, max_failed_fraction=0.2).report["failed"] == ["q0001", "q0008"]


def test_wrong_settings_and_an_endpoint_that_is_down_end_the_run_and_keep_what_there_is(
    fake: FakeEndpoint, url: str, tmp_path: Path
) -> None:
    options = EndpointOptions(url, concurrency=2, num_tries=1)
    benchmark = write_benchmark(tmp_path / "data", 40)
    run = run_at(options, benchmark, tmp_path / "run")
    fake.script = lambda text, number: JSONResponse(REFUSALS[401], 401)
    with pytest.raises(ServiceError, match=r"HTTP 401: .*check --endpoint, --model and --api-key-env"):
        ask_at_endpoint(run, options)
    assert fake.asked.total() <= 2
    fake.script = lambda text, number: PlainTextResponse("down", 502) if fake.asked.total() > 30 else None
    with pytest.raises(ServiceError, match=r"8 questions in a row failed, .*HTTP 502: down"):
        ask_at_endpoint(run, options)
    kept = {key: found for key, found in run.pieces.read().outcomes.items() if not found.is_transient}
    assert 8 <= len(kept) < 40
    fake.script = lambda text, number: None
    before = Counter(fake.asked)
    assert ask_at_endpoint(run, options) == (40 - len(kept), len(kept))
    assert not {row.answer.question for row in kept.values()} & set(fake.asked - before)


def test_the_model_is_found_or_the_choice_is_named(fake: FakeEndpoint, url: str) -> None:
    first = find_model(EndpointOptions(url))
    fake.asked["something"] += 1  # `created` differs now
    assert find_model(EndpointOptions(url)) == first
    fake.models = ["tiny", "large"]
    with pytest.raises(ConfigError, match="has the models tiny, large: choose one with --model"):
        find_model(EndpointOptions(url))
    with pytest.raises(ConfigError, match="has no model 'huge'; it has tiny, large"):
        find_model(EndpointOptions(url, model="huge"))
    assert find_model(EndpointOptions(url, model="large")).digest != first.digest
    with pytest.raises(ServiceError, match="HTTP 404"):
        find_model(EndpointOptions(f"{url}/other"))
    assert find_model(EndpointOptions(f"{url}/other", model="unlisted")).name == "unlisted"
    with pytest.raises(ServiceError, match="does not answer"):
        find_model(EndpointOptions("http://127.0.0.1:9/v1", model="tiny"))
    for wrong in ({"url": "localhost:8000"}, {"url": url, "concurrency": 0}, {"url": url, "timeout_s": 0.0}):
        with pytest.raises(ConfigError):
            EndpointOptions(**wrong)  # type: ignore[arg-type]


def test_the_command_line_asks_scores_and_reports(
    fake: FakeEndpoint,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "secret")
    benchmark, out = write_benchmark(tmp_path / "data", 6), tmp_path / "out"

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--run")
        ask_options(parser)

    def run(*arguments: str) -> tuple[int, str]:
        common = ["--endpoint", url, "--out", str(out), *arguments]
        code = run_endpoint(common, "", options)
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = run("--benchmark", benchmark, "--api-key-env", "KEY_OF_TEST")
    assert code == 0, said
    assert "(6 questions asked, 0 answered before)" in said
    assert "colours (warren): 6 of 6 answered" in said
    assert (out / "scores.json").is_file()
    assert "answers a second" in (out / "report.html").read_text()
    assert fake.keys == {"Bearer secret"}
    assert "(0 questions asked, 6 answered before)" in run("--benchmark", benchmark)[1]
    for arguments, message in (
        (["--benchmark", benchmark, "--api-key-env", "KEY_OF_NOBODY"], "that variable is not set"),
        (["--benchmark", benchmark, "--release", "demo/stable"], "--release and --endpoint name two models"),
        ([], "--endpoint needs --benchmark"),
        (["--benchmark", benchmark, "--max-failed-fraction", "2"], "it is a share between 0 and 1"),
        (["--benchmark", "mme"], "mme needs --data"),
    ):
        code, said = run(*arguments)
        assert (code, said.count("error: ")) == (1, 1), said
        assert message in said


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("1.5") == 1.5
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_s("Wed, 21 Oct 2115 07:28:00 GMT") == 600.0
    assert [retry_after_s(value) for value in (None, "soon", "nan")] == [None, None, None]
    assert retry_after_s("1e9") == 600.0
    for unreadable in (
        "-3",
        "-0.1",
        "inf",
        "-inf",
        "1e999",
        "",
        "12 s",
        "Wed, 99 Oct 2015",
        "Wed, 21 Oct 99999 07:28:00 GMT",
    ):
        assert retry_after_s(unreadable) is None, unreadable


def test_a_pause_that_is_asked_for_holds_for_all_requests_and_another_only_for_its_own(
    fake: FakeEndpoint, url: str
) -> None:
    """The endpoint's pause comes on top of the usual one; a header that cannot be followed changes nothing."""
    pauses: list[float] = []

    async def no_sleep(pause_s: float) -> None:
        pauses.append(round(pause_s, 1))

    async def ask(client: EndpointClient, text: str) -> str:
        content = [{"type": "text", "text": text}]
        return (await client.chat({"messages": [{"role": "user", "content": content}]})).text

    async def two(status: int, retry_after: str) -> list[float]:
        headers = {"retry-after": retry_after}
        fake.asked.clear()
        fake.script = lambda text, number: PlainTextResponse("no", status, headers) if number < 2 else None
        pauses.clear()
        async with EndpointClient(EndpointOptions(url), lambda longest_s: longest_s, no_sleep) as client:
            fake.asked["second one"] = 1  # the endpoint refuses the first request only
            assert [await ask(client, text) for text in ("first one", "second one")] == [" one\n"] * 2
        return list(pauses)

    expected = {"7": 7.5, "-7": 0.5, "soon": 0.5, "nan": 0.5, "Wed, 21 Oct 2015 07:28:00 GMT": 0.5}
    for header, pause_s in expected.items():
        assert asyncio.run(two(429, header)) == [0.0, pause_s, pause_s]
        assert asyncio.run(two(503, header)) == [0.0, pause_s, pause_s]
        assert asyncio.run(two(500, header)) == [0.0, pause_s, 0.0, 0.0]


def test_any_base_url_leads_to_the_route(url: str) -> None:
    bases = {
        "http://h:8000": "http://h:8000/v1",
        "http://h/v1/": "http://h/v1",
        "http://h/v1/chat/completions": "http://h/v1",
        "http://h/prefix": "http://h/prefix/v1",
        "http://h/v1beta/openai": "http://h/v1beta/openai",
        "http://v1.example.org": "http://v1.example.org/v1",
    }
    assert {given: EndpointOptions(given).base for given in bases} == bases
    for wrong in ("ftp://h/v1", "h:8000", "http://", "http://[::1", "http://me:secret@h/v1"):
        with pytest.raises(ConfigError) as refused:
            EndpointOptions(wrong)
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)
    assert "secret" not in repr(EndpointOptions(url, api_key="secret"))


def test_marks_become_image_parts_in_their_places() -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(b"\x89PNG")}}
    texts = {
        "<image>\nwhat?": [image, "what?"],
        "<image>\n<image>\nwhat?": [image, image, "what?"],
        "first\n<image>\nthen\n<image>\nwhat?": ["first", image, "then", image, "what?"],
        "what?": ["what?"],
    }
    for text, expected in texts.items():
        parts = content_parts(text, [b"\x89PNG"] * text.count("<image>"))
        assert [part.get("text", part) for part in parts] == expected
    assert data_uri(b"RIFF1234WEBP").startswith("data:image/webp;base64,")
    assert data_uri(b"?").startswith("data:application/octet-stream;base64,")
