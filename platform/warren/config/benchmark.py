"""A benchmark that a run's checkpoints are evaluated by, as a recipe names it."""

from pydantic import Field

from warren.config.layered_config import Config


class BenchmarkConfig(Config):
    """A benchmark that the checkpoints of a stage are asked; the keys are the options of `jobs/evaluate.py`.

    Attributes:
        name: A benchmark's name (`jobs/evaluate.py --list`), or the path of a YAML file that defines one.
        data: The folder of its questions and images; null for a YAML file, which says it itself.
        split: One of its splits; null for its first.
        convention: Whose prompts and rules; null for its first.
        reference: Where the truths are; null for where the benchmark says, or `data`.
        max_failed_fraction: Largest share of questions that may fail; they are left out.
    """

    name: str = Field(min_length=1)
    data: str | None = None
    split: str | None = None
    convention: str | None = None
    reference: str | None = None
    max_failed_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
