"""Contamination: altered copies of evaluation images are found, other images are not."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from factories import tiny_recipe, tiny_stage, write_dataset
from selecting import samples_of, select
from warren.config import Resources
from warren.curate.image_matching import WHOLE, boxes, hashes_and_pixels, thumbnail
from warren.curate.perceptual import distance, perceptual_hash
from warren.data.decontamination import decontamination
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.stream import DatasetSource
from warren.storage import Location, digest_bytes
from warren.train.run_record import describe

ALTERED, OTHERS = 24, 60


def scene(seed: int) -> Image.Image:
    """Return an image of random shapes on a gradient."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(small).resize((210, 150), Image.Resampling.BICUBIC)
    for _ in range(12):
        left, top = int(random.integers(0, 180)), int(random.integers(0, 120))
        size = (int(random.integers(10, 60)), int(random.integers(10, 60)))
        image.paste(tuple(random.integers(0, 256, 3).tolist()), (left, top, left + size[0], top + size[1]))
    return image


def altered(seed: int) -> bytes:
    """Return a copy of a scene: encoded again, scaled, grey, mirrored or cropped, by its number."""
    image, random = scene(seed), np.random.default_rng(seed + 10_000)
    options: dict[str, Any] = {"format": "PNG"}
    kind = seed % 6
    if kind == 0:
        options = {"format": "JPEG", "quality": 35}
    elif kind == 1:
        image = image.resize((64, 48))
    elif kind == 2:
        image = image.convert("L")
    elif kind == 3:
        image = ImageOps.mirror(image)
    else:
        side = random.uniform(0.7, 0.95)
        left, top = random.uniform(0, 1 - side, 2)
        image = image.crop((int(left * 210), int(top * 150), int((left + side) * 210), int((top + side) * 150)))
        image = ImageOps.mirror(image) if kind == 5 else image
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    scene(seed).save(buffer, "PNG")
    return buffer.getvalue()


def sample(key: str, image: bytes) -> Sample:
    return Sample(key, (image,), (Turn("user", IMAGE_MARK), Turn("assistant", "a scene")), "t")


def test_altered_evaluation_images_are_found_listed_and_removed(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    write_dataset(root, "exam", [sample(f"exam-{seed}", encoded(seed)) for seed in range(ALTERED)])
    training = [sample(f"train-{seed}", encoded(1000 + seed)) for seed in range(OTHERS)]
    training += [sample(f"leak-{seed}", altered(seed)) for seed in range(ALTERED)]
    write_dataset(root, "pairs", training)
    step = {"step": "decontaminate", "datasets": ["exam@v1"]}
    manifest = select(root, None, [step])
    assert {s.key for s in samples_of(root, "chosen@v1")} == {f"train-{seed}" for seed in range(OTHERS)}
    found = json.loads((tmp_path / "datasets/chosen/v1/contamination.json").read_text())
    (result,) = found["steps"]
    assert {(m["key"], m["evaluation_key"]) for m in result["matches"]} == {
        (f"leak-{seed}", f"exam-{seed}") for seed in range(ALTERED)
    }
    assert (result["samples_checked"], result["samples_matched"]) == (OTHERS + ALTERED, ALTERED)
    assert manifest.selection["certificate"]["samples_matched"] == ALTERED

    kept = select(root, None, [{**step, "remove": False}], name="listed")
    assert kept.rows == OTHERS + ALTERED
    assert kept.selection["certificate"]["removed"] is False


def test_what_was_searched_for_is_known_of_selections_and_of_runs(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    exams = {}
    for number, name in enumerate(("first-exam", "second-exam")):
        exams[f"{name}@v1"] = write_dataset(root, name, [sample(f"{name}-0", encoded(number))]).digest
    write_dataset(root, "pairs", [sample(f"pair-{seed}", encoded(seed)) for seed in range(1, 6)])
    write_dataset(root, "others", [sample("other", encoded(77))])
    remove = {"step": "decontaminate", "datasets": ["first-exam@v1"]}
    only_list = {"step": "decontaminate", "datasets": ["second-exam@v1"], "remove": False}

    clean = select(root, None, [remove, only_list])  # pair-1 is in the second exam, and stays
    assert list(decontamination(root, clean)["free_of"]) == ["first-exam@v1"]

    again = select(root, None, [{"step": "sample", "samples": 3}], name="again", datasets=["chosen@v1"])
    record = decontamination(root, again)
    assert record["free_of"] == {"first-exam@v1": exams["first-exam@v1"]}
    certificate = (tmp_path / "datasets/chosen/v1/contamination.json").read_bytes()
    assert record["certificates"] == {"chosen@v1": digest_bytes(certificate)}

    both = select(root, None, [{"step": "sample", "samples": 4}], name="both", datasets=["again@v1", "others@v1"])
    assert decontamination(root, both)["free_of"] == {}  # nobody searched the other parent

    source = DatasetSource(root / "datasets/again/v1", again, 3)
    run = describe(tiny_recipe(finetune=tiny_stage("again@v1")), "finetune", Resources(num_workers=1), [source])
    assert run["datasets"] is not None
    assert run["datasets"]["again@v1"]["decontamination"] == record


def test_crops_of_a_thumbnail_have_the_hashes_of_images_that_are_cropped() -> None:
    grey = scene(3).convert("L")
    hashes, pixels = hashes_and_pixels(thumbnail(grey), [WHOLE, *boxes()])
    cropped = [
        grey.crop((round(left * 210), round(top * 150), round(right * 210), round(bottom * 150)))
        for left, top, right, bottom in boxes()
    ]
    expected = np.array([perceptual_hash(image) for image in [grey, *cropped]], np.uint64)
    assert distance(hashes, expected).max() <= 6  # of 64; another image's differ in half of them
    assert np.allclose(pixels.std(axis=1), 1)
    assert not hashes_and_pixels(np.full((128, 128), 7, np.uint8), [WHOLE])[1].any()
