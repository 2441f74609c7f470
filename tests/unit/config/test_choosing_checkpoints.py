"""What a recipe may say about checkpoints that are evaluated while training goes on, and what is refused."""

import json
from pathlib import Path

import pytest

from factories import colour_sample, tiny_recipe, tiny_stage, write_dataset
from warren.cli.job import config_folders, job_parser, shared_options
from warren.config import BenchmarkConfig, EvaluateConfig, GateConfig, Recipe, ReleaseConfig, load_config
from warren.errors import ConfigError, NotFoundError
from warren.evaluate.recipe_evaluations import check_evaluations, options_of
from warren.storage import Location

EVERY = "finetune.evaluate_every_checkpoints"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{EVERY}=0"], rf"{EVERY}: Input should be greater than or equal to 1 \(given: 0\)"),
        ([f"{EVERY}=-1"], rf"{EVERY}: Input should be greater than or equal to 1"),
        ([f"{EVERY}=1.5"], rf"{EVERY}: "),
        (["release.choose=best"], f"demo: release.choose is best, but no checkpoint is evaluated: set {EVERY}"),
        (["release.when=every_commit"], f"release.when is every_commit, but no checkpoint is evaluated: set {EVERY}"),
        (["release.choose=newest"], r"release.choose: Input should be 'last' or 'best' \(given: 'newest'\)"),
        (["release.when=always"], "release.when: Input should be 'manual', 'best_evaluated' or 'every_commit'"),
        ([f"{EVERY}=1", "evaluate=null"], f"{EVERY} needs something to evaluate by: add evaluate or benchmarks"),
        ([f"{EVERY}=1", "evaluate=null", "release.choose=best", "benchmarks=[{name: mme}]"], "no section evaluate"),
        (
            [f"{EVERY}=1", "release.choose=best", "release.score=test/accuracy"],
            "release.score is 'test/accuracy', but the only score is 'easy-vqa-test@v1/exact_match': name that",
        ),
        ([f"{EVERY}=1", "release.choose=best", "evaluate.shuffled_images=true"], "is a control and no score"),
        (["benchmarks=[{name: mme}, {name: mme}]"], "benchmarks names 'mme' twice"),
        (["benchmarks=[{name: mme, folder: x}]"], "unknown key 'benchmarks.0.folder'"),
    ],
)
def test_what_cannot_be_evaluated_or_chosen_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(Recipe, "demo", config_folders("recipes"), overrides)
    assert "\n" not in str(refused.value)
    assert "inherited from" not in str(refused.value) or "evaluate_every" in message


def test_the_stage_that_is_released_is_the_last_one() -> None:
    recipe = load_config(Recipe, "demo", config_folders("recipes"), [f"{EVERY}=2", "release.when=best_evaluated"])
    assert (recipe.released_stage, recipe.best_by) == ("finetune", "easy-vqa-test@v1/exact_match")
    overrides = ["pretrain.evaluate_every_checkpoints=2", "release.when=best_evaluated"]
    with pytest.raises(ConfigError, match=r"set finetune\.evaluate_every_checkpoints"):
        load_config(Recipe, "demo", config_folders("recipes"), overrides)


def evaluated(*benchmarks: BenchmarkConfig, score: str | None = None) -> Recipe:
    release = ReleaseConfig(name="tiny", gate=GateConfig(min_score=0.0), choose="best", score=score)
    stage = tiny_stage("train@v1", evaluate_every_checkpoints=1)
    return tiny_recipe(finetune=stage, benchmarks=benchmarks, release=release)


def test_names_are_looked_up_before_anything_starts(tmp_path: Path) -> None:
    root = Location.parse(str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"evaluate\.dataset: no dataset 'test@v1'"):
        check_evaluations(evaluated(), root)
    check_evaluations(evaluated(), None)
    check_evaluations(tiny_recipe(), root)
    write_dataset(root, "test", [colour_sample(0)])
    check_evaluations(evaluated(), root)

    (tmp_path / "signs.yaml").write_text("questions: questions.jsonl\nimage: null\n")
    signs = BenchmarkConfig(name=str(tmp_path / "signs.yaml"))
    with pytest.raises(NotFoundError, match=r"questions\.jsonl"):
        check_evaluations(evaluated(signs), root)
    row = {"id": "a", "question": "well?", "answer": "red"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    check_evaluations(evaluated(signs, score="signs/percent"), root)
    wrong = {
        "no benchmark named 'mne'; did you mean 'mme'": BenchmarkConfig(name="mne", data=str(tmp_path)),
        "mme needs --data, the folder": BenchmarkConfig(name="mme"),
        "no split 'all-of-it'; valid: all": signs.model_copy(update={"split": "all-of-it"}),
        "no convention 'ours'; valid: warren": signs.model_copy(update={"convention": "ours"}),
        "needs a judge model": BenchmarkConfig(name="mmvet", data=str(tmp_path), convention="lmms-eval"),
    }
    for message, benchmark in wrong.items():
        with pytest.raises(ConfigError, match=message):
            check_evaluations(evaluated(benchmark), root)
    with pytest.raises(ConfigError, match=r"release\.score is 'sign/percent'.*scores are test@v1/exact_match, signs/…"):
        check_evaluations(evaluated(signs, score="sign/percent"), root)


def test_the_command_that_evaluates_again_repeats_the_options() -> None:
    line = ["--recipe", "demo", "--set", "evaluate.batch_size=8", "--set", "endpoint.application=x"]
    assert shared_options(job_parser("").parse_args(line)) == (
        "--recipe demo --resources laptop --set evaluate.batch_size=8"
    )
    assert options_of(EvaluateConfig(dataset="test@v1")) == ""
    config = BenchmarkConfig(name="mme", data="a folder", max_failed_fraction=0.1)
    assert options_of(config) == " --benchmark mme --data 'a folder' --max-failed-fraction 0.1"
