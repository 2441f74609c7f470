"""What is done with checkpoints beside training, one decision at a time. On a cluster: tests/integration."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factories import colour_sample, tiny_recipe, tiny_stage, write_dataset
from warren.cluster.batch import checkpoint_evaluation
from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve import golden_task
from warren.cluster.train import checkpoint_evaluator
from warren.cluster.train.checkpoint_evaluator import CheckpointEvaluator
from warren.cluster.train.checkpoint_tasks import CheckpointWork
from warren.config import GateConfig, Recipe, ReleaseConfig, Resources
from warren.data.manifest import read_manifest
from warren.errors import DataError, StorageError
from warren.evaluate.accuracy import score
from warren.evaluate.evaluation_report import Evaluation
from warren.release import Registry
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.checkpoint_scores import CheckpointScores
from warren.train.evaluation_plan import EvaluationPlan
from warren.train.run import Run


@dataclass
class InlineRay:
    """Runs a task when its result is asked for; until `is_ready`, it runs."""

    free_cpus: float = 4.0
    without_workers_s: float = 0.0
    is_ready: bool = True
    cancelled: list[Any] = field(default_factory=list)

    def remote(self, function: Callable[..., None]) -> Any:
        start = SimpleNamespace(remote=lambda *arguments: lambda: function(*arguments))
        return SimpleNamespace(options=lambda **_: start)

    def wait(self, results: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return (results, []) if self.is_ready else ([], results)

    def get(self, result: Callable[[], Any]) -> Any:
        return result()

    def cancel(self, result: Any, force: bool) -> None:
        self.cancelled.append(result)

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    @property
    def monitor(self) -> Any:
        return SimpleNamespace(without_workers_s=SimpleNamespace(remote=lambda: lambda: self.without_workers_s))


@dataclass
class Beside:
    """A run, and what its evaluator said; `values` are the scores of its checkpoints, or why there are none."""

    run: Run
    ray: InlineRay
    values: dict[int, float | list[Exception]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    shown: list[tuple[int, dict[str, float], str]] = field(default_factory=list)

    @property
    def root(self) -> Location:
        return Location(self.run.folder.uri.rsplit("/runs/", 1)[0])

    def commit(self, local: Path, *steps: int) -> None:
        for step in steps:
            folder = local / str(step)
            (folder / MODEL_FOLDER).mkdir(parents=True)
            (folder / MODEL_FOLDER / "model.safetensors").write_text(str(step))
            files = tuple(self.run.checkpoints.upload(step, "a1", folder))
            self.run.checkpoints.commit(CheckpointManifest(step, 1, 0, "f", files, {}))

    def evaluator(self, recipe: Recipe, monitor: Any = None) -> CheckpointEvaluator:
        plan = EvaluationPlan.of(recipe, "finetune", 40)
        assert plan is not None
        work = CheckpointWork(recipe, Resources(num_workers=1), self.root, self.run, "--recipe tiny")
        return CheckpointEvaluator(work, plan, 1, monitor, self.said.append, lambda *shown: self.shown.append(shown))

    def advance(self, evaluator: CheckpointEvaluator, times: int = 99) -> None:
        for _ in range(times):
            if not evaluator._advance():
                return

    def evaluate(self, config: Any, resources: Any, root: Location, run: Run, step: int) -> Evaluation:
        """Evaluate as the scores say."""
        self.asked.append(step)
        value = self.values.get(step, 0.0)
        if isinstance(value, list) and value:
            raise value.pop()
        right = [number < 100 * value for number in range(100)] if isinstance(value, float) else [True]
        checkpoint = run.checkpoints.read(step)
        identity = identify(config, checkpoint, read_manifest(root, config.dataset))
        evaluation = Evaluation(run.name, step, identity, score(right, ["red"] * len(right)), {})
        return evaluations_of(run).write(evaluation, [{"key": "a", "correct": True, "answer": "red"}])


def recipe(when: Any = "best_evaluated", min_score: float = 0.0) -> Recipe:
    stage = tiny_stage("train@v1", checkpoint_every_steps=10, evaluate_every_checkpoints=1)
    release = ReleaseConfig(name="tiny", gate=GateConfig(min_score=min_score), when=when)
    return tiny_recipe(finetune=stage, release=release)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    root = Location.parse(str(tmp_path / "store"))
    write_dataset(root, "test", [colour_sample(0)])
    beside = Beside(Run.of(root, "run"), InlineRay())
    monkeypatch.setattr(checkpoint_evaluator, "ray", beside.ray)
    monkeypatch.setattr(checkpoint_evaluator, "has_room", lambda *_: False)
    monkeypatch.setattr(checkpoint_evaluator, "waiting", lambda text: f"waiting for {text}")
    monkeypatch.setattr(
        checkpoint_evaluator, "fitting", lambda most, cpus, gpus, spare: int(beside.ray.free_cpus >= cpus + spare)
    )
    monkeypatch.setattr(checkpoint_evaluation, "evaluate", beside.evaluate)
    monkeypatch.setattr(golden_task, "write_golden", lambda *_: ())
    return beside


def moves(beside: Beside) -> list[str]:
    return [move.after for move in Registry(beside.root, "tiny").history("candidate")]


def test_the_newest_is_evaluated_first_and_each_better_one_becomes_the_candidate(
    beside: Beside, tmp_path: Path
) -> None:
    beside.values = {10: 0.9, 20: 0.5, 30: 0.5, 40: 0.7}
    beside.commit(tmp_path / "local", 10, 20, 30, 40)
    beside.advance(beside.evaluator(recipe()))
    assert beside.asked == [40, 30, 20, 10]
    assert moves(beside) == ["run-00000040", "run-00000010"]
    assert beside.run.checkpoints.steps() == [10, 40], "the newest and the best"
    assert beside.shown[1][2] == "test@v1/exact_match 0.5 at step 30 (best 0.7 at step 40)"
    assert "run: evaluated: test@v1/exact_match 0.9 at step 10 (the best)" in beside.said
    assert "run: step 10 is released as run-00000010, and is the candidate" in beside.said
    said = list(beside.said)
    beside.advance(beside.evaluator(recipe()))
    assert beside.said == said, "a driver that takes over does nothing twice"
    [outcome] = [file for file in (beside.run.folder / "scores/00000010").list() if file.name == "release.json"]
    outcome.store.delete(outcome.key)  # it died between the move of the alias and this
    beside.advance(beside.evaluator(recipe()))
    assert moves(beside) == ["run-00000040", "run-00000010"]
    assert beside.asked == [40, 30, 20, 10]


def test_every_commit_is_released_and_what_the_gate_refuses_is_not_tried_again(beside: Beside, tmp_path: Path) -> None:
    beside.values = {10: 0.5, 20: 0.1, 30: 0.3}
    evaluator = beside.evaluator(recipe("every_commit", min_score=0.2))
    for step in (10, 20, 30):
        beside.commit(tmp_path / "local", step)
        beside.advance(evaluator)
    assert moves(beside) == ["run-00000010", "run-00000030"]
    [refused] = [line for line in beside.said if "is not released" in line]
    assert "step 20 is not released: exact_match is 0.1000 on 100 samples, the gate asks for 0.2000" in refused
    assert beside.run.checkpoints.steps() == [10, 30], "10 is the best"


def test_an_evaluator_that_dies_is_started_again_and_given_up_at_the_third_time(beside: Beside, tmp_path: Path) -> None:
    beside.values = {10: [RuntimeError("killed"), StorageError("away")], 20: [RuntimeError("killed\nby\n9")] * 3}
    beside.commit(tmp_path / "local", 10, 20)
    beside.advance(beside.evaluator(recipe()))
    assert beside.asked == [20, 20, 20, 10, 10, 10]
    again = [line for line in beside.said if "is started again" in line]
    assert len(again) == 4
    known = {each.step: each for each in CheckpointScores(beside.run.folder).read()}
    assert known[10].scores
    [failure] = known[20].failures.values()
    assert failure.reason == "killed by 9"
    assert failure.command == "python jobs/evaluate.py --recipe tiny --run run --step 20"
    assert any(f"killed by 9. To run it again: {failure.command}" in line for line in beside.said)
    assert moves(beside) == ["run-00000010"]


def test_an_evaluation_that_cannot_work_fails_at_once_and_the_next_start_tries_it_again(
    beside: Beside, tmp_path: Path
) -> None:
    beside.values = {10: [DataError("no such column")]}
    beside.commit(tmp_path / "local", 10)
    beside.advance(beside.evaluator(recipe()))
    assert beside.asked == [10]
    assert any("no such column. To run it again: python jobs/evaluate.py" in line for line in beside.said)
    beside.advance(beside.evaluator(recipe()))
    assert beside.asked == [10, 10]
    [known] = CheckpointScores(beside.run.folder).read()
    assert known.scores == {"test@v1/exact_match": 1.0}
    assert not known.failures


def test_training_comes_first(beside: Beside, tmp_path: Path) -> None:
    """Without room it waits and says so; it makes room for workers that wait, and goes on when they are back."""
    beside.commit(tmp_path / "local", 10, 20)
    evaluator = beside.evaluator(recipe("manual"), beside.ray.monitor)
    beside.ray.without_workers_s = 3.0
    beside.advance(evaluator, 2)
    assert (beside.said, beside.asked) == ([], []), "the workers are about to start"
    beside.ray.without_workers_s, beside.ray.free_cpus = 0.0, 1.5
    beside.advance(evaluator, 3)
    assert beside.said == [
        "run: 2 checkpoints are to be evaluated, the newest at step 20: waiting for 1 evaluators of 1 CPUs"
    ]
    beside.ray.free_cpus, beside.ray.is_ready = 2.0, False
    beside.advance(evaluator, 2)
    beside.ray.without_workers_s = 20.0
    beside.advance(evaluator, 2)
    assert len(beside.ray.cancelled) == 1
    assert beside.said[-1] == "run: step 20: its evaluation makes room for the workers, and is done later"
    assert beside.asked == []
    beside.ray.without_workers_s, beside.ray.is_ready = 0.0, True
    beside.advance(evaluator)
    assert beside.asked == [20, 10]


def test_a_finished_run_waits_for_its_evaluations(beside: Beside, tmp_path: Path) -> None:
    beside.commit(tmp_path / "local", 40)
    with beside.evaluator(recipe("manual")) as evaluator:
        evaluator.finish()
    assert beside.asked == [40]
    assert moves(beside) == []
