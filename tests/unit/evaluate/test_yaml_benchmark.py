"""A team's own test set is a few lines of YAML, and its scorers are the field's."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_benchmark_questions import PNG, ask, put

from warren.errors import ConfigError, DataError
from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, write_answers
from warren.evaluate.benchmark_questions import questions
from warren.evaluate.score_answers import score_answers
from warren.evaluate.scorers.texts import chosen_letter, contains, exact, relaxed
from warren.storage import Location

SIGNS = """
title: Our street signs
questions: signs.jsonl
prompt: "{question}\\nAnswer with one word."
answer: truth
group: kind
scorer: exact
"""
ROWS = [
    {"id": 1, "image": "a.png", "question": "Which?", "truth": "Stop", "kind": "red"},
    {"id": 2, "image": "a.png", "question": "Where?", "truth": ["left", "west"], "kind": "red"},
    {"id": 3, "image": "b.png", "question": "How many?", "truth": 4, "kind": "blue"},
]


def make(folder: Path, text: str = SIGNS, rows: Any = ROWS) -> str:
    file = folder / "signs.yaml"
    file.write_text(text)
    put(folder / "signs.jsonl", rows)
    for name in ("a.png", "b.png"):
        put(folder / "images" / name)
    return str(file)


def score(benchmark: str, folder: Path, **answers: str) -> dict[str, Any]:
    stored = [StoredAnswer(key.removeprefix("q"), "?", text) for key, text in answers.items()]
    write_answers(Location.parse(f"{folder}/answers.parquet"), stored, AnswersOrigin("signs"))
    return score_answers(benchmark, Location.parse(f"{folder}/answers.parquet"))


def test_a_benchmark_of_ten_lines_is_asked_and_scored(tmp_path: Path) -> None:
    file = make(tmp_path)
    asked = list(questions(file, Location.parse(f"{tmp_path}/signs.jsonl")))
    assert (asked[0].key, asked[0].text, asked[0].group) == ("1", "Which?\nAnswer with one word.", "red")
    assert [source.read() for source in asked[0].images] == [PNG]
    found = score(file, tmp_path, q1="stop.", q2="West", q3="5")
    assert found["scores"] == {"percent": pytest.approx(200 / 3), "groups": {"blue": 0.0, "red": 100.0}}
    assert (found["benchmark"], found["convention"]) == ("signs", "warren")
    assert {measure["name"] for measure in found["measures"]} == {"percent", "groups/blue", "groups/red"}
    assert score(file, tmp_path, q1="stop")["scores"]["percent"] == pytest.approx(100 / 3), "no answer earns nothing"


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"id": ["x", "y"], "question": ["Q1", "Q2"], "answer": ["a", "b"]})
    images = pa.array([{"bytes": PNG, "path": "x.png"}, None], struct)
    pq.write_table(table.append_column("image", images), tmp_path / "t.parquet")
    (tmp_path / "t.yaml").write_text("questions: t.parquet\n")
    asked = list(questions(f"{tmp_path}/t.yaml", Location.parse(f"{tmp_path}/t.parquet")))
    assert [len(question.images) for question in asked] == [1, 0]
    assert asked[0].images[0].read() == PNG


def test_multiple_choice(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "question": "Q", "A": "red", "B": "blue", "C": None, "answer": "B"},
        {"id": 2, "question": "Q", "A": "red", "B": "blue", "C": "green", "answer": "green"},
    ]
    file = make(
        tmp_path, 'questions: signs.jsonl\nscorer: choice\noptions: [A, B, C]\nprompt: "{question}\\n{options}"\n', rows
    )
    asked = list(questions(file, Location.parse(f"{tmp_path}/signs.jsonl")))
    assert asked[1].text == "Q\nA. red\nB. blue\nC. green"
    assert score(file, tmp_path, q1="(B)", q2="I think the answer is C.")["scores"]["percent"] == 100.0
    assert score(file, tmp_path, q1="red", q2="none")["scores"]["percent"] == 0.0
    put(tmp_path / "signs.jsonl", [{**rows[0], "answer": "yellow"}])
    with pytest.raises(DataError, match="row 1: the truth 'yellow' is neither a letter nor the text of one option"):
        score(file, tmp_path, q1="B")
    put(tmp_path / "signs.jsonl", [{**rows[0], "B": None}])
    with pytest.raises(DataError, match="1 options; a choice needs two"):
        list(questions(file, Location.parse(f"{tmp_path}/signs.jsonl")))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[(text, "B") for text in ("B", "b", "(B)", "B.", "B. blue", "B: blue", "Blue", "blue.", "the option is b")],
        *[(text, None) for text in ("the answer is A or the answer is B", "A blue thing", "D", "", "Boat", "option b")],
        *[("The answer is (A)", "A"), ("Answer: C", "C")],
    ],
)
def test_reading_a_choice(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, {"A": "red", "B": "blue", "C": "green"}) == letter


def test_scorers_of_texts() -> None:
    assert [exact(text, ["Yes"]) for text in ("yes.", " YES ", "yes it is", "")] == [1, 1, 0, 0]
    assert [contains(text, ["cat"]) for text in ("A cat.", "concatenate", "Cat", "dog")] == [1, 0, 1, 0]
    numbers = (("104", "100"), ("106", "100"), ("0", "0"), ("0.01", "0"), ("51%", "0.5"), ("Yes", "yes"), ("x", "5"))
    assert [relaxed(answer, [truth]) for answer, truth in numbers] == [1, 0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("questions: a.jsonl\nscorers: exact\n", "unknown key 'scorers'; did you mean 'scorer'"),
        ("questions: a.jsonl\nscorer: bleu\n", "scorer: .*'exact', 'contains'"),
        ("scorer: exact\n", "questions: is required"),
        ('questions: a.jsonl\nprompt: "{question.__class__}"\n', "name a column in braces"),
        ('questions: a.jsonl\nprompt: "{question"\n', "not a template"),
        ("questions: a.jsonl\noptions: [A, B]\n", "neither is used"),
        ("[]", "a mapping of keys is expected"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(make(tmp_path, text), tmp_path)


def test_questions_that_are_wrong_are_named(tmp_path: Path) -> None:
    place = Location.parse(f"{tmp_path}/signs.jsonl")
    file = make(tmp_path)
    for rows, message in (
        ([ROWS[0], ROWS[0]], "the id '1' occurs twice"),
        ([{**ROWS[0], "id": None}], "row 1: no id in column 'id'"),
        ([{"id": 1, "image": "a.png", "kind": "x"}], "row 1: no column 'question'; found id, image, kind"),
        ([{**ROWS[0], "image": "missing.png"}], "no file has this name"),
        ([{**ROWS[0], "image": 5}], "image must be the path of an image"),
        (["text"], "row 1 is a str; expected an object"),
    ):
        put(tmp_path / "signs.jsonl", rows)
        with pytest.raises(DataError, match=message):
            list(questions(file, place))
    put(tmp_path / "signs.jsonl", [{**ROWS[0], "truth": []}])
    with pytest.raises(DataError, match="row 1: no truth in column 'truth'"):
        score(file, tmp_path, q1="stop")
    put(tmp_path / "signs.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(DataError, match="the id '1' occurs twice"):
        score(file, tmp_path, q1="stop")
    put(tmp_path / "signs.jsonl", ROWS)
    with pytest.raises(DataError, match="this signs reference does not have"):
        score(file, tmp_path, q9="stop")
