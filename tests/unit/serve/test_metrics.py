"""What `/metrics` tells, in one process and gathered from a cluster's agents."""

import asyncio
import hashlib
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from warren.inference import GenerationRequest, TokenDelta
from warren_serve.cluster_metrics import ClusterMetrics, merged

PATH = "/v1/chat/completions"


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta(word, (5,)) for word in "abc"] + [TokenDelta("", (6,), finish_reason="stop")]


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return values by name and the values of their labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_requests_tokens_and_times_are_counted(scripted: Any) -> None:
    endpoint, engine = scripted(hello, delay_s=0.01)
    prompt = endpoint.chat().json()["usage"]["prompt_tokens"]
    endpoint.chat(stream=True)
    endpoint.chat(model="other")
    for path in ("/made-up", "/v1/models/made-up"):
        endpoint.request("GET", path)
    answer = endpoint.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = samples(answer.text)
    assert counted["warren_requests_total", PATH, "200"] == 2
    assert counted["warren_requests_total", PATH, "404"] == 1
    assert counted["warren_request_seconds_count", PATH] == 3
    assert counted["warren_requests_in_flight",] == 1, "the one that asks"
    assert counted["warren_prompt_tokens_total",] == 2 * prompt
    assert counted["warren_answer_tokens_total",] == 8
    assert counted["warren_time_to_first_token_seconds_count",] == 1
    assert counted["warren_inter_token_seconds_count",] == 3
    assert counted["warren_engine_slots",] == engine.stats().num_slots
    assert counted["warren_engine_running",] == 0
    assert "made-up" not in answer.text


def test_figures_need_a_key_where_the_models_do(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", hashlib.sha256(b"sesame").hexdigest())
    endpoint, _ = scripted(hello, {"api_keys_env": "KEYS"})
    assert endpoint.request("GET", "/metrics").status_code == 401
    headers = {"authorization": "Bearer sesame"}
    assert endpoint.request("GET", "/metrics", headers=headers).status_code == 200


def test_requests_refused_before_they_are_routed_count_under_their_route(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS", hashlib.sha256(b"sesame").hexdigest())
    endpoint, _ = scripted(hello, {"api_keys_env": "KEYS", "requests_per_minute": 1})
    headers = {"authorization": "Bearer sesame"}
    endpoint.chat()
    for _ in range(2):
        endpoint.request("POST", PATH, json={}, headers=headers)
    endpoint.request("GET", "/v1/models/made-up")
    endpoint.request("GET", "/made-up")
    counted = samples(endpoint.request("GET", "/metrics", headers=headers).text)
    assert counted["warren_requests_total", PATH, "401"] == 1
    assert counted["warren_requests_total", PATH, "429"] == 1
    assert counted["warren_requests_total", "/v1/models/{model:path}", "401"] == 1
    assert counted["warren_requests_total", "none", "401"] == 1


def test_readers_at_the_same_time_share_one_round_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    async def ask(_: ClusterMetrics) -> bytes:
        nonlocal rounds
        rounds += 1
        await asyncio.sleep(0.01)
        return b"%d" % rounds

    async def read() -> list[bytes]:
        metrics = ClusterMetrics("chat")
        leaving = asyncio.create_task(metrics.read())
        await asyncio.sleep(0)
        leaving.cancel()
        return [*await asyncio.gather(*(metrics.read() for _ in range(6))), await metrics.read()]

    monkeypatch.setattr(ClusterMetrics, "_ask_agents", ask)
    assert asyncio.run(read()) == [b"1"] * 7


def test_a_clusters_metrics_keep_their_names_and_types() -> None:
    agent = """# TYPE ray_warren_requests_total gauge
ray_warren_requests_total{Component="core_worker",application="chat",replica="%s",route="/v1/x",status="200"} 3.0
# TYPE ray_warren_request_seconds_bucket gauge
ray_warren_request_seconds_bucket{application="chat",le="+Inf",replica="%s",route="/v1/x"} 3.0
# TYPE ray_warren_engine_slots gauge
ray_warren_engine_slots{application="chat",replica="%s"} 8.0
ray_warren_engine_slots{application="closed",replica="c"} 8.0
# TYPE ray_other gauge
ray_other 1.0
"""
    text = merged([agent % (("a",) * 3), "", agent % (("b",) * 3)], "chat").decode()
    assert "# TYPE warren_requests_total counter" in text
    assert "# TYPE warren_request_seconds histogram" in text
    assert "# TYPE warren_engine_slots gauge" in text
    for replica in "ab":
        labels = f'application="chat",replica="{replica}",route="/v1/x",status="200"'
        assert f"warren_requests_total{{{labels}}} 3.0" in text
    assert "closed" not in text, "another application's metrics may need another key"
    assert "other" not in text
    assert "core_worker" not in text
