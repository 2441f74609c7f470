"""The benchmarks, one file each. A module that defines `BENCHMARK` is found by being here."""

import difflib
import importlib
import pkgutil
from functools import cache

from warren.errors import ConfigError
from warren.evaluate.benchmarks.benchmark import (
    Answer,
    Answers,
    Benchmark,
    JudgedConvention,
    JudgeRequest,
    QuestionReader,
    Scorer,
    Scores,
)
from warren.evaluate.benchmarks.question import Question

__all__ = [
    "Answer",
    "Answers",
    "Benchmark",
    "JudgeRequest",
    "JudgedConvention",
    "Question",
    "QuestionReader",
    "Scorer",
    "Scores",
    "all_benchmarks",
    "benchmark_named",
]


@cache
def all_benchmarks() -> dict[str, Benchmark]:
    """Return every benchmark by name, in alphabetical order."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    benchmarks = (module.BENCHMARK for module in modules if hasattr(module, "BENCHMARK"))
    return {benchmark.name: benchmark for benchmark in sorted(benchmarks, key=lambda benchmark: benchmark.name)}


def benchmark_named(name: str) -> Benchmark:
    """Return a benchmark by its name or by the path of a YAML file that defines one.

    Raises:
        ConfigError: There is none of that name.
    """
    if name.endswith((".yaml", ".yml")):
        from warren.evaluate.yaml_benchmark import yaml_benchmark  # it is made of this package's parts

        return yaml_benchmark(name)
    benchmarks = all_benchmarks()
    if name not in benchmarks:
        nearest = difflib.get_close_matches(name, benchmarks, 1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"no benchmark named {name!r}{hint}; valid: {', '.join(benchmarks)}")
    return benchmarks[name]
