"""Settings: strict, in one line, with their reference, and what they imply."""

from pathlib import Path
from typing import Any

import pytest

from warren.errors import ConfigError
from warren_serve.auth import KeyRing
from warren_serve.settings import ServeSettings
from warren_serve.settings_reference import reference


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({}, "release"),
        ({"release": ""}, "release"),
        ({"release": "r", "num_slot": 3}, "num_slot"),
        ({"release": "r", "num_slots": "3"}, "num_slots"),
        ({"release": "r", "num_slots": 0}, "num_slots"),
        ({"release": "r", "min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"release": "r", "max_queued_requests": 0}, "max_queued_requests"),  # Serve would refuse every request
        ({"release": "r", "max_image_pixels": 64_000_001}, "max_image_pixels"),  # more are never decoded
        ({"release": "r", "num_cpus": object()}, "JSON"),
    ],
)
def test_wrong_settings_are_named(args: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as error:
        ServeSettings.parse(args)
    assert "\n" not in str(error.value)


def test_the_reference_in_the_docs_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "endpoint.md"
    assert page.read_text() == reference(), "run: python -m warren_serve.settings_reference"
    assert "`release` (required: the release's name" in reference()
    assert "| `steps` | list of numbers |" in reference()


def test_a_replica_drains_longer_than_any_answer_takes() -> None:
    settings = ServeSettings.parse({"release": "r", "request_timeout_s": 300, "body_timeout_s": 30})
    assert settings.drain_timeout_s > 330


def test_settings_survive_the_way_through_serve() -> None:
    settings = ServeSettings.parse({"release": "r", "num_gpus": 0.5})
    assert ServeSettings.parse(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("value", ["", "a-key-in-clear", "0" * 63])
def test_keys_that_are_no_digests_stop_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", value)
    with pytest.raises(ConfigError) as error:
        KeyRing(ServeSettings.parse({"release": "r", "api_keys_env": "KEYS"}))
    assert not value or value not in str(error.value)
