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
