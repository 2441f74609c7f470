"""Marked secrets of the environment and of clients are in nothing that Warren writes, says or shows."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from factories import colour_sample, source_of, tiny_recipe, write_dataset
from warren.config import Recipe, Resources
from warren.config.environment import storage_root
from warren.errors import ConfigError
from warren.evaluate.endpoint_client import EndpointOptions
from warren.inference import EngineError, GenerationRequest, TokenDelta
from warren.storage import Location
from warren.train.run_record import describe

MARK = "5ecret-marked-value"


def test_an_endpoint_shows_neither_keys_nor_signatures(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: GenerationRequest) -> list[TokenDelta | EngineError]:
        return [TokenDelta("a", (5,), finish_reason="stop")]

    caplog.set_level(logging.DEBUG)
    digest = hashlib.sha256(MARK.encode()).hexdigest()
    monkeypatch.setenv("KEYS", digest)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", MARK)
    endpoint, _ = scripted(answer, {"api_keys_env": "KEYS", "image_hosts": ["127.0.0.1:1"]})
    good = {"authorization": f"Bearer {MARK}"}
    image = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:1/a.png?X-Amz-Signature={MARK}"}}
    bodies: list[dict[str, Any]] = [
        {"model": "tiny", "messages": [{"role": "user", "content": "?"}]},
        {"model": "tiny", "messages": [{"role": "user", "content": [image]}]},
        {"model": "tiny", "messages": "no list"},
    ]
    texts = []
    for headers in (good, {"authorization": f"Bearer {MARK}-wrong"}, {"authorization": f"Basic {MARK}"}):
        for body in bodies:
            texts.append(endpoint.request("POST", "/v1/chat/completions", json=body, headers=headers).text)
        for path in ("/metrics", "/v1/models", "/openapi.json", "/readyz", f"/made-up?key={MARK}"):
            texts.append(endpoint.request("GET", path, headers=headers).text)
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]  # the client's
    texts += logged
    assert [text for text in texts if MARK in text or digest in text] == []
    assert digest[:12] in "".join(logged), "the start of a digest tells keys apart"


def test_a_run_records_no_secret_of_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, MARK)
    root = Location.parse(str(tmp_path))
    source = source_of(root, write_dataset(root, "d", [colour_sample(0)]))
    recipe: Recipe = tiny_recipe()
    record = describe(recipe, "pretrain", Resources(num_workers=1), [source])
    assert MARK not in json.dumps(record)


@pytest.mark.parametrize("uri", [f"s3://key:{MARK}@bucket/warren", f"s3://{MARK}@bucket"])
def test_a_location_with_keys_is_refused_without_showing_them(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_STORAGE", uri)
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as refused:
        Location.parse(storage_root())
    assert MARK not in str(refused.value)


def test_clients_neither_take_keys_in_urls_nor_show_them() -> None:
    with pytest.raises(ConfigError, match="-key-env VAR") as refused:
        EndpointOptions(f"http://user:{MARK}@host/v1")
    assert MARK not in str(refused.value)
    assert MARK not in repr(EndpointOptions("http://h/v1", api_key=MARK))
