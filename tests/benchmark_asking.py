"""A small benchmark on disk, and ways to ask it, for tests of runs."""

import json
from pathlib import Path

from factories import COLOURS, make_image
from warren.data.model_inputs import Inputs
from warren.evaluate.ask_model import ModelAsker, prepare_piece
from warren.evaluate.benchmark_run import AskedModel, BenchmarkRun, QuestionSource
from warren.storage import Location

MODEL = AskedModel("tiny at step 1", "digest", {"torch": "0"})


def write_benchmark(folder: Path, number: int, bad: bool = False) -> str:
    """Write a benchmark of the colours of images; returns the path of its YAML file.

    Args:
        folder: Made if needed.
        number: Of questions.
        bad: Spoil two of them: question 2's image cannot be decoded, question 5 is too long for any tiny model.
    """
    (folder / "images").mkdir(parents=True)
    rows = []
    for place in range(number):
        colour = list(COLOURS)[place % len(COLOURS)]
        image = f"images/{place // 2}.png"  # two questions share an image
        shade = tuple(min(255, part + place // 2) for part in COLOURS[colour])
        (folder / image).write_bytes(make_image(shade))  # type: ignore[arg-type]
        question = f"what colour is number {place}?" + " really" * (place % 7)
        rows.append({"id": f"q{place:04d}", "question": question, "image": image, "answer": colour})
    if bad:
        (folder / "images/broken.png").write_bytes(b"no image at all")
        rows[2]["image"] = "images/broken.png"
        rows[5]["question"] = "what " * 999
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "colours.yaml"
    file.write_text("questions: questions.jsonl\nmax_new_tokens: 8\nscorer: exact\n")
    return str(file)


def run_of(benchmark: str, folder: Path | Location, questions_per_piece: int = 8) -> BenchmarkRun:
    """Return a run of a benchmark by the tests' model."""
    where = folder if isinstance(folder, Location) else Location.parse(str(folder))
    return BenchmarkRun(QuestionSource.of(benchmark, None), MODEL, where, None, questions_per_piece)


def ask_here(run: BenchmarkRun, model: Path, max_pieces: int | None = None) -> list[str]:
    """Ask what is left of a run in this process, or some pieces of it; returns the keys that were asked."""
    asker = ModelAsker(model, run.plan.max_new_tokens)
    asked: list[str] = []
    for number, piece in enumerate(run.remaining()):
        if number == max_pieces:
            break
        outcomes, effort = asker.ask(prepare_piece(piece, Inputs.load(model)), "here")
        run.pieces.write(piece, outcomes, effort)
        asked += [question.key for question in piece.questions]
    return asked
