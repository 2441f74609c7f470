"""Filters and duplicates: each on samples of which it is known what must go."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from factories import make_image, write_dataset
from selecting import samples_of, select
from warren.curate.perceptual_hash import linked, perceptual_hash
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import DataError
from warren.storage import Location


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "store"))


def texture(seed: int, side: int = 96) -> Image.Image:
    """Return an image of smooth random patches: no two seeds look alike."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def keep(root: Location, pairs: dict[str, tuple[bytes | None, str]], step: dict[str, Any], **changes: Any) -> list[str]:
    """Return the keys that a step keeps of some pairs of image and caption."""
    samples = [
        Sample(
            key, (image,) if image else (), (Turn("user", IMAGE_MARK if image else "?"), Turn("assistant", text)), "t"
        )
        for key, (image, text) in pairs.items()
    ]
    write_dataset(root, "pairs", samples, per_shard=3, per_group=2)
    select(root, None, [step], **changes)
    return sorted(sample.key for sample in samples_of(root, "chosen@v1"))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_characters": 5}, ["long", "loud", "repeated", "russian", "short"]),
        ({"min_words": 3}, ["long", "repeated"]),
        ({"max_words": 3}, ["loud", "russian", "short", "tiny"]),
        ({"max_repetition": 0.5}, ["long", "loud", "russian", "short", "tiny"]),
        ({"scripts": ["LATIN"]}, ["long", "loud", "repeated", "short", "tiny"]),
        ({"scripts": ["CYRILLIC"]}, ["russian"]),
        ({"drop_pattern": "(?i)click here"}, ["long", "repeated", "russian", "short", "tiny"]),
    ],
)
def test_captions(root: Location, options: dict[str, Any], kept: list[str]) -> None:
    captions = {
        "long": "a red fox that jumps over one lazy dog at noon today",
        "loud": "CLICK HERE",
        "repeated": "sale sale sale sale sale sale sale sale now or never",
        "russian": "рыжая лиса",
        "short": "a fox",
        "tiny": "fox",
    }
    assert keep(root, {key: (None, text) for key, text in captions.items()}, {"step": "caption", **options}) == kept


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_side_px": 50}, ["square"]),
        ({"max_side_px": 90}, ["none", "small"]),
        ({"max_aspect_ratio": 3.0}, ["none", "small", "square"]),
        ({"min_pixels": 2000}, ["none", "square", "wide"]),
    ],
)
def test_image_sizes(root: Location, options: dict[str, Any], kept: list[str]) -> None:
    sizes = {"small": (30, 40), "square": (100, 100), "wide": (200, 20)}
    pairs: dict[str, tuple[bytes | None, str]] = {key: (make_image(size=size), key) for key, size in sizes.items()}
    expected = kept if options != {"min_side_px": 50} else [*kept, "none"]
    assert keep(root, {**pairs, "none": (None, "text")}, {"step": "image", **options}) == sorted(set(expected))


def test_duplicates_by_bytes_caption_and_both(root: Location) -> None:
    one, two = make_image((1, 2, 3)), make_image((9, 9, 9))
    pairs: dict[str, tuple[bytes | None, str]] = {
        "a": (one, "first"),
        "b": (one, "second"),
        "c": (two, "first"),
        "d": (one, "first"),
        "e": (None, "first"),
        "f": (None, "third"),
    }
    expected = {"image": "acef", "caption": "abf", "pair": "abcef"}
    for version, (of, kept) in enumerate(expected.items()):
        found = keep(root, pairs, {"step": "duplicates", "of": of}, name="chosen") if not version else None
        if found is None:
            select(root, None, [{"step": "duplicates", "of": of}], name=f"chosen-{of}")
            found = sorted(sample.key for sample in samples_of(root, f"chosen-{of}@v1"))
        assert found == list(kept)


@pytest.mark.parametrize("memory_mib", [1024, 1])
def test_altered_copies_are_perceptual_duplicates(root: Location, memory_mib: int) -> None:
    pairs: dict[str, tuple[bytes | None, str]] = {}
    for seed in range(20):
        image = texture(seed)
        pairs[f"{seed:02d}-a"] = (encoded(image), "original")
        pairs[f"{seed:02d}-b"] = (encoded(image, "JPEG", quality=40), "encoded again")
        pairs[f"{seed:02d}-c"] = (encoded(image.resize((40, 40))), "scaled")
        pairs[f"{seed:02d}-d"] = (encoded(image.convert("L")), "grey")
    step = {"step": "duplicates", "of": "pixels", "max_distance": 4}
    assert keep(root, pairs, step, task_memory_mib=memory_mib) == [f"{seed:02d}-a" for seed in range(20)]


def test_no_pair_of_near_hashes_is_missed() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 300).astype(np.uint64)
    for place in range(0, 300, 3):
        for bit in random.integers(0, 64, 4).tolist():
            hashes[place] = (
                hashes[place - 1] ^ np.uint64(1 << bit) if bit == 63 else hashes[place] ^ np.uint64(1 << bit)
            )
    hashes[1::3] = hashes[::3] ^ np.uint64(0b1011) ^ np.uint64(1 << 60)
    expected = {
        (a, b) for a in range(300) for b in range(a + 1, 300) if int(np.bitwise_count(hashes[a] ^ hashes[b])) <= 4
    }
    left, right = linked(hashes, 4)
    assert {(min(a, b), max(a, b)) for a, b in zip(left.tolist(), right.tolist(), strict=True)} == expected
    assert len(expected) >= 100
    assert perceptual_hash(texture(1)) != perceptual_hash(texture(2))


def test_lists_of_keys_and_functions(root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: dict[str, tuple[bytes | None, str]] = {key: (None, key * 2) for key in "abcde"}
    pq.write_table(pa.table({"key": ["b", "d", "never"]}), tmp_path / "deny.parquet")
    assert keep(root, pairs, {"step": "keys", "deny": str(tmp_path / "deny.parquet")}) == ["a", "c", "e"]
    (tmp_path / "my_filters.py").write_text(
        "def at_least(sample, letter):\n    return sample.key >= letter\n\n"
        "def breaks(sample):\n    return 1 / 0 if sample.key == 'c' else True\n\n"
        "def unsure(sample):\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    select(root, None, [{"step": "function", "call": "my_filters:at_least", "options": {"letter": "c"}}], name="own")
    assert [sample.key for sample in samples_of(root, "own@v1")] == ["c", "d", "e"]
    with pytest.raises(DataError, match=r"'my_filters:breaks' failed at the sample 'c': ZeroDivisionError"):
        select(root, None, [{"step": "function", "call": "my_filters:breaks"}], name="bad")
    with pytest.raises(DataError, match=r"returned None for 'a': expected True or False"):
        select(root, None, [{"step": "function", "call": "my_filters:unsure"}], name="bad")
