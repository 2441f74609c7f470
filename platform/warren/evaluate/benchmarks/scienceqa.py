"""ScienceQA (arXiv 2209.09513): multiple choice; papers report the questions with an image."""

import re
from collections.abc import Sequence
from typing import Any

from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, read_json, refuse_unknown
from warren.storage import Location

_LETTERS = ("A", "B", "C", "D", "E")
_SAID = re.compile(r"The answer is ([A-Z]).")
_UNREADABLE = "FAILED"
_SPLIT = "test"


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script; a missing or unreadable answer is wrong."""
    problems = read_json(find_file(reference, "problems.json"))
    keys: list[str] = read_json(find_file(reference, "pid_splits.json"))[_SPLIT]
    given = by_key(answers)
    refuse_unknown(given, keys, "ScienceQA")
    chosen, right, with_image = {}, {}, {}
    for key in keys:
        answer, problem = given.get(key), problems[key]
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
    per_question = {key: {"choice": chosen[key], "right": right[key]} for key in keys}
    return Scores(len(keys), len(given), scores, per_question)


def _choice(text: str, num_choices: int) -> int:
    """Return the index of the chosen option, -1 for none."""
    letter = text
    if text not in _LETTERS:
        if len(text) >= 3 and text[0] in _LETTERS and text[1:3] == ". ":
            letter = text[0]
        else:
            said = _SAID.findall(text)
            letter = said[0] if len(said) == 1 else _UNREADABLE
    allowed = _LETTERS[:num_choices]
    return allowed.index(letter) if letter in allowed else -1


BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    reference="a folder with problems.json and pid_splits.json",
    obtained_from="https://github.com/lupantech/ScienceQA",
    conventions={"bunny": _bunny},
)
