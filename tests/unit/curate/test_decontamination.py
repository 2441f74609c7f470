"""Contamination: altered copies of evaluation images are found, other images are not."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from factories import tiny_recipe, tiny_stage, write_dataset
from selecting import config_of, samples_of, select
from warren.config import Resources
from warren.curate.crop_matching import WHOLE, boxes, hashes_and_pixels, thumbnail
from warren.curate.perceptual_hash import distance, perceptual_hash
from warren.data.contamination_certificate import contaminated_samples, decontamination
from warren.data.manifest import Manifest
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


def sample(key: str, image: bytes, question: str = "", answer: str = "a scene") -> Sample:
    return Sample(key, (image,), (Turn("user", f"{IMAGE_MARK}{question}"), Turn("assistant", answer)), "t")


def certificate(root: Location, manifest: Manifest) -> dict[str, Any]:
    folder = Path(root.uri) / "datasets" / manifest.name / manifest.version
    value: dict[str, Any] = json.loads((folder / manifest.selection["certificate"]["file"]).read_text())
    return value


def test_altered_evaluation_images_are_found_listed_and_removed(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    write_dataset(root, "exam", [sample(f"exam-{seed}", encoded(seed)) for seed in range(ALTERED)])
    training = [sample(f"train-{seed}", encoded(1000 + seed)) for seed in range(OTHERS)]
    training += [sample(f"leak-{seed}", altered(seed)) for seed in range(ALTERED)]
    write_dataset(root, "pairs", training)
    step = {"step": "decontaminate", "datasets": ["exam@v1"]}
    manifest = select(root, None, [step])
    assert {s.key for s in samples_of(root, "chosen@v1")} == {f"train-{seed}" for seed in range(OTHERS)}
    (result,) = certificate(root, manifest)["steps"]
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
    data = (tmp_path / "datasets/chosen/v1" / clean.selection["certificate"]["file"]).read_bytes()
    assert record["certificates"] == {"chosen@v1": digest_bytes(data)}

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


def found_by(root: Location, **step: Any) -> tuple[dict[str, Any], set[str]]:
    """Search `pairs` for `exam`; return the certificate's step and the keys that stay."""
    name = f"chosen-{len(list(Path(root.uri).glob('datasets/*')))}"
    embeddings = step.pop("embeddings", None)
    steps = [{"step": "decontaminate", "datasets": ["exam@v1"], **step}]
    manifest = select(root, None, steps, name=name, **({"embeddings": embeddings} if embeddings else {}))
    (found,) = certificate(root, manifest)["steps"]
    return found, {each.key for each in samples_of(root, f"{name}@v1")}


def test_an_image_of_other_colours_is_no_copy_but_a_grey_one_may_be(tmp_path: Path) -> None:
    def flag(*colours: tuple[int, int, int], grey: bool = False) -> bytes:
        image = Image.new("RGB", (90, 60), colours[0])
        for number, colour in enumerate(colours[1:], 1):
            image.paste(colour, (30 * number, 0, 30 * number + 30, 60))
        buffer = io.BytesIO()
        (image.convert("L") if grey else image).save(buffer, "JPEG", quality=60)
        return buffer.getvalue()

    root, exam = Location(str(tmp_path)), ((200, 30, 30), (240, 240, 240), (30, 120, 40))
    other = ((30, 60, 250), (240, 240, 240), (30, 120, 40))
    write_dataset(root, "exam", [sample("exam", flag(*exam))])
    images = {"same": flag(*exam), "grey": flag(*exam, grey=True), "other": flag(*other)}
    write_dataset(root, "pairs", [sample(key, image) for key, image in images.items()])
    assert found_by(root)[1] == {"other"}


def test_embeddings_find_copies_that_hashes_miss_and_pixels_decide(tmp_path: Path) -> None:
    root, random = Location(str(tmp_path)), np.random.default_rng(0)
    write_dataset(root, "exam", [sample("exam-28", encoded(28)), sample("exam-2", encoded(2))])
    images = {"copy": altered(28), "near": encoded(99), "far": encoded(98)}  # the copy is cropped
    write_dataset(root, "pairs", [sample(key, image) for key, image in images.items()])
    vectors = {"exam-28": random.standard_normal(8), "exam-2": random.standard_normal(8)}
    vectors |= {"copy": vectors["exam-28"] + 0.01, "near": vectors["exam-2"] + 0.01, "far": random.standard_normal(8)}
    for name, keys in (("own", list(images)), ("of-exams", ["exam-28", "exam-2"])):
        columns = {"key": keys, "image_embedding": [vectors[key].astype(np.float32) for key in keys]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    blind = {"max_distance": 0}
    seeing = {
        "min_cosine": 0.9,
        "evaluation_embeddings": str(tmp_path / "of-exams.parquet"),
        "embeddings": {"path": str(tmp_path / "own.parquet"), "text_column": None},
    }
    assert found_by(root, **blind)[1] == {"copy", "near", "far"}
    assert found_by(root, **blind, **seeing)[1] == {"near", "far"}


def test_questions_are_found_in_any_turn_and_those_about_one_image_are_listed_together(tmp_path: Path) -> None:
    long = "which of the three bottles on the wooden shelf beside the window holds more than half of its water"
    suffix = "\nAnswer the question using a single word or phrase and give no explanation of it at all."
    others = [
        f"what did person {n} say to the {n} neighbours about the old house near the station {n}" for n in range(20)
    ]
    root = Location(str(tmp_path))
    exam = [sample("exam-0", encoded(0), long + suffix), sample("exam-1", encoded(0), "Is it red?" + suffix)]
    exam += [sample(f"exam-{2 + n}", encoded(2 + n), question + suffix) for n, question in enumerate(others)]
    write_dataset(root, "exam", exam)
    pairs = {
        "question": sample("question", encoded(50), f"Tell me: {long.upper()}?"),
        "answer": sample("answer", encoded(51), "", f"I wonder {long}."),
        "suffix": sample("suffix", encoded(52), "Name it." + suffix),
        "short": sample("short", encoded(53), "Is it red?"),
        "part": sample("part", encoded(54), " ".join(long.split()[:12])),
        "image": sample("image", encoded(0), "Is it red?"),
    }
    write_dataset(root, "pairs", list(pairs.values()))
    found, kept = found_by(root)
    assert kept == {"suffix", "short", "part"}
    assert {(each["key"], each["evaluation_key"]) for each in found["question_matches"]} == {
        ("question", "exam-0"),
        ("answer", "exam-0"),
    }
    assert found["evaluation_samples"] == {"exam@v1": ["exam-0", "exam-1"]}
    assert found["samples_matched"] == 3
    assert found_by(root, question_words=None)[1] == set(pairs) - {"image"}
    assert "part" not in found_by(root, question_words=5)[1]


def test_samples_that_were_left_in_training_data_are_known(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    digest = write_dataset(root, "exam", [sample(f"exam-{seed}", encoded(seed)) for seed in range(3)]).digest
    write_dataset(root, "pairs", [sample(f"pair-{seed}", encoded(seed)) for seed in range(2, 6)])
    step = {"step": "decontaminate", "datasets": ["exam@v1"]}
    listed = select(root, None, [{**step, "remove": False}], name="listed")
    again = select(root, None, [{"step": "sample", "samples": 3}], name="again", datasets=["listed@v1"])
    both = select(root, None, [{"step": "sample", "samples": 9}], name="both", datasets=["listed@v1", "pairs@v1"])
    clean = select(root, None, [step], name="clean", datasets=["listed@v1"])
    for manifest, expected in ((listed, {"exam-2"}), (again, {"exam-2"}), (both, None), (clean, frozenset())):
        assert contaminated_samples(root, manifest, "exam@v1", digest) == expected
    assert contaminated_samples(root, listed, "exam@v1", "another digest") is None


@pytest.mark.parametrize(
    ("embeddings", "step", "message"),
    [
        (None, {"min_cosine": 0.9}, "'min_cosine' needs embeddings"),
        ({"path": "x"}, {"min_cosine": 0.9}, "must come from files, as those of samples: set 'evaluation_embeddings'"),
        ({"model": "x"}, {"min_cosine": 0.9, "evaluation_embeddings": "y"}, "must come from a model"),
        ({"path": "x"}, {"evaluation_embeddings": "y"}, "set 'min_cosine'"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_refused(
    embeddings: dict[str, Any] | None, step: dict[str, Any], message: str
) -> None:
    changes = {"embeddings": embeddings} if embeddings else {}
    with pytest.raises(ValueError, match=message):
        config_of(None, [{"step": "decontaminate", "datasets": ["exam@v1"], **step}], **changes)
