"""Benchmarks are asked from their published files, with Bunny's prompts; what is wrong with the files is named."""

import base64
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from warren.errors import BadSampleError, ConfigError, DataError, WarrenError
from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, write_answers
from warren.evaluate.benchmark_questions import questions
from warren.evaluate.benchmarks import Question, all_benchmarks
from warren.evaluate.score_answers import score_answers
from warren.storage import Location

ORACLE = Path(__file__).parents[2] / "oracle" / "scoring"
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(sink, "PNG")
    return sink.getvalue()


PNG = png()


def ask(name: str, folder: Path, split: str | None = None) -> list[Question]:
    return list(questions(name, Location.parse(str(folder)), split))


def put(path: Path, content: Any = PNG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parquet(path: Path, rows: list[dict[str, Any]], **images: list[bytes | None]) -> None:
    """Write rows as Hugging Face does, with image structs, two rows a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows)
    for name, values in images.items():
        cells = [None if value is None else {"bytes": value, "path": f"{n}.png"} for n, value in enumerate(values)]
        table = table.append_column(name, pa.array(cells, struct))
    pq.write_table(table, path, row_group_size=2)


def make_mme(folder: Path) -> None:
    shutil.copytree(ORACLE / "mme/MME_Benchmark_release_version", folder, dirs_exist_ok=True)
    for file in list(folder.rglob("*.txt")):
        where = file.parent.parent / "images" if file.parent.name == "questions_answers_YN" else file.parent
        put(where / f"{file.stem}.jpg")


def make_pope(folder: Path) -> None:
    shutil.copytree(ORACLE / "pope/annotations", folder / "coco")
    shutil.copy(ORACLE / "pope/questions.jsonl", folder)
    for row in lines(folder / "questions.jsonl"):
        put(folder / "val2014" / row["image"])


def make_scienceqa(folder: Path) -> None:
    turns = [{"from": "human", "value": "Which?\nContext: it is red.\nA. yes\nB. no<image>"}]
    put(
        folder / "llava_test_CQM-A.json",
        [{"id": "4", "conversations": turns}, {"id": "7", "image": "7/image.png", "conversations": turns}],
    )
    put(folder / "test/7/image.png")
    put(folder / "test/77/image.png")


def make_seed(folder: Path) -> None:
    shutil.copy(ORACLE / "seed/SEED-Bench.json", folder)
    for row in json.loads((folder / "SEED-Bench.json").read_text())["questions"]:
        video = f"SEED-Bench-video-image/{row['question_type_id']}_{row['question_id']}.png"
        put(folder / (f"SEED-Bench-image/{row['data_id']}" if row["data_type"] == "image" else video))


def make_gqa(folder: Path) -> None:
    shutil.copy(ORACLE / "gqa/testdev_balanced_questions.json", folder)
    for row in json.loads((folder / "testdev_balanced_questions.json").read_text()).values():
        put(folder / "images" / f"{row['imageId']}.jpg")


def make_textvqa(folder: Path) -> None:
    asked = [
        {"question_id": row["question_id"], "image": f"train_images/{row['question_id']}.jpg", "text": row["prompt"]}
        for row in lines(ORACLE / "textvqa/answers.jsonl")
    ]
    put(folder / "llava_textvqa_val_v051_ocr.jsonl", asked)
    shutil.copy(ORACLE / "textvqa/annotations.json", folder)
    for row in asked:
        put(folder / row["image"])


def make_vqav2(folder: Path) -> None:
    asked = lines(ORACLE / "vqav2/bunny_vqav2_mscoco_test2015.jsonl")
    put(folder / "bunny_vqav2_mscoco_test2015.jsonl", asked)
    put(folder / "bunny_vqav2_mscoco_test-dev2015.jsonl", asked[:3])
    for row in asked:
        put(folder / "test2015" / row["image"])


def make_vizwiz(folder: Path) -> None:
    asked = lines(ORACLE / "vizwiz/questions.jsonl")
    put(folder / "llava_vizwiz.jsonl", asked)
    for row in asked:
        put(folder / "test" / row["image"])


def make_mmvet(folder: Path) -> None:
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    put(folder / "mm-vet.json", {"v1_0": row})
    put(folder / "images/v1_0.png")


def make_mmbench(folder: Path) -> None:
    text = (ORACLE / "mmbench/mmbench_dev.tsv").read_text()
    (folder / "MMBench_DEV_EN_legacy.tsv").write_text(text.replace("aGk=", base64.b64encode(PNG).decode()))
    (folder / "MMBench_DEV_CN_legacy.tsv").write_text(text.replace("aGk=", base64.b64encode(PNG).decode()))


def make_mmmu(folder: Path) -> None:
    for case in json.loads((ORACLE / "mmmu/expected_prompts.json").read_text()):
        row = {key: value for key, value in case["sample"].items() if key != "image_1"}
        subject = row["id"].split("_")[1]
        parquet(folder / subject / "validation-00000-of-00001.parquet", [row], image_1=[PNG])


def make_cmmmu(folder: Path) -> None:
    rows = lines(ORACLE / "cmmmu/data.jsonl")
    parquet(folder / "all/val-00000-of-00001.parquet", rows, image_1=[PNG] * len(rows), image_2=[None] * len(rows))


MAKERS = {
    "mme": make_mme,
    "pope": make_pope,
    "scienceqa": make_scienceqa,
    "seed": make_seed,
    "gqa": make_gqa,
    "textvqa": make_textvqa,
    "vqav2": make_vqav2,
    "vizwiz": make_vizwiz,
    "mmvet": make_mmvet,
    "mmbench": make_mmbench,
    "mmmu": make_mmmu,
    "cmmmu": make_cmmmu,
}
FIRST = {  # key, text and group of a question of each
    "mme": ("OCR/0000.jpg", f"Is there a OCR item 0 of kind 0 in the image?{SHORT}", "OCR"),
    "pope": ("1", f"Is there a thing 0 in the image?{SHORT}", "adversarial"),
    "scienceqa": ("4", f"Which?\nContext: it is red.\nA. yes\nB. no{LETTER}", ""),
    "gqa": ("200000000", f"Is the thing here?{SHORT}", None),
    "textvqa": (
        "0000000000000000",
        f"What is written on sign 0?\nReference OCR token: A, B{SHORT}",
        "",
    ),
    "vqav2": ("1000", f"Q0?{SHORT}", "default"),
    "vizwiz": ("VizWiz_test_00000000.jpg", "Q0?", "default"),
    "mmvet": ("0", "What is x?", "ocr,math"),
    "mmbench": ("5", f"Q0?\nA. one\nB. two{LETTER}", "c"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_benchmark_is_asked_from_its_published_files(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    asked = ask(name, tmp_path)
    assert len({question.key for question in asked}) == len(asked) > 0
    for question in pickle.loads(pickle.dumps(asked)):
        assert [source.read() for source in question.images] == [PNG] * len(question.images)
        assert question.prompt.count("<image>") == len(question.images)
    if name in FIRST:
        key, text, group = FIRST[name]
        assert (asked[0].key, asked[0].text) == (key, text)
        assert group is None or asked[0].group == group
    assert all(question.images for question in asked if question.key != "4")


def test_every_benchmark_can_be_asked() -> None:
    published = {name: each for name, each in all_benchmarks().items() if "bunny" in each.conventions}
    assert set(MAKERS) == set(published)
    assert all(each.questions and each.data for each in published.values())


def test_prompts_of_mmmu_and_cmmmu_are_bunnys(tmp_path: Path) -> None:
    make_mmmu(tmp_path / "mmmu")
    cases = json.loads((ORACLE / "mmmu/expected_prompts.json").read_text())
    asked = {question.key: question for question in ask("mmmu", tmp_path / "mmmu")}
    for case in cases:
        question = asked[case["sample"]["id"]]
        assert (question.text, question.prompt) == (case["final_input_prompt"], case["user_turn"])
    make_cmmmu(tmp_path / "cmmmu")
    asked = {question.key: question for question in ask("cmmmu", tmp_path / "cmmmu")}
    for case in json.loads((ORACLE / "cmmmu/expected_prompts.json").read_text()):
        question = asked[str(case["id"])]
        assert (question.text, question.prompt) == (case["final_input_prompt"], case["user_turn"])


def test_splits_and_variants(tmp_path: Path) -> None:
    for name in ("vqav2", "scienceqa", "seed", "pope", "mmbench"):
        (tmp_path / name).mkdir()
        MAKERS[name](tmp_path / name)
    assert len(ask("vqav2", tmp_path / "vqav2", "test-dev")) == 3 < len(ask("vqav2", tmp_path / "vqav2", "test"))
    assert [question.key for question in ask("scienceqa", tmp_path / "scienceqa", "image")] == ["7"]
    by_kind = [len(ask("seed", tmp_path / "seed", split)) for split in ("all", "image", "video")]
    assert by_kind[0] == by_kind[1] + by_kind[2]
    assert {question.group for question in ask("pope", tmp_path / "pope", "random")} == {"random"}
    assert ask("mmbench", tmp_path / "mmbench", "dev-cn")[0].text.endswith("\n请直接回答选项字母。")
    with pytest.raises(ConfigError, match="no split 'dev'; valid: dev-en"):
        ask("mmbench", tmp_path / "mmbench", "dev")
    with pytest.raises(DataError, match="expected one table of test-en"):
        ask("mmbench", tmp_path / "mmbench", "test-en")


def test_rotated_questions_share_an_image_by_index(tmp_path: Path) -> None:
    header = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage"
    encoded = base64.b64encode(PNG * 9).decode()
    rows = [f"3\tQ?\t\tone\ttwo\tA\tc\t{encoded}", "1000003\tQ?\t\ttwo\tone\tB\tc\t3"]
    (tmp_path / "MMBench_DEV_EN_V11.tsv").write_text("\n".join([header, *rows]) + "\n")
    first, rotated = ask("mmbench", tmp_path)
    assert first.images[0].read() == rotated.images[0].read() == PNG * 9
    assert first.cluster == rotated.cluster


def test_a_question_with_two_images_has_the_answer_that_bunny_draws(tmp_path: Path) -> None:
    rows = [dict(row) for row in lines(ORACLE / "cmmmu/data.jsonl")[:6]]
    parquet(tmp_path / "val-0.parquet", rows, image_1=[PNG] * 6, image_2=[None, PNG, None, PNG, PNG, None])
    fixed = {question.key: question.fixed_answer for question in ask("cmmmu", tmp_path)}
    assert sum(answer is not None for answer in fixed.values()) == 3
    assert all(answer in (None, "A", "B", "C", "D") for answer in fixed.values())
    assert fixed == {question.key: question.fixed_answer for question in ask("cmmmu", tmp_path)}


def test_pope_without_a_question_file_is_asked_and_scored_from_its_annotations(tmp_path: Path) -> None:
    make_pope(tmp_path)
    (tmp_path / "questions.jsonl").unlink()
    asked = ask("pope", tmp_path)
    assert asked[0].key.startswith("adversarial/")
    answers = [StoredAnswer(q.key, q.text, "yes") for q in asked]
    write_answers(at(tmp_path / "a.parquet"), answers, AnswersOrigin("pope"))
    found = score_answers("pope", at(tmp_path / "a.parquet"), at(tmp_path))
    assert found["scores"]["splits"]["random"]["recall"] == 1.0


def test_mmmu_is_scored_from_its_parquet_folder(tmp_path: Path) -> None:
    make_mmmu(tmp_path)
    asked = ask("mmmu", tmp_path)
    replies = {"validation_Art_1": "(B)", "validation_Math_2": "so it is 4", "validation_Bio_3": "B"}
    stored = [StoredAnswer(question.key, question.text, replies[question.key]) for question in asked]
    write_answers(at(tmp_path / "answers.parquet"), stored, AnswersOrigin("mmmu"))
    found = score_answers("mmmu", at(tmp_path / "answers.parquet"), at(tmp_path))
    assert [found["per_question"][key]["right"] for key in replies] == [True, True, False]


def at(path: Path) -> Location:
    return Location.parse(str(path))


def _row(**changes: Any) -> dict[str, Any]:
    row = {"id": "validation_Art_1", "question": "Q?", "options": "['a', 'b']", "answer": "A"}
    return {**row, "question_type": "multiple-choice", **changes}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("['a', 'b'", "is not a Python list"),
        ("__import__('os').system('true')", "is not a Python list"),
        ("{'a': 1}", "are not a list of texts"),
        ("[1, 2]", "are not a list of texts"),
        ("[]", "without options"),
    ],
)
def test_options_that_do_not_parse_are_a_named_error(tmp_path: Path, options: str, message: str) -> None:
    parquet(tmp_path / "validation-0.parquet", [_row(options=options)], image_1=[PNG])
    with pytest.raises(DataError, match=f"validation_Art_1.*{message}"):
        ask("mmmu", tmp_path)


def test_what_is_wrong_with_the_files_is_named(tmp_path: Path) -> None:
    for name in ("pope", "textvqa", "gqa", "mmvet", "mmbench", "mmmu", "vqav2", "mme", "scienceqa", "seed"):
        with pytest.raises(WarrenError):
            ask(name, tmp_path)
    make_gqa(tmp_path)
    images = sorted((tmp_path / "images").iterdir())
    images[0].unlink()
    with pytest.raises(DataError, match=r"1 of \d+ images are missing, such as n\d+\.jpg"):
        ask("gqa", tmp_path)
    put(images[0])
    put(tmp_path / "copy" / images[0].name)
    with pytest.raises(DataError, match="must be one file"):
        ask("gqa", tmp_path)


def test_duplicate_ids_and_wrong_columns_are_named(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg")
    row = {"question_id": 1, "image": "x.jpg", "text": "Q"}
    put(tmp_path / "llava_vizwiz.jsonl", [row, row])
    with pytest.raises(DataError, match="the id '1' occurs twice in vizwiz"):
        ask("vizwiz", tmp_path)
    put(tmp_path / "llava_vizwiz.jsonl", [{"id": 1, "image": "x.jpg"}])
    with pytest.raises(DataError, match="question 1 lacks question_id or text"):
        ask("vizwiz", tmp_path)
    (tmp_path / "mmbench_dev_en.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(DataError, match="columns index, question, A, B; found a, b"):
        ask("mmbench", tmp_path)
    parquet(tmp_path / "m" / "validation-0.parquet", [{"id": "validation_Art_1", "question": "Q"}], image_1=[PNG])
    with pytest.raises(DataError, match="row 1: no column 'question_type'; found id, question"):
        ask("mmmu", tmp_path / "m")
    (tmp_path / "m" / "validation-0.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        ask("mmmu", tmp_path / "m")


def test_one_image_that_cannot_be_read_is_one_bad_sample(tmp_path: Path) -> None:
    text = (ORACLE / "mmbench/mmbench_dev.tsv").read_text().replace("aGk=", "%%%")
    (tmp_path / "mmbench_dev_en.tsv").write_text(text)
    asked = ask("mmbench", tmp_path)
    with pytest.raises(BadSampleError, match="not valid Base64"):
        asked[0].images[0].read()
    make_vizwiz(tmp_path)
    asked = ask("vizwiz", tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(BadSampleError, match="the image is missing"):
        asked[0].images[0].read()
