"""Datasets: complete with their manifest, immutable, readable by others, and damage is found."""

import io
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from factories import colour_sample, make_image, source_of, write_dataset
from warren.data.batch import Cut
from warren.data.manifest import Manifest, dataset_folder, read_manifest, write_about, write_manifest
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.quarantine import Quarantine
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.shards import SampleLimits
from warren.data.stream import Encoding, StreamSpec, iter_samples
from warren.errors import (
    BadSampleError,
    ConfigError,
    CorruptDataError,
    DataError,
    EmptyDatasetError,
    NotFoundError,
    QuarantineError,
    UnsafePathError,
)
from warren.inference import SamplingParams
from warren.inference.prompts import Prompt, encode_request
from warren.storage import Location


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path))


def stream(root: Location, manifest: Manifest, tiny_inputs: tuple[Inputs, str], batch: int = 8) -> StreamSpec:
    inputs, tokenizer = tiny_inputs
    encoding = Encoding(inputs, tokenizer, 96)
    return StreamSpec((source_of(root, manifest),), encoding, batch, seed=5, window_samples=32, epochs=2)


def test_samples_come_back_in_order(root: Location) -> None:
    samples = [colour_sample(i) for i in range(50)]
    manifest = write_dataset(root, "d", samples)
    assert read_manifest(root, "d@v1") == manifest
    assert list(iter_samples(dataset_folder(root, "d@v1"), manifest)) == samples


def test_the_same_samples_give_the_same_bytes(root: Location) -> None:
    samples = [colour_sample(i) for i in range(50)]
    assert write_dataset(root, "a", samples).digest == write_dataset(root, "b", samples).digest


def test_a_dataset_without_a_manifest_does_not_exist(root: Location) -> None:
    write_dataset(root, "d", [colour_sample(i) for i in range(10)])
    (Path(root.uri) / "datasets/d/v1/manifest.json").unlink()
    with pytest.raises(NotFoundError, match=r"no dataset 'd@v1'.*ingest"):
        read_manifest(root, "d@v1")


def test_an_empty_dataset_is_refused(root: Location) -> None:
    write_manifest(root, Manifest("empty", "v1", (), "tests", "CC0"))
    with pytest.raises(EmptyDatasetError):
        read_manifest(root, "empty@v1")


@pytest.mark.parametrize("reference", ["d", "d@", "@v1", ""])
def test_a_reference_needs_name_and_version(root: Location, reference: str) -> None:
    with pytest.raises(ConfigError, match="name@version"):
        read_manifest(root, reference)


def test_a_version_never_changes(root: Location) -> None:
    manifest = write_dataset(root, "d", [colour_sample(i) for i in range(10)])
    write_manifest(root, manifest)
    with pytest.raises(DataError, match="exists with other content"):
        write_manifest(root, Manifest("d", "v1", manifest.shards * 2, "tests", "CC0"))


def test_shards_are_plain_parquet_with_hugging_face_images(root: Location) -> None:
    write_dataset(root, "d", [colour_sample(i) for i in range(10)])
    table = pq.read_table(Path(root.uri) / "datasets/d/v1/shard-00000.parquet")
    assert table["images"][0].as_py() == [{"bytes": make_image((220, 30, 30)), "path": None}]


def test_a_damaged_shard_is_named(root: Location, tiny_inputs: tuple[Inputs, str]) -> None:
    manifest = write_dataset(root, "d", [colour_sample(i) for i in range(64)])
    shard = Path(root.uri) / "datasets/d/v1/shard-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    shard.write_bytes(bytes(data))
    spec = stream(root, manifest, tiny_inputs)
    reader = spec.reader(Cut(1, 1))
    everything = (parts for read in spec.reads() for parts in reader.read(read))
    with pytest.raises(CorruptDataError, match="shard-00000"):
        list(everything)


def test_bad_samples_keep_their_place_with_weight_zero(root: Location, tiny_inputs: tuple[Inputs, str]) -> None:
    good = [colour_sample(i) for i in range(16)]
    turns = (Turn("user", f"{IMAGE_MARK}\nwhat?"), Turn("assistant", "red"))
    bad = Sample("broken", (b"junk",), turns, "tests/broken.png")
    manifest = write_dataset(root, "d", [*good[:5], bad, *good[5:]])
    spec = stream(root, manifest, tiny_inputs)
    reader = spec.reader(Cut(2, 1))
    steps = [parts for read in spec.reads() for parts in reader.read(read)][:3]
    assert sum(parts[0].num_samples for parts in steps) == 17
    found = [q for parts in steps for q in parts[0].quarantined]
    assert [(q.key, q.source) for q in found] == [("broken", "tests/broken.png")]
    assert "no known image format" in found[0].reason
    assert sorted(k for parts in steps for p in parts for k in p.keys) == sorted(s.key for s in good)


@pytest.mark.parametrize(
    ("turns", "images", "reason"),
    [
        ((), 0, "alternate"),
        ((Turn("assistant", "hi"),), 0, "alternate"),
        ((Turn("user", "a"), Turn("assistant", "  ")), 0, "empty"),
        ((Turn("user", f"{IMAGE_MARK} a"), Turn("assistant", "b")), 0, "1 image marks in the text, but 0 images"),
        ((Turn("user", "a"), Turn("assistant", "b")), 1, "0 image marks in the text, but 1 images"),
    ],
)
def test_unsound_conversations_are_refused(turns: tuple[Turn, ...], images: int, reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        Sample("k", (make_image(),) * images, turns, "tests").check()


def test_the_quarantine_counts_samples_once_and_has_a_ceiling(root: Location) -> None:
    from warren.data.batch import Quarantined

    quarantine = Quarantine(root / "quarantine", 0.1)
    for step in range(5):
        quarantine.add(step, [Quarantined("k", "s", "broken")], 10)  # the same sample in every epoch
    with pytest.raises(QuarantineError, match=r"2 of 10 samples cannot be used so far.*'k': broken"):
        quarantine.add(6, [Quarantined("k2", "s", "broken")], 10)
    quarantine.write(6)
    table = pq.read_table(root.uri + "/quarantine/00000006.parquet")
    assert table.column("key").to_pylist() == ["k"] * 5 + ["k2"]


def test_training_and_evaluation_take_every_image_that_ingest_took(tiny_inputs: tuple[Inputs, str]) -> None:
    """`ingest.max_pixels` is the one limit of a dataset's images."""
    inputs, tokenizer_json = tiny_inputs
    tokenizer = tokenizer_from_json(tokenizer_json)
    buffer = io.BytesIO()
    Image.new("1", (8001, 8000)).save(buffer, "PNG")
    turns = (Turn("user", f"{IMAGE_MARK}\nwhat?"), Turn("assistant", "red"))
    sample = Sample("large", (buffer.getvalue(),), turns, "tests")
    with pytest.raises(BadSampleError, match="at most 64000000"):
        SampleLimits(64_000_000, 100).check(sample)
    assert SampleLimits(65_000_000, 100).check(sample) == [(8001, 8000)]
    assert len(inputs.encode_sample(sample, tokenizer, 1000).images) == 1
    request = encode_request(Prompt(turns[:1], sample.images), inputs, tokenizer, SamplingParams(max_new_tokens=4))
    assert len(request.pixels) == 1
    with pytest.raises(BadSampleError, match="at most 64000000"):
        inputs.pixels(sample.images)  # whoever takes images from elsewhere


def test_licence_and_origin_can_be_corrected(root: Location) -> None:
    manifest = write_dataset(root, "d", [colour_sample(i) for i in range(10)])
    folder = dataset_folder(root, "d@v1")
    write_about(folder, replace(manifest, licence="cc0", source="a shop"))
    corrected = read_manifest(root, "d@v1")
    assert (corrected.licence, corrected.source, corrected.digest) == ("cc0", "a shop", manifest.digest)
    assert corrected == replace(manifest, licence="cc0", source="a shop")


@pytest.mark.parametrize("path", ["../other/shard.parquet", "/etc/passwd"])
def test_a_manifest_that_names_files_elsewhere_is_refused(root: Location, path: str) -> None:
    manifest = write_dataset(root, "d", [colour_sample(i) for i in range(10)])
    value = manifest.to_json()
    value["shards"][0]["path"] = path
    target = dataset_folder(root, "d@v1") / "manifest.json"
    target.put_json(value)
    with pytest.raises(UnsafePathError, match="inside its own folder"):
        read_manifest(root, "d@v1")
