"""ScienceQA (arXiv 2209.09513): multiple choice; papers report the questions with an image."""

import re
from collections.abc import Iterator
from typing import Any

from warren.data.sample import IMAGE_MARK
from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import LETTER, lettered, required_file, with_images
from warren.evaluate.benchmarks.reference_files import by_key, find_file, read_json, refuse_unknown
from warren.evaluate.measures import share
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.storage import Location

_LETTERS = ("A", "B", "C", "D", "E")
_SAID = re.compile(r"The answer is ([A-Z]).")
_UNREADABLE = "FAILED"
_SPLIT = "test"


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script; a missing or unreadable answer is wrong."""
    problems = read_json(find_file(reference, "problems.json"))
    keys: list[str] = read_json(find_file(reference, "pid_splits.json"))[_SPLIT]
    answered = by_key(answers)
    refuse_unknown(answered, keys, "ScienceQA")
    keys = [key for key in keys if key not in answers.failed]
    chosen, right, with_image = {}, {}, {}
    for key in keys:
        answer, problem = answered.get(key), problems[key]
        chosen[key] = _choice(answer.text if answer else _UNREADABLE, len(problem["choices"]))
        right[key] = chosen[key] == problem["answer"]
        with_image[key] = answer is not None and "<image>" in answer.prompt
    image_right = sum(right[key] for key in keys if with_image[key])
    image_count = sum(with_image.values())
    scores: dict[str, Any] = {
        "acc": 100 * sum(right.values()) / len(keys),
        "correct": sum(right.values()),
        "count": len(keys),
        "image_acc": 100 * image_right / image_count if image_count else 0.0,
        "image_correct": image_right,
        "image_count": image_count,
        "results": chosen,
    }
    truths = {key: _LETTERS[problems[key]["answer"]] for key in keys}
    per_question = {key: {"choice": chosen[key], "truth": truths[key], "right": right[key]} for key in keys}
    measures = [share("acc", right, 100)]
    of_images = {key: right[key] for key in keys if with_image[key]}
    measures += [share("image_acc", of_images, 100)] if of_images else []
    return Scores(len(keys), len(answered), scores, per_question, measures=measures)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's `scienceqa` and `scienceqa_img`: a letter in any case, or a capital and a full stop."""
    problems = read_json(find_file(reference, "problems.json"))
    keys: list[str] = read_json(find_file(reference, "pid_splits.json"))[_SPLIT]
    answered = complete(answers, keys, "ScienceQA")
    right = {key: _lmms_right(answer.text.strip(), problems[key]["answer"]) for key, answer in answered.items()}
    of_images = {key: value for key, value in right.items() if problems[key].get("image")}
    tables = {"exact_match": right} | ({"exact_match_img": of_images} if of_images else {})
    measures = [share(name, of) for name, of in tables.items()]
    per_question = {key: {"truth": _LETTERS[problems[key]["answer"]], "right": value} for key, value in right.items()}
    scores = {measure.name: measure.value for measure in measures}
    return Scores(len(keys), len(answered), scores, per_question, measures=measures)


def _lmms_right(text: str, truth: int) -> bool:
    letter = chr(ord("a") + truth)
    return text.lower() == letter or (text[1:2] == "." and text[0].isupper() and text[0].lower() == letter)


def _lmms_questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as lmms-eval does, from ScienceQA's own files."""
    problems = read_json(find_file(folder, "problems.json"))
    with_paths = []
    for key in read_json(find_file(folder, "pid_splits.json"))[_SPLIT]:
        row = problems[key]
        context = f"Context: {row['hint']}\n" if row["hint"] else ""
        text = f"{lettered(context + row['question'], row['choices'])}\n{LETTER}"
        paths = [f"{key}/{row['image']}"] if row.get("image") else []
        if paths or split == "all":
            with_paths.append((Question(key, text, cluster=key), paths))
    return with_images(folder, with_paths)


def _choice(text: str, num_choices: int) -> int:
    """Return the index of the chosen option, -1 for none."""
    letter = text
    if text not in _LETTERS:
        if len(text) >= 3 and text[0] in _LETTERS and text[1:3] == ". ":
            letter = text[0]
        else:
            letters = _SAID.findall(text)
            letter = letters[0] if len(letters) == 1 else _UNREADABLE
    allowed = _LETTERS[:num_choices]
    return allowed.index(letter) if letter in allowed else -1


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read Bunny's and LLaVA's file of conversations; the split `image` holds the questions that have one."""
    file = required_file(folder, "*_test_CQM-A.json", "*CQM-A*.json")
    with_paths = []
    for number, row in enumerate(read_json(file), 1):
        try:
            text = row["conversations"][0]["value"].replace(IMAGE_MARK, "").strip()
            paths = [f"{row['id']}/{row['image'].rpartition('/')[2]}"] if row.get("image") else []
            mark = f"{IMAGE_MARK}\n" if paths else ""
            with_paths.append((Question(str(row["id"]), f"{mark}{text}\n{LETTER}", cluster=str(row["id"])), paths))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise DataError(f"{file}: question {number} has no id or no conversations[0].value") from None
    return with_images(folder, [(question, paths) for question, paths in with_paths if paths or split == "all"])


BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    reference="a folder with problems.json and pid_splits.json",
    obtained_from="https://github.com/lupantech/ScienceQA",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval},
    questions={"bunny": _questions, LMMS_EVAL: _lmms_questions},
    data="bunny_test_CQM-A.json or llava_test_CQM-A.json, and the images of the test split as ID/image.png",
    splits=("all", "image"),
    max_new_tokens=1024,
)
