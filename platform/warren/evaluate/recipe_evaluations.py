"""What a recipe evaluates checkpoints by: its dataset and its benchmarks."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from warren.config import BenchmarkConfig, EvaluateConfig, Recipe
from warren.data.manifest import read_manifest
from warren.errors import ConfigError, NotFoundError
from warren.storage import Location
from warren.train.checkpoint_scores import evaluation_name

if TYPE_CHECKING:
    from warren.evaluate.benchmarks import Benchmark


def options_of(config: EvaluateConfig | BenchmarkConfig) -> str:
    """Return the options of `jobs/evaluate.py` that evaluate by this, beside recipe, run and step."""
    if isinstance(config, EvaluateConfig):
        return ""
    settings = {name: value for name, value in config.model_dump(exclude_defaults=True).items() if name != "name"}
    words = ["--benchmark", config.name]
    words += [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return f" {shlex.join(words)}"


def check_evaluations(recipe: Recipe, root: Location | None) -> None:
    """Look up what the recipe's checkpoints are evaluated by, before anything starts.

    Args:
        root: Where datasets are; None where the environment does not say, which leaves the dataset unchecked.

    Raises:
        ConfigError: A dataset, benchmark, split, convention or score does not exist.
    """
    stages = [stage for stage in (recipe.pretrain, recipe.finetune) if stage]
    if not any(stage.evaluate_every_checkpoints for stage in stages):
        return
    if recipe.evaluate is not None and root is not None:
        try:
            read_manifest(root, recipe.evaluate.dataset)
        except NotFoundError as error:
            raise ConfigError(f"evaluate.dataset: {error}") from None
    benchmarks = [_checked(config) for config in recipe.benchmarks]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ConfigError(f"benchmarks are named {', '.join(names)}: one name stands twice, so their scores would too")
    score = recipe.best_by
    if score not in (None, recipe.evaluation_score) and str(score).partition("/")[0] not in names:
        known = [*([recipe.evaluation_score] if recipe.evaluation_score else []), *(f"{name}/…" for name in names)]
        raise ConfigError(f"release.score is {score!r}, which is not evaluated; scores are {', '.join(known)}")


def _checked(config: BenchmarkConfig) -> "Benchmark":
    from warren.evaluate.benchmark_run import QuestionSource  # late: most recipes name no benchmark
    from warren.evaluate.benchmarks import JudgedConvention

    source = QuestionSource.of(config.name, config.data, config.split, config.convention)
    benchmark = source.benchmark
    if source.split not in benchmark.splits:
        raise ConfigError(f"{config.name} has no split {config.split!r}; valid: {', '.join(benchmark.splits)}")
    convention = config.convention or next(iter(benchmark.conventions))
    if isinstance(benchmark.conventions[convention], JudgedConvention):
        raise ConfigError(
            f"{config.name} needs a judge model under the convention {convention}, which checkpoints are not given: "
            f"choose another convention, or remove it from benchmarks (conventions: {', '.join(benchmark.conventions)})"
        )
    next(iter(source), None)  # its files exist, and can be read
    return benchmark


def missing(recipe: Recipe, have: Sequence[str]) -> list[EvaluateConfig | BenchmarkConfig]:
    """Return what a checkpoint is not evaluated by yet.

    Args:
        have: Names of the evaluations that it has.
    """
    return [config for config in recipe.evaluations if evaluation_name(config) not in have]
