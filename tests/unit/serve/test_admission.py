"""Keys and their limits, other sites' pages, and the access log."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from warren.inference import GenerationRequest, TokenDelta

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}]}
PATH = "/v1/chat/completions"


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("Hel", (5,)), TokenDelta("lo", (7,), finish_reason="stop")]


@pytest.fixture
def two_keys(tmp_path: Path) -> dict[str, Any]:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(hashlib.sha256(key).hexdigest() for key in (b"alice", b"bob")))
    return {"api_keys_file": str(keys)}


def ask(endpoint: Any, key: str, **changes: Any) -> Any:
    return endpoint.request("POST", PATH, json=ASK | changes, headers={"authorization": f"Bearer {key}"})


def test_a_key_that_asks_too_often_waits_and_others_do_not(scripted: Any, two_keys: Any) -> None:
    endpoint, engine = scripted(hello, two_keys | {"requests_per_minute": 2})
    assert [ask(endpoint, "alice").status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(endpoint, "alice")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "2 requests per minute" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert ask(endpoint, "bob").status_code == 200
    authorization = {"authorization": "Bearer alice"}
    assert endpoint.request("GET", "/v1/models", headers=authorization).status_code == 200, "looking is free"
    assert len(engine.requests) == 3


def test_tokens_are_reserved_before_work_and_given_back_after(scripted: Any, two_keys: Any) -> None:
    long = TokenDelta("x", tuple(range(20)), finish_reason="stop")
    endpoint, engine = scripted(lambda _: [long], two_keys | {"tokens_per_minute": 200, "max_new_tokens": 199})
    words = [{"role": "user", "content": "what shape is there? " * 5}]
    prompt = ask(endpoint, "alice", messages=words, max_tokens=99).json()["usage"]["prompt_tokens"]
    assert prompt > 28
    left = 200 - prompt - 20  # and what seconds give back, far fewer than the 15 too many
    answer = ask(endpoint, "alice", messages=words, max_tokens=left - prompt + 15)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert ask(endpoint, "alice", messages=words, max_tokens=left - prompt).status_code == 200, (
        "a refused charge takes nothing"
    )
    never = ask(endpoint, "bob", n=3, max_tokens=99)
    assert (never.status_code, never.json()["error"]["code"]) == (400, "token_budget_exceeded")
    assert len(engine.requests) == 2, "what is refused never reaches the engine"


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_has_so_many_places_and_gets_them_back(scripted: Any, two_keys: Any, stream: bool) -> None:
    endpoint, engine = scripted(hello, two_keys | {"max_concurrent_requests": 1}, delay_s=0.05)
    body = ASK | {"stream": stream}

    async def main() -> list[int]:
        async with endpoint.http() as http:

            async def one(key: str) -> int:
                headers = {"authorization": f"Bearer {key}"}
                answer: httpx.Response = await http.post(PATH, json=body, headers=headers)
                return answer.status_code

            statuses = await asyncio.gather(one("alice"), one("alice"), one("bob"))
            return [*statuses, await one("alice")]

    assert asyncio.run(main()) == [200, 429, 200, 200]
    assert engine.num_running == 0


def test_more_requests_than_the_ingress_holds_are_a_typed_429(scripted: Any) -> None:
    endpoint, _ = scripted(hello, {"ingress_max_ongoing_requests": 2}, delay_s=0.05)

    async def main() -> list[httpx.Response]:
        async with endpoint.http() as http:
            answers = await asyncio.gather(*(http.post(PATH, json=ASK) for _ in range(4)), http.get("/readyz"))
            return [*answers, await http.post(PATH, json=ASK)]

    answers = asyncio.run(main())
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 200, 200]
    assert answers[2].json()["error"]["code"] == "overloaded"
    assert answers[2].headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_generated_for_a_client_who_left_is_charged(scripted: Any, stream: bool) -> None:
    """The request is cancelled as Serve does it; the prompt and the tokens until then are the engine's count."""
    reports: list[tuple[str, int]] = []
    deltas = [TokenDelta("x", (1, 2), finish_reason="stop" if number == 99 else None) for number in range(100)]
    settings = {"tokens_per_minute": 2000, "stream_interval_s": 60.0}
    endpoint, engine = scripted(lambda _: deltas, settings, delay_s=0.01)
    endpoint.service.backend._report_usage = lambda key, num_tokens: reports.append((key, num_tokens))

    async def main() -> None:
        async with endpoint.http() as http:
            asked = asyncio.create_task(http.post(PATH, json=ASK | {"max_tokens": 64, "stream": stream}))
            while not engine.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await asyncio.sleep(0.05)

    asyncio.run(main())
    ((key, num_reported),) = reports
    prompt = len(engine.requests[0].prompt_ids)
    num_received = 0 if not stream else prompt + 2  # the first chunk comes at once, the next after a minute
    assert key == "anonymous"
    assert prompt + 2 <= num_reported + num_received < prompt + 200
    assert num_reported > 2
    assert ask_fully(endpoint, reports) == 1, "the ingress itself charges a client who stays"


def ask_fully(endpoint: Any, reports: list[Any]) -> int:
    assert endpoint.chat(max_tokens=64).status_code == 200
    return len(reports)


@pytest.mark.parametrize("body", [{"messages": []}, {"model": "other"}, {"messages": "x"}])
def test_a_refused_request_frees_its_place(scripted: Any, body: Any) -> None:
    endpoint, _ = scripted(hello, {"max_concurrent_requests": 1})
    assert endpoint.chat(**body).status_code in (400, 404)
    assert endpoint.raw(b"{").status_code == 400
    assert endpoint.chat().status_code == 200


def test_a_key_file_written_wrongly_keeps_the_keys_that_were_valid(
    scripted: Any, two_keys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, _ = scripted(hello, two_keys)
    Path(two_keys["api_keys_file"]).write_text("carol-in-clear")
    assert [ask(endpoint, key).status_code for key in ("alice", "carol-in-clear")] == [200, 401]
    assert "carol" not in caplog.text
    assert "SHA-256" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", "a" * 64, b"\xff\xfe\x00"], ids=["empty", "blank", "utf-16", "binary"]
)
def test_a_key_file_that_is_emptied_or_in_another_encoding_locks_nobody_out(
    scripted: Any, two_keys: Any, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, _ = scripted(hello, two_keys)
    file = Path(two_keys["api_keys_file"])
    digests = file.read_text()
    file.write_bytes(content if isinstance(content, bytes) else digests.encode("utf-16"))
    assert [ask(endpoint, key).status_code for key in ("alice", "nobody", "alice")] == [200, 401, 200]
    assert sum("stay valid" in line for line in caplog.messages) == 1, "once, not at each request"
    file.write_bytes(b"\xef\xbb\xbf" + digests.encode())  # a byte order mark, as Windows editors write it
    assert ask(endpoint, "alice").status_code == 200


def test_a_key_in_another_script_is_known_by_the_digest_of_its_bytes(scripted: Any, tmp_path: Path) -> None:
    keys = ("clé-ключ-鍵", "voilà", "schlüssel")  # à ends with a byte that Latin-1 takes for a space
    (tmp_path / "keys").write_text("\n".join(hashlib.sha256(key.encode()).hexdigest() for key in keys))
    endpoint, _ = scripted(hello, {"api_keys_file": str(tmp_path / "keys")})
    for sent in (*(key.encode() for key in keys), "schlüssel".encode("latin-1")):
        headers = [(b"authorization", b"Bearer " + sent)]
        assert endpoint.request("POST", PATH, json=ASK, headers=headers).status_code == 200, sent
    for headers, code in (
        ([], "missing_api_key"),
        ([(b"authorization", b"Bearer wrong")], "invalid_api_key"),
        ([(b"authorization", b"Bearer  ")], "missing_api_key"),
        ([(b"authorization", b"Basic voil")], "missing_api_key"),
    ):
        answer = endpoint.request("POST", PATH, json=ASK, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)


def test_pages_of_other_sites_are_let_in_only_where_asked(scripted: Any) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed, _ = scripted(hello)
    answer = closed.request("OPTIONS", PATH, headers=preflight)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers
    answer = closed.request("POST", PATH, json=ASK, headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in answer.headers

    opened, _ = scripted(hello, {"cors_origins": ["https://a.example"], "max_concurrent_requests": 1})
    assert opened.request("OPTIONS", PATH, headers=preflight).status_code == 200
    assert opened.request("OPTIONS", PATH, headers=preflight | {"origin": "https://b.example"}).status_code == 400
    for body in (ASK, ASK | {"model": "other"}):
        answer = opened.request("POST", PATH, json=body, headers={"origin": "https://a.example"})
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


OPEN = {"/healthz", "/readyz", "/openapi.json", "/", "/page/chat.css"}


@pytest.mark.parametrize("prefix", ["", "/llm", "/v1", "/healthz"])
def test_whatever_the_route_prefix_all_but_the_open_paths_need_a_key(scripted: Any, two_keys: Any, prefix: str) -> None:
    """Serve leaves the prefix in the path and names it in `root_path`."""
    endpoint, engine = scripted(hello, two_keys | {"web_page": True})
    paths = {*OPEN, "/v1/models", "/v1/models/tiny", "/metrics", "/docs", "/healthz/x", "//v1/models", "/nothing"}
    transport = httpx.ASGITransport(endpoint.app, root_path=prefix)

    async def main() -> tuple[dict[str, int], list[int]]:
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            seen = {path: (await client.get(f"http://endpoint{prefix}{path}")).status_code for path in paths}
            keys: tuple[dict[str, str], ...] = ({}, {"authorization": "Bearer alice"})
            return seen, [(await client.post(prefix + PATH, json=ASK, headers=key)).status_code for key in keys]

    seen, asked = asyncio.run(main())
    assert {path for path, status in seen.items() if status == 200} == OPEN
    assert {status for path, status in seen.items() if path not in OPEN} == {401}
    assert (asked, len(engine.requests)) == ([401, 200], 1)


def test_one_line_of_json_a_request_without_content_or_key(scripted: Any, two_keys: Any, caplog: Any) -> None:
    caplog.set_level("INFO", "warren_serve")
    endpoint, _ = scripted(hello, two_keys)
    secret = [{"role": "user", "content": "a private question"}]
    ask(endpoint, "alice", messages=secret)
    ask(endpoint, "mallory", messages=secret)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "warren_serve.access"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", PATH, 200),
        ("POST", PATH, 401),
    ]
    assert lines[0]["key"] == hashlib.sha256(b"alice").hexdigest()[:12]
    assert lines[1]["key"] is None
    for word in ("private", "alice", "mallory", "Hel"):
        assert word not in caplog.text
