"""The model that is served: of random weights, for speed does not depend on what they are."""

import random
from pathlib import Path

from warren.inference.testing import save_random_model
from warren.release import Lineage, publish
from warren.storage import FileEntry, Location, StoredFiles, digest_file

NAME = "bench"
IMAGE_PX, PATCH_PX = 112, 14

_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}
_VOCAB_SIZE, _NUM_WORDS = 16_000, 40_000
_TOWER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": IMAGE_PX,
    "patch_size": PATCH_PX,
}
_SMALL = {"num_hidden_layers": 2}


def publish_model(root: Location, folder: Path, quick: bool) -> Location:
    """Write the model and publish it; returns the release's folder.

    Args:
        root: Storage.
        folder: Where it is written first.
        quick: Two layers instead of twelve: to see that the benchmark runs, not how fast anything is.
    """
    write_model(folder, quick)
    files = tuple(FileEntry(path.name, *digest_file(path)) for path in sorted(folder.iterdir()))
    return publish(root, NAME, "random", StoredFiles(Location.parse(str(folder)), files), Lineage(), {})


def write_model(folder: Path, quick: bool) -> None:
    """Write the model into a local folder."""
    small = _SMALL if quick else {}
    save_random_model(folder, "llama", tower=_TOWER | small, texts=_words(), vocab_size=_VOCAB_SIZE, **_TEXT | small)


def _words() -> list[str]:
    """Return made-up words, enough for a vocabulary of a real model's order."""
    rng = random.Random(0)
    letters = "aaabcdeeefghiiijklmnoooprstuuvwyz"
    return ["".join(rng.choices(letters, k=rng.randint(2, 9))) + " " for _ in range(_NUM_WORDS)]
