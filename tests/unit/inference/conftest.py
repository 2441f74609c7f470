"""Tiny random models, made once per session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from warren.inference.testing import save_random_model


@pytest.fixture(scope="session", autouse=True)
def _one_compute_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a random model by its language-model family."""
    folders: dict[str, Path] = {}

    def get(model_type: str) -> Path:
        if model_type not in folders:
            folders[model_type] = tmp_path_factory.mktemp(model_type)
            save_random_model(folders[model_type], model_type)
        return folders[model_type]

    return get
