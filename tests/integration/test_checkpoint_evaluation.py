"""Checkpoints that are evaluated and released beside training, on the session's cluster."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from factories import colour_sample, make_image, tiny_recipe, tiny_stage, write_dataset
from warren.cluster.batch.evaluation import evaluations_of
from warren.cluster.train.stage import train_stage
from warren.config import BenchmarkConfig, Duration, GateConfig, Recipe, ReleaseConfig, Resources
from warren.release import Registry
from warren.storage import Location
from warren.train.checkpoint_scores import CheckpointScores
from warren.train.evaluation_plan import chosen_checkpoint
from warren.train.run import Run
from warren.train.run_report import read_metrics

pytestmark = pytest.mark.timeout(600)
RESOURCES = Resources(num_workers=1, cpus_per_worker=0.5, data_cpus_per_task=0.5, micro_batch_size=4)
SCORE = "test@v1/exact_match"
TASK = "ray::evaluate_checkpoint"


def recipe(every: int | None, **changes: Any) -> Recipe:
    stage = tiny_stage(
        "train@v1", duration=Duration(steps=8), evaluate_every_checkpoints=every, keep_checkpoints=1, template="brief"
    )
    when: Literal["best_evaluated", "manual"] = "best_evaluated" if every else "manual"
    release = ReleaseConfig(
        name="evaluated", gate=GateConfig(min_score=0.0), choose="best" if every else "last", when=when
    )
    return tiny_recipe("evaluated", **{"finetune": stage, "release": release, **changes})


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def benchmark(folder: Path) -> BenchmarkConfig:
    """Write a benchmark whose second image cannot be decoded."""
    (folder / "good.png").write_bytes(make_image())
    (folder / "bad.png").write_bytes(b"no image")
    rows = [
        {"id": name, "question": "what colour?", "image": f"{name}.png", "answer": "red"} for name in ("good", "bad")
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "signs.yaml").write_text("questions: questions.jsonl\nmax_new_tokens: 2\n")
    return BenchmarkConfig(name=str(folder / "signs.yaml"))


class KillEvaluator(threading.Thread):
    """Kills the first process that evaluates a checkpoint."""

    def __init__(self, cluster: Any) -> None:
        super().__init__(daemon=True)
        self._cluster, self.num_killed = cluster, 0

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while not self.num_killed and time.monotonic() < deadline:
            for process in self._cluster.head.processes():
                with suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(TASK):
                        process.kill()
                        self.num_killed += 1
            time.sleep(0.02)


@pytest.fixture
def train(idle_cluster: Any, storage_root: Location, capsys: Any) -> Callable[..., tuple[Run, str]]:
    root = storage_root / "evaluated-beside"
    for name in ("captions", "train"):
        write_dataset(root, name, [colour_sample(i) for i in range(64)])
    write_dataset(root, "test", [colour_sample(i) for i in range(8)])

    def job(name: str, recipe: Recipe) -> tuple[Run, str]:
        run = train_stage(recipe, "finetune", RESOURCES, root, name)
        return run, capsys.readouterr().err

    return job


def test_checkpoints_are_evaluated_beside_training_and_the_best_becomes_the_candidate(
    train: Callable[..., tuple[Run, str]], idle_cluster: Any, tmp_path: Path
) -> None:
    alone, _ = train("alone", recipe(None))
    killer = KillEvaluator(idle_cluster)
    killer.start()
    run, said = train("beside", recipe(1))
    assert killer.num_killed == 1
    assert "evaluate did not end well" in said, "it is asked again"
    assert losses(run) == losses(alone)

    known = {each.step: each for each in CheckpointScores(run.folder).read()}
    assert list(known) == [4, 8]
    best = max(known.values(), key=lambda each: (each.scores[SCORE], each.step))
    assert {row["step"] + 1: row["scores"] for row in read_metrics(run) if "scores" in row} == {
        step: each.scores for step, each in known.items()
    }
    assert set(run.checkpoints.steps()) == {8, best.step}, "the newest and the best"
    assert chosen_checkpoint(recipe(1), run, "").step == best.step
    registry = Registry(Location(run.folder.uri.rsplit("/runs/", 1)[0]), "evaluated")
    moves = registry.history("candidate")
    assert moves[-1].after == f"beside-{best.step:08d}"
    assert moves[-1].who == "training of beside"
    assert f"is released as {moves[-1].after}, and is the candidate" in said
    report = (run.folder / "report" / "report.md").read_bytes().decode()
    assert f"| {SCORE} |" in report
    assert moves[-1].after in report

    # A driver that was killed is started again: only what storage lacks is done again, and nothing twice.
    asked = {step: evaluations_of(run).of_step(step) for step in known}
    lost = [file for file in (run.folder / "scores" / "00000008").list() if "test-v1" in file.name]
    lost += [file for file in (run.folder / "scores" / f"{best.step:08d}").list() if file.name == "release.json"]
    assert len(lost) == 2
    for file in lost:
        file.store.delete(file.key)
    train("beside", recipe(1))
    again = {each.step: each for each in CheckpointScores(run.folder).read()}
    assert {step: each.scores for step, each in again.items()} == {step: each.scores for step, each in known.items()}
    assert again[best.step].outcome == best.outcome
    assert {step: evaluations_of(run).of_step(step) for step in asked} == asked
    assert registry.history("candidate") == moves
    assert train("beside", recipe(1))[1] == "", "there is nothing left to do"

    # Another evaluation that fails: the run ends well and names the command; with it allowed, scores come.
    broken = benchmark(tmp_path)
    run, said = train("beside", recipe(1, benchmarks=(broken,)))
    command = f"python jobs/evaluate.py --recipe evaluated --run beside --step 8 --benchmark {broken.name}"
    assert "step 8: signs.yaml-" in said
    assert "1 of 2 questions failed" in said
    assert f"To run it again: {command}" in said
    assert f"    {command}" in (run.folder / "report" / "report.md").read_bytes().decode()
    allowed = broken.model_copy(update={"max_failed_fraction": 0.5})
    run, said = train("beside", recipe(1, benchmarks=(allowed,)))
    newest = CheckpointScores(run.folder).read()[-1]
    assert set(newest.scores) == {SCORE, "signs/percent"}
    assert not newest.failures
