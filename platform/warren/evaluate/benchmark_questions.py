"""The questions of a benchmark, read from the folder that holds its published files and checked."""

from collections.abc import Iterator

from warren.errors import ConfigError, DataError, EmptyDatasetError
from warren.evaluate.benchmarks import Question, benchmark_named
from warren.storage import Location

DEFAULT_CONVENTION = "bunny"


def prompt_convention(benchmark: str, convention: str | None = None) -> str:
    """Return the convention whose prompts a convention uses: its own, or those of the benchmark's first one.

    Raises:
        ConfigError: The benchmark has no such convention, or cannot be asked.
    """
    chosen = benchmark_named(benchmark)
    if not chosen.questions:
        raise ConfigError(f"{benchmark} has no questions that Warren can ask: score answers made elsewhere")
    if convention is not None and convention not in chosen.conventions:
        raise ConfigError(f"{benchmark} has no convention {convention!r}; valid: {', '.join(chosen.conventions)}")
    return convention if convention and convention in chosen.questions else next(iter(chosen.questions))


def questions(
    benchmark: str, folder: Location, split: str | None = None, convention: str | None = None
) -> Iterator[Question]:
    """Read the questions of a split in their published order.

    Images are not read, but it is checked that image files exist.

    Args:
        benchmark: Its name, or the path of a YAML file that defines one.
        folder: Holds the published files, at any depth; `evaluate.py --list` says which.
        split: One of the benchmark's splits; None for its default.
        convention: Whose prompts; None for the benchmark's default.

    Raises:
        ConfigError: There is no such benchmark, split or convention.
        DataError: Files are missing, damaged or of another version, an id occurs twice, or options cannot be read.
    """
    chosen = benchmark_named(benchmark)
    split = split or chosen.splits[0]
    if split not in chosen.splits:
        raise ConfigError(f"{benchmark} has no split {split!r}; valid: {', '.join(chosen.splits)}")
    read = chosen.questions[prompt_convention(benchmark, convention)]
    seen: set[str] = set()
    for question in read(folder, split):
        if question.key in seen:
            raise DataError(
                f"{folder}: the id {question.key!r} occurs twice in {benchmark} {split}; ids must be unique"
            )
        seen.add(question.key)
        yield question.check()
    if not seen:
        raise EmptyDatasetError(f"{folder}: no question of {benchmark} {split}")
