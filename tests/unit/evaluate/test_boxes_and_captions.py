"""RefCOCO and COCO captions give what lmms-eval and pycocoevalcap give on the same answers.

tests/golden/boxes_and_captions.json was made by the packages that it names.
"""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_benchmark_questions import PNG, parquet, put
from test_benchmarks import approx

from warren.errors import DataError
from warren.evaluate.benchmark_questions import questions
from warren.evaluate.score_answers import measures_of, score_answers
from warren.evaluate.scorers.boxes import first_box, intersection_over_union
from warren.evaluate.scorers.captions import bleu, rouge_l, tokens
from warren.storage import Location

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "boxes_and_captions.json").read_text())


def at(path: Path) -> Location:
    return Location.parse(str(path))


def png(size: list[int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size[0], size[1])).save(buffer, "PNG")
    return buffer.getvalue()


def make_refcoco(folder: Path) -> dict[str, Any]:
    """Write a split as it is published, another one beside it, and the answers to the first."""
    golden: dict[str, Any] = GOLDEN["refcoco"]
    rows = [{key: value for key, value in row.items() if key != "size"} for row in golden["rows"]]
    parquet(folder / "data/val-00000-of-00001.parquet", rows, image=[png(row["size"]) for row in golden["rows"]])
    other = [{**rows[0], "question_id": "other"}]
    parquet(folder / "data/testA-00000-of-00001.parquet", other, image=[PNG])
    put(folder / "a.jsonl", [{"question_id": case["key"], "text": case["prediction"]} for case in golden["cases"]])
    return golden


def test_refcoco_scores_equal_lmms_evals(tmp_path: Path) -> None:
    golden = make_refcoco(tmp_path)
    report = score_answers("refcoco", at(tmp_path / "a.jsonl"), at(tmp_path))
    assert report["scores"] == approx(golden["scores"])
    assert [row["score"] for row in report["per_question"].values()] == approx_list(golden["iou"])
    assert report["num_questions"] == len(golden["cases"]), "the split that was not asked does not count"
    assert {measure.name: measure.value for measure in measures_of(report)} == approx(golden["scores"])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="no answer to 1 of 15 questions"):
        score_answers("refcoco", at(tmp_path / "a.jsonl"), at(tmp_path))


def approx_list(values: list[float]) -> Any:
    return pytest.approx(values, abs=1e-9)


def test_refcoco_asks_every_phrase(tmp_path: Path) -> None:
    golden = make_refcoco(tmp_path)
    asked = list(questions("refcoco", at(tmp_path), "val"))
    assert asked[0].text == golden["prompt"]
    assert [question.key for question in asked] == [case["key"] for case in golden["cases"]]
    assert len({question.cluster for question in asked}) == 4, "objects of one image are not independent"
    assert [question.key for question in questions("refcoco", at(tmp_path), "testA")] == ["other-0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1.0, 2.0]}, "bbox must be left, upper, width and height"),
        ({"answer": []}, "answer must be a list of phrases"),
    ],
)
def test_a_refcoco_table_that_does_not_fit_is_a_named_error(change: Any, message: str, tmp_path: Path) -> None:
    row = {key: value for key, value in GOLDEN["refcoco"]["rows"][0].items() if key != "size"} | change
    parquet(tmp_path / "val-0.parquet", [row], image=[PNG])
    put(tmp_path / "a.jsonl", [{"question_id": f"{row['question_id']}-0", "text": "[0, 0, 1, 1]"}])
    with pytest.raises(DataError, match=message):
        score_answers("refcoco", at(tmp_path / "a.jsonl"), at(tmp_path))


def test_an_image_that_does_not_decode_is_a_named_error(tmp_path: Path) -> None:
    row = {key: value for key, value in GOLDEN["refcoco"]["rows"][0].items() if key != "size"}
    parquet(tmp_path / "val-0.parquet", [row], image=[b"no image"])
    put(tmp_path / "a.jsonl", [{"question_id": f"{row['question_id']}-0", "text": "[0, 0, 1, 1]"}])
    with pytest.raises(DataError, match="row 1: the image cannot be read"):
        score_answers("refcoco", at(tmp_path / "a.jsonl"), at(tmp_path))


def test_boxes_that_have_no_area_overlap_nothing() -> None:
    assert first_box("at [ 0.25,0.5, 1, 1.0 ] or [0, 0, 1, 1]") == (0.25, 0.5, 1.0, 1.0)
    assert first_box("[0.25 , 0.5, 1, 1]") is None, "lmms-eval does not read it"
    assert first_box("(0.1, 0.2, 0.3, 0.4)") is None
    assert intersection_over_union((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert intersection_over_union((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)
    assert intersection_over_union((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def make_captions(folder: Path) -> dict[str, Any]:
    golden: dict[str, Any] = GOLDEN["coco_caption"]
    captions = [(key, text) for key, of in golden["references"].items() for text in of]
    images = [{"id": int(key), "file_name": f"COCO_val2014_{int(key):012d}.jpg"} for key in golden["references"]]
    rows = [{"image_id": int(key), "id": n, "caption": text} for n, (key, text) in enumerate(captions)]
    put(folder / "annotations/captions_val2014.json", {"images": images, "annotations": rows})
    for image in images:
        put(folder / "val2014" / str(image["file_name"]), PNG)
    put(folder / "a.jsonl", [{"question_id": key, "text": text} for key, text in golden["answers"].items()])
    return golden


def test_captions_are_scored_as_cocos_evaluation_scores(tmp_path: Path) -> None:
    golden = make_captions(tmp_path)
    report = score_answers("coco_caption", at(tmp_path / "a.jsonl"), at(tmp_path))
    assert report["scores"] == approx(golden["scores"])
    assert {key: row["score"] for key, row in report["per_question"].items()} == approx(golden["cider"])
    assert {key: row["rouge_l"] for key, row in report["per_question"].items()} == approx(golden["rouge_l"])
    values = {measure.name: measure.value for measure in measures_of(report)}
    assert values == approx({name: golden["scores"][name] for name in ("coco_CIDEr", "coco_ROUGE_L")})
    asked = list(questions("coco_caption", at(tmp_path), "val2014"))
    assert asked[0].text == "Provide a one-sentence caption for the provided image."
    assert [question.key for question in asked] == list(golden["references"])


def test_captions_are_split_as_the_penn_treebanks_tokeniser_splits_them() -> None:
    for caption, expected in GOLDEN["coco_caption"]["tokens"].items():
        assert tokens(caption) == expected
    assert tokens("…") in (["…"], []), "an unusual sign is no error"
    assert tokens("") == tokens(" \n\t ") == tokens("...") == []


def test_captions_without_words_score_nothing() -> None:
    assert max(bleu([[]], [[["a", "cat"]]])) < 1e-3
    assert rouge_l([], [["a", "cat"]]) == 0
    assert rouge_l(["a"], [[]]) == 0
    assert bleu([["a", "cat", "sits", "here"]], [[["a", "cat", "sits", "here"]]]) == pytest.approx([1, 1, 1, 1])


def test_a_captions_file_of_another_kind_is_a_named_error(tmp_path: Path) -> None:
    put(tmp_path / "captions_val2014.json", {"annotations": [{"image_id": 1}]})
    put(tmp_path / "a.jsonl", [{"question_id": 1, "text": "a cat"}])
    with pytest.raises(DataError, match="a list 'annotations' of image_id, caption"):
        score_answers("coco_caption", at(tmp_path / "a.jsonl"), at(tmp_path))
