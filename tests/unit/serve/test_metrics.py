"""What `/metrics` tells, in one process and gathered from a cluster's agents."""

import asyncio
import hashlib
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from warren.inference import GenerationFailedError, GenerationRequest, TokenDelta
from warren_serve.cluster_metrics import ClusterMetrics, merged
from warren_serve.metrics import RolloutMetrics, render

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
    assert counted["warren_engine_release", "v7"] == 1
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


def test_refusals_and_broken_streams_count_under_their_reason(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", hashlib.sha256(b"sesame").hexdigest())
    answer = [TokenDelta("a", (5,)), GenerationFailedError("broke")]
    endpoint, _ = scripted(lambda _: answer, {"api_keys_env": "KEYS", "requests_per_minute": 3})
    headers = {"authorization": "Bearer sesame"}
    endpoint.chat()
    for refused in ({"model": "other", "messages": [{"role": "user", "content": "?"}]}, {"temperature": "hot"}):
        endpoint.request("POST", PATH, json=refused, headers=headers)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "stream": True}
    assert endpoint.request("POST", PATH, json=body, headers=headers).status_code == 200
    endpoint.request("POST", PATH, json=body, headers=headers)
    endpoint.request("GET", "/made-up", headers=headers)
    endpoint.request("POST", PATH, content=b"x" * 700_000, headers=headers)
    counted = samples(endpoint.request("GET", "/metrics", headers=headers).text)
    reasons = {key[1]: value for key, value in counted.items() if key[0] == "warren_request_errors_total"}
    assert reasons == {
        "missing_api_key": 1,
        "model_not_found": 1,
        "missing_required_parameter": 1,
        "internal_error": 1,
        "rate_limit_exceeded": 1,
        "not_found": 1,
        "request_too_large": 1,
    }


def test_the_rollouts_state_is_shown_and_what_is_over_goes_to_zero() -> None:
    status: dict[str, Any] = {
        "phase": "shifting",
        "stable": "v1",
        "candidate": "v2",
        "step": 1,
        "weights": {"v1": 0.7, "v2": 0.3},
        "paused": True,
        "refused": {"v0": "bad"},
        "gate_refusal": "",
        "superseded": "",
    }
    metrics = RolloutMetrics()
    metrics.show(status)
    shown = samples(render(metrics.registry.collect()).decode())
    assert shown["warren_rollout_weight", "v2"] == 0.3
    assert shown["warren_rollout_version", "candidate", "v2"] == 1
    assert (shown["warren_rollout_step",], shown["warren_rollout_paused",]) == (1, 1)
    assert shown["warren_rollout_refused_versions",] == 1
    metrics.show({**status, "phase": "rolling_back", "weights": {"v1": 1.0}})
    metrics.show({**status, "phase": "idle", "candidate": None, "weights": {"v1": 1.0}, "gate_refusal": "worse"})
    shown = samples(render(metrics.registry.collect()).decode())
    assert shown["warren_rollout_weight", "v2"] == 0
    assert shown["warren_rollout_version", "candidate", "v2"] == 0
    assert shown["warren_rollout_version", "stable", "v1"] == 1
    assert (shown["warren_rollout_phase", "shifting"], shown["warren_rollout_phase", "idle"]) == (0, 1)
    assert (shown["warren_rollout_rollbacks_total",], shown["warren_rollout_gate_refuses",]) == (1, 1)


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
ray_warren_engine_slots{application="chat-engine-v2",replica="d"} 4.0
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
    assert "v2" not in text
    front = merged([agent % (("a",) * 3)], "chat", "chat-engine-").decode()
    assert 'warren_engine_slots{application="chat-engine-v2",replica="d"} 4.0' in front
    assert "closed" not in front + text, "another application's metrics may need another key"
    assert "other" not in text
    assert "core_worker" not in text
