"""A benchmark is asked in pieces: what is stored is not asked again, failures stand apart, the bytes are the same."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_asking import ask_here, run_of, write_benchmark
from warren.errors import ConfigError, DataError, ModelError, QuarantineError, WarrenError
from warren.evaluate import ask_model
from warren.evaluate.answer_file import StoredAnswer, read_stored
from warren.evaluate.answer_pieces import AnswerPieces, Outcome, PieceEffort, QuestionPiece
from warren.evaluate.benchmark_result import finish
from warren.evaluate.benchmark_run import QuestionSource
from warren.evaluate.benchmarks import Question
from warren.evaluate.model_source import ModelSource
from warren.evaluate.score_answers import score_answers
from warren.inference.engine import Completion, EngineStats, GenerationFailedError, GenerationRequest
from warren.inference.testing import save_random_model
from warren.inference.transformers_engine import offline
from warren.inference.transformers_engine.offline import Finished, OfflineGenerator, finish_all
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.storage import Location


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder)
    return folder


def files(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def test_a_broken_run_ends_in_the_bytes_of_an_unbroken_one_and_asks_nothing_twice(model: Path, tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path / "data", 21)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert len(ask_here(run_of(benchmark, whole), model)) == 21
    finish(run_of(benchmark, whole))

    asked = ask_here(run_of(benchmark, broken), model, max_pieces=1)
    with pytest.raises(DataError, match="13 of 21 questions were not asked, 'q0008' first"):
        finish(run_of(benchmark, broken))
    asked += ask_here(run_of(benchmark, broken), model)
    assert asked == [f"q{place:04d}" for place in range(21)]
    assert ask_here(run_of(benchmark, broken), model) == []
    result = finish(run_of(benchmark, broken))
    names = ("answers.parquet", "scores.json")
    assert files(broken, *names) == files(whole, *names)
    assert len({row.answer for row in read_stored(Location(str(whole / "answers.parquet")))[0]}) > 5, "nothing is shown"
    page = (broken / "report.md").read_text()
    assert "answers a second and evaluator" in page
    assert result.report["num_answered"] == 21
    assert result.report["digests"].keys() == {"model", "questions", "images"}


def test_the_bits_of_answers_do_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    """They depend on the requests that are answered together, which are always those of one piece."""
    tower = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
    save_random_model(tmp_path, tower=tower, hidden_size=512, intermediate_size=1536, num_attention_heads=8)
    generator, another = OfflineGenerator(tmp_path), OfflineGenerator(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (12, 1, 3, 32, 32), dtype=np.uint8)
    requests = [generator.encode("<image>\nwhat shape is there?", image, 4) for image in images]
    sampling = replace(requests[0].sampling, num_logprobs=1)
    requests = [replace(request, sampling=sampling) for request in requests]

    def bits(asked: OfflineGenerator, requests: Sequence[GenerationRequest]) -> list[list[float]]:
        finished = [each.result for each in asked.finish_apart(requests)]
        return [[token.logprob for token in each.logprobs] for each in finished if isinstance(each, Completion)]

    alone = [bits(generator, [request])[0] for request in requests]
    after_others = bits(generator, requests)
    assert alone != after_others, "company changes bits, so it must always be the same"
    assert after_others == bits(another, requests)


def test_nothing_of_an_earlier_piece_is_left_when_the_next_one_is_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither running requests, nor images' features, nor the size of the cache: each of them can change bits."""
    generator = OfflineGenerator(model)
    schedulers: list[tuple[Scheduler, EngineStats]] = []  # with their state when they begin

    def recorded(scheduler: Scheduler, requests: Sequence[GenerationRequest]) -> list[Finished]:
        schedulers.append((scheduler, scheduler.stats()))
        return finish_all(scheduler, requests)

    monkeypatch.setattr(offline, "finish_all", recorded)
    size_px = generator.inputs.image.size_px
    image = np.zeros((1, 3, size_px, size_px), dtype=np.uint8)
    short = generator.encode("<image>\nwhat?", image, 2)
    long = generator.encode("<image>\n" + "what? " * 60, image, 2)
    generator.answer([long])  # as `generate` does, whose scheduler lasts
    for requests in ([short], [long], [short], [short, short]):
        generator.finish_apart(requests)
    assert len({id(scheduler) for scheduler, _ in schedulers}) == 5, "each piece has a scheduler of its own"
    counts = ("image_cache_bytes", "image_cache_hits", "image_cache_misses", "num_prompt_tokens", "num_waiting")
    assert {getattr(stats, name) for _, stats in schedulers for name in counts} == {0}, "and each begins as new"
    contexts = [stats.max_context_tokens for _, stats in schedulers]
    assert contexts[1] == contexts[3] == contexts[4] < contexts[0] == contexts[2], "its requests alone decide its size"


def test_one_bad_question_is_one_failure_and_never_a_score(model: Path, tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path / "data", 12, bad=True)
    run = run_of(benchmark, tmp_path / "run")
    ask_here(run, model)
    with pytest.raises(QuarantineError) as failed:
        finish(run)
    assert "2 of 12 questions failed, more than the allowed 0.00%" in str(failed.value)
    assert "'q0002': 15 bytes that are no known image format; 'q0005': " in str(failed.value)
    assert not (tmp_path / "run/scores.json").exists()
    stored, origin = read_stored(Location(str(tmp_path / "run/answers.parquet")))
    assert [row.key for row in stored if row.error] == ["q0002", "q0005"]
    assert origin.benchmark == "colours"
    assert ask_here(run, model) == [], "what fails for ever is not asked for ever"
    report = finish(run, max_failed_fraction=0.2).report
    assert (report["num_answered"], report["failed"]) == (10, ["q0002", "q0005"])
    assert "no known image format" in (tmp_path / "run/report.md").read_text()


def test_a_failure_that_may_pass_is_tried_again_and_asked_again_by_the_next_attempt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(write_benchmark(tmp_path / "data", 6), tmp_path / "run", questions_per_piece=3)
    real, calls = OfflineGenerator.finish_apart, []

    def failing(self: OfflineGenerator, requests: Any) -> list[Finished]:
        calls.append(len(requests))
        answered = real(self, requests)
        answered[0] = Finished(GenerationFailedError("no memory"), 0.0)  # of each call: its tries fail as well
        return answered

    monkeypatch.setattr(OfflineGenerator, "finish_apart", failing)
    ask_here(run, model)
    assert calls == [3, 1, 1, 3, 1, 1]
    with pytest.raises(QuarantineError, match="run this again to ask the 2 whose reason may pass"):
        finish(run)
    monkeypatch.undo()
    assert ask_here(run, model) == ["q0000", "q0003"]
    assert ask_here(run, model) == []
    assert finish(run).report["num_answered"] == 6
    assert sum(effort.num_asked for effort in run.pieces.read().efforts) == 8


def test_a_question_with_a_fixed_answer_is_never_asked(model: Path, tmp_path: Path) -> None:
    questions = (Question("a", "one?"), Question("a#2", "two?", fixed_answer="(B)"), Question("a#3", "three?"))
    pieces = AnswerPieces(Location(str(tmp_path)))
    [piece] = pieces.remaining(questions, 8)
    asker = ask_model.ModelAsker(model, 4)
    outcomes, effort = asker.ask(ask_model.prepare_piece(piece, asker._generator.inputs))
    pieces.write(piece, outcomes, effort)
    assert effort.num_asked == 2
    stored = pieces.read().outcomes
    assert list(stored) == ["a", "a#2", "a#3"]
    assert stored["a#2"].answer.answer == "(B)"


def test_the_first_to_store_a_piece_wins_and_a_damaged_piece_is_named(tmp_path: Path) -> None:
    pieces = AnswerPieces(Location(str(tmp_path)))
    piece = QuestionPiece(0, 1, 1, (Question("a", "one?"),))
    assert not pieces.is_stored(piece)
    for text in ("first", "second"):
        pieces.write(piece, [Outcome(StoredAnswer("a", "half a pair: \ud800", text))], PieceEffort(1, 0.1))
    assert pieces.is_stored(piece)
    assert pieces.read().outcomes["a"].answer == StoredAnswer("a", "half a pair: ?", "first")
    file = tmp_path / "pieces" / piece.name
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(DataError, match=r"00000000-00000001\.1\.parquet is damaged: .*; delete it"):
        pieces.read()


def test_a_folder_of_other_answers_is_refused(tmp_path: Path) -> None:
    first, second = (write_benchmark(tmp_path / name, number) for name, number in (("a", 4), ("b", 5)))
    run_of(first, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds answers of something else .*num_questions is 4, not 5"):
        run_of(second, tmp_path / "run")
    with pytest.raises(ConfigError, match="questions_per_piece is 8, not 2"):
        run_of(first, tmp_path / "run", questions_per_piece=2)


def test_bad_input_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path / "data", 4)
    table = tmp_path / "data/questions.jsonl"
    lines = table.read_text().splitlines()
    cases: list[tuple[str, str]] = [
        ("\n".join([*lines, lines[0]]), "the id 'q0000' occurs twice in .*; ids must be unique"),
        ("\n".join(lines).replace("images/1.png", "images/none.png"), "images/none.png"),
        (json.dumps({"id": "x", "image": None, "answer": "red"}), "question"),
        ("", "no question"),
    ]
    for content, message in cases:
        table.write_text(content)
        with pytest.raises(WarrenError, match=message):
            run_of(benchmark, tmp_path / f"run-{len(message)}")
    with pytest.raises(ConfigError, match="mme needs --data"):
        QuestionSource.of("mme", None)
    with pytest.raises(ConfigError, match="no split 'dev'"):
        list(QuestionSource.of(benchmark, None, "dev"))


def test_answers_of_another_benchmark_are_refused(model: Path, tmp_path: Path) -> None:
    run = run_of(write_benchmark(tmp_path / "data", 4), tmp_path / "run")
    ask_here(run, model)
    shutil.copy(tmp_path / "data/colours.yaml", tmp_path / "data/shades.yaml")
    run.join()
    with pytest.raises(DataError, match="these are answers of colours, not of shades"):
        score_answers(str(tmp_path / "data/shades.yaml"), Location(str(tmp_path / "run/answers.parquet")))


def test_a_model_is_found_by_its_folder(model: Path, tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    by_folder = ModelSource.of_checkpoint(Location(str(model)))
    assert by_folder.files.digest == by_folder.model.digest
    with pytest.raises(ModelError, match=r"is no checkpoint: give …/runs/RUN/checkpoints/STEP"):
        ModelSource.of_checkpoint(root / "nothing")
    with pytest.raises(WarrenError, match=r"no complete checkpoint at .*00000120; complete in its run: none"):
        ModelSource.of_checkpoint(root / "runs/r/checkpoints/00000120")
    with pytest.raises(WarrenError, match="no release was ever stable"):
        ModelSource.of_release("demo/stable", root)
