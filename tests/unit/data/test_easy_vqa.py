"""The importer of easy-vqa."""

import json
from pathlib import Path

import pytest

from factories import make_image
from warren.data.importers import Piece
from warren.data.importers.easy_vqa import EasyVqa, easy_vqa
from warren.data.sample import Sample
from warren.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    questions = [
        ["what color is the shape?", "blue", 0],
        ["is there not a circle in the image?", "no", 0],
        ["is there a red shape?", "no", 0],
        ["what shape is present?", "triangle", 1],
        ["what is the color of the rectangle?", "teal", 2],
    ]
    for split in ("train", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "questions.json").write_text(json.dumps(questions))
        for image in (0, 1):
            (tmp_path / split / "images" / f"{image}.png").write_bytes(make_image())
    return tmp_path


def read(importer: EasyVqa, start: int = 0, stop: int = 99) -> list[Sample]:
    return [raw.load() for raw in importer.read(Piece("", start, stop))]


def test_captions_say_what_the_questions_give_away(folder: Path) -> None:
    captions, _, _ = easy_vqa(str(folder), None, 1)
    assert [sample.turns[1].text for sample in read(captions)] == ["a blue circle", "a teal rectangle"]


def test_questions_become_conversations_and_the_test_split_stays_single(folder: Path) -> None:
    _, train, test = easy_vqa(str(folder), None, 2)
    assert [len(sample.turns) for sample in read(train)] == [4, 2, 2, 2]
    assert [len(sample.turns) for sample in read(test)] == [2] * 5
    first = read(train)[0]
    assert first.turns[0].text == "<image>\nwhat color is the shape?"
    assert first.turns[2].text == "is there not a circle in the image?"


def test_ranges_and_limits_select_samples(folder: Path) -> None:
    _, train, _ = easy_vqa(str(folder), 1, 1)
    assert len(read(train)) == 3
    assert [s.key for s in read(train, 1, 3)] == ["train-00000-01", "train-00000-02"]


def test_a_missing_image_is_a_bad_sample_not_a_crash(folder: Path) -> None:
    _, train, _ = easy_vqa(str(folder), None, 1)
    assert [sample.images for sample in read(train, 4, 5)] == [(b"",)]


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"questions\.json"):
        easy_vqa(str(tmp_path), None, 1)
