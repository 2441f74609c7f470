"""What every test shares: a private home, quiet libraries, and images to work with."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from warren.data.model_inputs import Inputs

# Before Ray is imported: a local `ray.init()` writes a token into the home folder and changes later clusters' mode.
os.environ["HOME"] = tempfile.mkdtemp(prefix="warren-home-")
atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
for name in ("RAY_ADDRESS", "WARREN_STORAGE", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
    os.environ.pop(name, None)

# An example takes as long as the machine is busy.
settings.register_profile("warren", deadline=None)
settings.load_profile("warren")

pytest_plugins = ["cluster_fixtures"]  # one cluster for the integration and the end-to-end tests

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_inputs() -> "tuple[Inputs, str]":
    """Inputs and tokenizer of the tiny model."""
    from factories import tiny_model_config
    from warren.models import inputs_of, train_tokenizer

    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    tokenizer = train_tokenizer(texts, 320)
    return inputs_of(tiny_model_config(), tokenizer), tokenizer.json
