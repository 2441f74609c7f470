"""Which checkpoints are evaluated, kept, released and chosen, decided by what storage holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories import tiny_recipe, tiny_stage
from warren.config import BenchmarkConfig, EvaluateConfig, GateConfig, Recipe, ReleaseConfig
from warren.errors import CheckpointError, ReleaseError
from warren.storage import Location
from warren.train.checkpoint import METRICS_FILE, CheckpointManifest
from warren.train.checkpoint_scores import (
    CheckpointScores,
    EvaluationFailure,
    EvaluationScores,
    ReleaseOutcome,
    evaluation_name,
    weights_of,
)
from warren.train.evaluation_plan import EvaluationPlan, chosen_checkpoint, prune
from warren.train.run import Run
from warren.train.run_report import read_metrics, write_report

SCORE = "test@v1/exact_match"
BENCHMARK = BenchmarkConfig(name="signs.yaml")


def recipe(when: str = "best_evaluated", choose: str = "best", **changes: Any) -> Recipe:
    stage = tiny_stage("train@v1", checkpoint_every_steps=10, evaluate_every_checkpoints=2)
    release = ReleaseConfig(name="tiny", gate=GateConfig(min_score=0.0), when=when, choose=choose)  # type: ignore[arg-type]
    return tiny_recipe(**{"finetune": stage, "release": release, **changes})


def plan_of(recipe: Recipe, num_steps: int | None = 70) -> EvaluationPlan:
    plan = EvaluationPlan.of(recipe, "finetune", num_steps)
    assert plan is not None
    return plan


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Location.parse(str(tmp_path / "store/runs/run")))


def row(step: int) -> dict[str, object]:
    numbers: tuple[str, ...] = (
        "loss",
        "grad_norm",
        "learning_rate",
        "step_s",
        "tokens_per_s",
        "data_wait_s",
        "checkpoint_stall_s",
    )
    numbers += ("rank_skew_s", "supervised_tokens", "samples", "tokens", "tflops_per_s", "tflops_per_s_text")
    return {"step": step, "skipped": "", **dict.fromkeys(numbers, 1.0)}


def commit(run: Run, *steps: int, weights: str = "") -> None:
    for step in steps:
        local = Path(run.folder.uri).parent / f"local-{step}-{weights}"
        for file, text in {"model/config.json": f"{step}{weights}", f"ranks/{METRICS_FILE}": ""}.items():
            (local / file).parent.mkdir(parents=True, exist_ok=True)
            (local / file).write_text(text or "".join(json.dumps(row(number)) + "\n" for number in range(step)))
        files = tuple(run.checkpoints.upload(step, f"a{weights}", local))
        run.checkpoints.commit(CheckpointManifest(step, 1, 2, "f", files, {}))


def weights(run: Run, step: int) -> str:
    return weights_of(run.checkpoints, run.checkpoints.read(step))


def score(run: Run, step: int, value: float, config: EvaluateConfig | BenchmarkConfig | None = None) -> None:
    config = config or recipe().require("evaluate")
    name = SCORE if isinstance(config, EvaluateConfig) else "signs/percent"
    scores = EvaluationScores(evaluation_name(config), {name: value}, "report")
    CheckpointScores(run.folder).write(step, weights(run, step), scores)


def fail(run: Run, step: int) -> None:
    failure = EvaluationFailure(evaluation_name(recipe().require("evaluate")), "no room", "python jobs/evaluate.py")
    CheckpointScores(run.folder).write_failure(step, weights(run, step), failure)


def outcome(run: Run, step: int, version: str | None) -> None:
    CheckpointScores(run.folder).write_outcome(step, weights(run, step), ReleaseOutcome(version, "why"))


def next_release(run: Run, when: str) -> int | None:
    plan = plan_of(recipe(when))
    found = plan.to_release(plan.present(run), CheckpointScores(run.folder).read())
    return found.step if found else None


def test_every_nth_checkpoint_and_the_last_are_due_and_the_newest_is_first(run: Run) -> None:
    commit(run, 10, 20, 30, 40, 60, 70)
    plan = plan_of(recipe())
    assert [each.step for each in plan.unevaluated(plan.present(run))] == [70, 60, 40, 20]
    score(run, 60, 0.5)
    assert [each.step for each in plan.unevaluated(plan.present(run))] == [70, 40, 20]
    unfinished = plan_of(recipe(), num_steps=None)
    assert [each.step for each in unfinished.unevaluated(unfinished.present(run))] == [40, 20]
    assert EvaluationPlan.of(tiny_recipe(), "finetune", 70) is None
    assert plan_of(recipe()).release_when == "best_evaluated"
    pretrain = recipe(pretrain=tiny_stage("captions@v1", evaluate_every_checkpoints=1))
    pretraining = EvaluationPlan.of(pretrain, "pretrain", 70)
    assert pretraining is not None
    assert pretraining.release_when == "manual", "the last stage is released, no other"


def test_retention_keeps_what_waits_what_failed_and_the_best(run: Run) -> None:
    commit(run, 10, 20, 30, 40, 50)
    prune(run, keep=1, plan=plan_of(recipe()))
    assert run.checkpoints.steps() == [20, 40, 50], "20 and 40 are to be evaluated"
    score(run, 20, 0.9)
    score(run, 40, 0.5)
    prune(run, keep=1, plan=plan_of(recipe("manual")))
    assert run.checkpoints.steps() == [20, 50], "the best stays"
    commit(run, 60, 70)
    score(run, 60, 0.9)
    prune(run, keep=1, plan=plan_of(recipe("manual")))
    assert run.checkpoints.steps() == [60, 70], "of equals the newest is the best"
    prune(run, keep=1, plan=None)
    assert run.checkpoints.steps() == [70]


def test_retention_keeps_the_newest_failed_ones_so_that_the_command_works(run: Run) -> None:
    commit(run, 20, 40, 60, 70)
    for step in (20, 40, 60):
        fail(run, step)
    prune(run, keep=2, plan=plan_of(recipe()))
    assert run.checkpoints.steps() == [40, 60, 70]
    score(run, 60, 0.1)
    [known] = [each for each in plan_of(recipe()).present(run) if each.step == 60]
    assert not known.failures, "it has succeeded since"


def test_a_checkpoint_waits_until_it_is_evaluated_by_everything(run: Run) -> None:
    both = recipe(benchmarks=(BENCHMARK,))
    commit(run, 20, 40)
    score(run, 20, 0.4)
    prune(run, keep=1, plan=plan_of(both))
    assert run.checkpoints.steps() == [20, 40]
    assert next_release(run, "every_commit") == 20
    plan = plan_of(both)
    assert plan.to_release(plan.present(run), CheckpointScores(run.folder).read()) is None
    score(run, 20, 60.0, BENCHMARK)
    assert [each.step for each in plan.unevaluated(plan.present(run))] == [40]


def test_what_is_accepted_does_not_change_what_was_measured() -> None:
    config = EvaluateConfig(dataset="test@v1")
    names = [evaluation_name(config), evaluation_name(config.model_copy(update={"max_quarantined_fraction": 0.5}))]
    assert names[0] == names[1]
    assert evaluation_name(config.model_copy(update={"metric": "choice"})) != names[0]
    assert evaluation_name(BenchmarkConfig(name="a/b c.yaml", data="x")).startswith("b-c.yaml-")


def test_scores_belong_to_weights_and_the_first_writer_wins(run: Run) -> None:
    commit(run, 20)
    score(run, 20, 0.4)
    score(run, 20, 0.8)
    [known] = plan_of(recipe()).present(run)
    assert known.scores == {SCORE: 0.4}
    run.checkpoints.set_aside(20)
    commit(run, 20, weights="anew")
    [known] = plan_of(recipe()).present(run)
    assert known.scores == {}


def test_only_a_better_checkpoint_is_released_by_itself_and_none_twice(run: Run) -> None:
    commit(run, 20, 40, 60)
    assert next_release(run, "best_evaluated") is None
    score(run, 40, 0.5)
    assert next_release(run, "manual") is None
    assert next_release(run, "best_evaluated") == 40
    outcome(run, 40, "run-40")
    assert next_release(run, "best_evaluated") is None
    score(run, 60, 0.5)
    assert next_release(run, "best_evaluated") is None, "it is as good as what was released"
    score(run, 20, 0.7)
    assert next_release(run, "best_evaluated") == 20, "evaluated late, and better"
    outcome(run, 20, None)
    assert next_release(run, "best_evaluated") is None, "the gate refused it"
    prune(run, keep=1, plan=plan_of(recipe("manual")))
    assert run.checkpoints.steps() == [20, 60]
    assert next_release(run, "best_evaluated") is None


def test_every_commit_never_goes_back_to_an_older_checkpoint(run: Run) -> None:
    commit(run, 20, 40, 60)
    score(run, 40, 0.5)
    assert next_release(run, "every_commit") == 40
    prune(run, keep=1, plan=plan_of(recipe("every_commit")))
    assert run.checkpoints.steps() == [20, 40, 60]
    outcome(run, 40, "run-40")
    score(run, 20, 0.9)
    assert next_release(run, "every_commit") is None
    score(run, 60, 0.1)
    assert next_release(run, "every_commit") == 60


def test_a_release_takes_the_best_and_says_what_is_missing(run: Run) -> None:
    commit(run, 20, 30)
    last = recipe(choose="last")
    assert chosen_checkpoint(last, run, "evaluate").step == 30
    assert chosen_checkpoint(recipe(), run, "evaluate", step=20).step == 20
    with pytest.raises(CheckpointError, match="no complete checkpoint at step 21"):
        chosen_checkpoint(recipe(), run, "evaluate", step=21)
    with pytest.raises(ReleaseError, match=r"step 20 is not evaluated\. Evaluate it first: evaluate --step 20; or"):
        chosen_checkpoint(recipe(), run, "evaluate")
    fail(run, 20)
    with pytest.raises(ReleaseError, match=r"step 20 is not evaluated \(test-v1-exact_match-\w+: no room\)"):
        chosen_checkpoint(recipe(), run, "evaluate")
    score(run, 20, 0.5)
    assert chosen_checkpoint(recipe(), run, "evaluate").step == 20
    release = recipe().require("release").model_copy(update={"score": "signs/percent"})
    other = recipe().model_copy(update={"release": release})
    with pytest.raises(ReleaseError, match=f"has the score 'signs/percent'; scores: {SCORE}"):
        chosen_checkpoint(other, run, "evaluate")


def test_a_release_of_a_run_without_evaluations_names_the_command(run: Run) -> None:
    commit(run, 30)
    with pytest.raises(ReleaseError, match=r"scores: none. Evaluate one: evaluate --step 30"):
        chosen_checkpoint(recipe(), run, "evaluate")


def test_scores_join_the_metrics_and_the_report(run: Run) -> None:
    commit(run, 20, 40)
    score(run, 20, 0.5)
    fail(run, 40)
    outcome(run, 20, "run-20")
    rows = read_metrics(run)
    assert {number: each["scores"] for number, each in enumerate(rows) if "scores" in each} == {19: {SCORE: 0.5}}
    text = write_report(run, {}, []).read_bytes().decode()
    assert f"| step | {SCORE} | release |" in text
    assert "| 20 | 0.5 | run-20 |" in text
    assert "no room. To run it again:\n\n    python jobs/evaluate.py" in text
    assert (run.folder / "report" / "scores.png").read_bytes().startswith(b"\x89PNG")
