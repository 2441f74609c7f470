"""A dataset of pairs and its embeddings, for tests that select from them."""

from pathlib import Path

import pytest

from selecting import write_embeddings, write_pairs
from warren.storage import Location


@pytest.fixture
def root(tmp_path: Path) -> Location:
    root = Location(str(tmp_path / "store"))
    write_pairs(root)
    return root


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    return write_embeddings(tmp_path / "embeddings")
