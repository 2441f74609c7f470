"""The environment plane."""

import pytest

from warren.config.environment import storage_root
from warren.errors import ConfigError


def test_storage_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARREN_STORAGE", raising=False)
    with pytest.raises(ConfigError, match=r"WARREN_STORAGE is not set.*s3://"):
        storage_root()
    monkeypatch.setenv("WARREN_STORAGE", " s3://bucket/x ")
    assert storage_root() == "s3://bucket/x"


@pytest.mark.parametrize("given", ["store-rel", "./x", "../x", "file://x", "file:x", "~nobody-has-this-name/x"])
def test_a_relative_path_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("WARREN_STORAGE", given)
    with pytest.raises(ConfigError, match=r"is a relative path: .*absolute path, for example WARREN_STORAGE=/"):
        storage_root()


@pytest.mark.parametrize("given", ["/data", "file:///data", "~/data", "s3://b"])
def test_absolute_storage_is_taken(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("WARREN_STORAGE", given)
    assert storage_root() == given
