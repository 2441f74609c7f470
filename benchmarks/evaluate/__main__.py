"""`make bench-evaluate`: how fast a benchmark's short answers are generated, beside the ways of Bunny and lmms-eval.

Everyone gets the same model, the same questions and one core, and they take turns; images are decoded in that time,
models are loaded before it. The metrics are medians over the rounds. The last line printed is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.evaluate.contestants import OneByOne, Pieces, Questions
from benchmarks.evaluate.lmms_eval_process import LmmsEvalError, ask_with_lmms_eval, why_not
from benchmarks.serve.model import IMAGE_PX, write_model
from warren.evaluate.benchmark_run import QUESTIONS_PER_PIECE

_NUM_WARM = 4
Contestant = Callable[[Questions], tuple[float, list[str]]]
"""Answers the questions; returns the seconds that it took, and the answers in the order of the questions."""


def main() -> None:
    """Measure, and print a table and the metrics by which changes are judged."""
    options = _options()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_model(model, options.quick)
        questions = Questions.make(options.questions, IMAGE_PX, options.new_tokens)
        contestants: dict[str, Contestant] = {
            "one by one": OneByOne(model).ask,
            "Warren": Pieces(model, options.questions_per_piece, options.new_tokens).ask,
        }
        for ask in contestants.values():
            ask(questions.first(_NUM_WARM))
        reason = why_not()
        if reason is None:
            contestants["lmms-eval"] = lambda asked: ask_with_lmms_eval(model, asked, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        answers: dict[str, list[str]] = {}
        for number in range(options.rounds):
            for name, ask in list(contestants.items()):
                try:
                    took_s, answers[name] = ask(questions)
                except LmmsEvalError as error:
                    reason = str(error)
                    del contestants[name]
                    continue
                seconds[name].append(took_s)
                print(f"round {number} {name}: {len(questions.images) / took_s:.2f} samples/s", flush=True)
    print(json.dumps(_summary(seconds, answers, options) | {"lmms_eval_reason": reason}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model: that it runs, not how fast")
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=8, help="of every answer")
    parser.add_argument("--questions-per-piece", type=int, default=QUESTIONS_PER_PIECE)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.questions, options.rounds = 8, 1
    return options


def _summary(
    seconds: dict[str, list[float]], answers: dict[str, list[str]], options: argparse.Namespace
) -> dict[str, object]:
    medians = {name: statistics.median(each) for name, each in seconds.items() if each}
    own = medians["Warren"]
    same = [first == second for first, second in zip(answers["one by one"], answers["Warren"], strict=True)]

    def speedup(other: str) -> float | None:
        return round(medians[other] / own, 2) if other in medians else None

    return {
        "quick": options.quick,
        "questions": options.questions,
        "new_tokens": options.new_tokens,
        "speedup_vs_one_by_one": speedup("one by one"),
        "speedup_vs_lmms_eval": speedup("lmms-eval"),
        "samples_per_s": round(options.questions / own, 2),
        "same_answers_as_one_by_one_fraction": sum(same) / len(same),
        "seconds": {name: [round(one, 2) for one in each] for name, each in seconds.items()},
    }


if __name__ == "__main__":
    main()
