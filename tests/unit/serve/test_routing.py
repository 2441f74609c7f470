"""Which release answers a request: weights, stickiness, a second try elsewhere, and what is measured."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from warren.inference import TokenDelta
from warren.release import Lineage, Release
from warren.rollout.traffic_analysis import AnswerRecord
from warren_serve.auth import ANONYMOUS
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.errors import ApiError, bad_request, internal_error, unavailable
from warren_serve.protocol import ChatRequest
from warren_serve.routing import RoutingTable, TrafficRouter
from warren_serve.service import ServedRelease

REQUEST = EngineRequest(
    ChatRequest.model_validate({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]})
)
BOTH = RoutingTable({"old": 0.9, "new": 0.1}, "new", {"old": "a-old", "new": "a-new"})


class Answers:
    """A backend that answers with texts, and fails after them if it has an error."""

    def __init__(self, version: str, *texts: str, error: ApiError | None = None, pause_s: float = 0.0) -> None:
        self._version, self._texts, self._error, self._pause_s = version, texts, error, pause_s
        self.is_alive = True

    async def ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        for number, text in enumerate(self._texts):
            yield ResponseChunk(((0, TokenDelta(text, (number,))),), 1, self._version)
            await asyncio.sleep(self._pause_s)
        if self._error:
            raise self._error

    def metrics(self) -> Any:
        return ()

    def close(self) -> None:
        pass


def router_of(*backends: Answers, table: RoutingTable = BOTH, timeout_s: float = 60.0) -> TrafficRouter:
    router = TrafficRouter(timeout_s)
    for backend in backends:
        release = Release("m", backend._version, 0, Lineage(), {}, ())
        router.load(ServedRelease(release, None), backend)  # type: ignore[arg-type]
    router.apply(table)
    return router


def ask(router: TrafficRouter, version: str = "new", most: int = 99) -> list[ResponseChunk]:
    async def read() -> list[ResponseChunk]:
        chunks, found = router.ask(replace(REQUEST, version=version)), []
        async for chunk in chunks:
            found.append(chunk)
            if len(found) == most:
                break
        await chunks.aclose()
        return found

    return asyncio.run(read())


def test_weights_are_kept_and_a_session_stays_where_it_is() -> None:
    router = router_of(Answers("old"), Answers("new"))
    drawn = Counter(router.choose(None, ANONYMOUS).release.version for _ in range(4000))
    assert 0.07 < drawn["new"] / 4000 < 0.13
    chosen = {f"s{n}": router.choose(f"s{n}", ANONYMOUS).release.version for n in range(2000)}
    assert 0.07 < Counter(chosen.values())["new"] / 2000 < 0.13
    assert all(router.choose(session, "key").release.version == version for session, version in chosen.items())
    router.apply(replace(BOTH, weights={"old": 0.5, "new": 0.5}))
    later = {session: router.choose(session, ANONYMOUS).release.version for session in chosen}
    assert all(later[session] == "new" for session, version in chosen.items() if version == "new"), "none goes back"
    router.apply(replace(BOTH, candidate="other"))
    assert router.main.release.version == router.choose("s1", ANONYMOUS).release.version == "old"


def test_all_ingress_replicas_send_a_client_to_the_same_release() -> None:
    table = replace(BOTH, weights={"old": 0.5, "new": 0.5})
    replicas = [router_of(Answers("old"), Answers("new"), table=table) for _ in range(3)]
    for number in range(200):
        chosen = {one.choose(f"s{number}", ANONYMOUS).release.version for one in replicas}
        chosen |= {one.choose(f"s{number}", "key").release.version for one in replicas}
        assert len(chosen) == 1


@pytest.mark.parametrize(("sticky", "is_one"), [("key", True), ("session", False), ("none", False)])
def test_a_key_sticks_only_if_it_is_asked_for(sticky: Any, is_one: bool) -> None:
    router = router_of(Answers("old"), Answers("new"), table=replace(BOTH, weights={"old": 0.5, "new": 0.5}))
    router.apply(replace(router.table, sticky=sticky))
    assert (len({router.choose(None, "digest").release.version for _ in range(99)}) == 1) is is_one


def test_a_release_that_is_not_loaded_here_gets_nothing() -> None:
    router = router_of(Answers("old"))
    assert {router.choose(None, ANONYMOUS).release.version for _ in range(200)} == {"old"}
    router.apply(replace(BOTH, weights={"new": 1.0}))
    assert not router.is_alive
    with pytest.raises(ApiError, match="No release serves yet"):
        router.choose(None, ANONYMOUS)


def test_a_request_goes_elsewhere_if_its_release_is_gone_before_the_first_token() -> None:
    router = router_of(Answers("old", "fine"), Answers("new", error=unavailable("gone")))
    assert [chunk.version for chunk in ask(router)] == ["old"]
    failed, fine = router.take_records()
    assert (failed.version, failed.is_failed, fine.version, fine.is_failed) == ("new", True, "old", False)
    assert router.take_records() == ()

    begun = router_of(Answers("old", "fine"), Answers("new", "half ", error=unavailable("gone")))
    with pytest.raises(ApiError, match="gone"):
        ask(begun)
    for error, is_failed in ((bad_request("no", "no"), []), (internal_error(), [True])):
        router = router_of(Answers("old", "fine"), Answers("new", error=error))
        with pytest.raises(ApiError):
            ask(router)
        assert [one.is_failed for one in router.take_records()] == is_failed, "a client's mistake is nobody's failure"
    assert [chunk.version for chunk in ask(router_of(Answers("old", "fine")), version="forgotten")] == ["old"]


def test_answers_are_measured() -> None:
    router = router_of(Answers("new", "one ", "two ", "three", pause_s=0.002), table=BOTH)
    ask(router)
    (one,) = router.take_records()
    assert (one.version, one.num_chars, one.is_empty, one.is_repetitive) == ("new", 13, False, False)
    assert not one.is_foreign
    assert one.first_token_s is not None
    assert one.gap_s
    assert one.tokens_per_s
    for texts, expected in ((("",), (True, False)), (("la " * 40,), (False, True))):
        router = router_of(Answers("new", *texts))
        ask(router)
        (one,) = router.take_records()
        assert (one.is_empty, one.is_repetitive, one.gap_s) == (*expected, None)


def test_a_client_that_leaves_is_no_failure_and_a_deadline_that_passes_is() -> None:
    router = router_of(Answers("new", "one", "two"))
    ask(router, most=1)
    assert router.take_records() == ()
    router = router_of(Answers("new", "one", "two"), timeout_s=0.0)
    ask(router, most=1)
    assert [type(one) for one in router.take_records()] == [AnswerRecord]
