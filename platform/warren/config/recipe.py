"""Recipes: the model, its data, its training and its gate. Storage and credentials are never in a recipe."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, overload

from pydantic import Field, field_validator, model_validator

from warren.config.benchmark import BenchmarkConfig
from warren.config.catalog import check_template
from warren.config.curate import CurateConfig
from warren.config.ingest import IngestConfig
from warren.config.layered_config import Config, Replaces, alternatives
from warren.config.mixture import MixtureComponent, check_mixture
from warren.config.model import ModelConfig, ModelPart
from warren.config.names import DatasetReference, Name
from warren.config.resume import OnResume
from warren.errors import ConfigError

PositiveInt = Field(gt=0)
Fraction = Field(ge=0.0, le=1.0)


class Duration(Config):
    """How long a stage trains: a number of passes over its dataset, or of optimizer steps."""

    replaces: ClassVar[Replaces] = alternatives("epochs", "steps")

    epochs: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_unit(self) -> "Duration":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of 'epochs' and 'steps'")
        return self


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of the language model but its head.

    The language model's own weights are frozen; other parts that the stage names train as a whole.
    """

    rank: int = PositiveInt
    alpha: int = PositiveInt  # the adapters' sum is scaled by alpha / rank
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)


class GuardConfig(Config):
    """Which steps are skipped because they would do harm; always those whose loss or gradient is not finite.

    It is part of the recipe, because skipped steps change the loss curve.
    """

    spike_factor: float | None = Field(default=None, gt=1.0)  # skip losses over this many times the median
    spike_window_steps: int = Field(default=100, ge=2)  # losses in the median; until there are so many, no spike counts
    max_skips_in_a_row: Annotated[int, OnResume.FREE] = Field(default=3, ge=0)  # one more skipped step ends the run


class ValidationConfig(Config):
    """A held-out dataset whose loss is computed during training."""

    dataset: DatasetReference
    every_steps: int = Field(default=500, gt=0)  # and after the last step
    num_samples: int = Field(default=512, gt=0)  # the first of the dataset's shuffled order; held in memory


class StageConfig(Config):
    """One training stage, on one dataset or several. Defaults are Bunny's (arXiv 2402.11530, its training scripts).

    A resumed run may change the fields with an `OnResume` mark, and no others.
    """

    replaces: ClassVar[Replaces] = alternatives("dataset", "datasets")

    dataset: DatasetReference | None = None  # the short form of `datasets: [{name: …}]`
    datasets: tuple[MixtureComponent, ...] = ()
    template: str | None = None  # None: the model's own; "plain" for captions
    trainable: tuple[ModelPart, ...] = ("projector",)
    lora: LoraConfig | None = None  # None: all weights of the parts in `trainable` train
    duration: Annotated[Duration, OnResume.SCHEDULE] = Duration(epochs=1)
    global_batch_size: int = PositiveInt
    max_length_tokens: int = Field(default=2048, gt=0)
    image_padding: bool | None = None  # pad to a square with the mean colour first; None: as the model was trained
    learning_rate: float = Field(gt=0)
    projector_learning_rate: float | None = Field(default=None, gt=0)
    vision_tower_learning_rate: float | None = Field(default=None, gt=0)
    warmup_fraction: float = Field(default=0.03, ge=0.0, le=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = Field(default=42, ge=0)
    shuffle_window_samples: int = Field(default=4096, gt=0)
    checkpoint_every_steps: Annotated[int, OnResume.FREE] = Field(default=500, gt=0)
    keep_checkpoints: Annotated[int, OnResume.FREE] = Field(default=2, ge=1)
    evaluate_every_checkpoints: Annotated[int | None, OnResume.FREE] = Field(default=None, ge=1)  # and the last
    max_quarantined_fraction: Annotated[float, OnResume.FREE] = Field(default=0.001, ge=0.0, le=1.0)
    guard: GuardConfig = GuardConfig()
    validation: Annotated[ValidationConfig | None, OnResume.FREE] = None

    @field_validator("trainable")
    @classmethod
    def _something_trains(cls, parts: tuple[ModelPart, ...]) -> tuple[ModelPart, ...]:
        if not parts or len(set(parts)) != len(parts):
            raise ValueError("name each part to train once: vision_tower, projector, language_model")
        return parts

    @field_validator("template")
    @classmethod
    def _known_template(cls, name: str | None) -> str | None:
        return None if name is None else check_template(name)

    @model_validator(mode="after")
    def _sound_mixture(self) -> "StageConfig":
        check_mixture(self.dataset, self.datasets)
        return self

    @property
    def mixture(self) -> tuple[MixtureComponent, ...]:
        """What the stage trains on."""
        return self.datasets or (MixtureComponent(name=self.dataset or ""),)

    @model_validator(mode="after")
    def _adapters_have_a_place(self) -> "StageConfig":
        if self.lora is not None and "language_model" not in self.trainable:
            raise ValueError(
                f"lora puts adapters into the language model, but only {', '.join(self.trainable)} trains: "
                "add language_model to trainable, or remove lora"
            )
        return self


class EvaluateConfig(Config):
    """What a checkpoint is measured on.

    Attributes:
        metric: `exact_match` compares the model's text with the first answer. `choice` takes `num_choices` answers, the
            true one and those of the next samples in the dataset, and chooses the one whose probability rises most
            when the image replaces a blank one.
        shuffled_images: The control: every question is asked about another sample's image.
        limit_samples: Number of samples to ask at most: the first ones, or those that `sample_seed` draws.
        sample_seed: Draws `limit_samples` samples from the whole dataset; the same seed draws the same.
        max_quarantined_fraction: Largest share of samples that may be left out because they are unusable.
    """

    dataset: DatasetReference
    metric: Literal["exact_match", "choice"] = "exact_match"
    num_choices: int = Field(default=10, ge=2)
    shuffled_images: bool = False
    batch_size: int = Field(default=64, gt=0)
    max_new_tokens: int = Field(default=16, gt=0)
    limit_samples: int | None = Field(default=None, gt=0)
    sample_seed: int | None = Field(default=None, ge=0)
    max_quarantined_fraction: float = Field(default=0.01, ge=0.0, le=1.0)


class SanityPrompt(Config):
    """A question without an image, whose answer must be neither empty nor repeat itself.

    Attributes:
        text: The question.
        matches: Regular expression that must be found in the answer, whatever the case; null asks for nothing.
    """

    text: str = Field(min_length=1)
    matches: str | None = None

    @field_validator("matches")
    @classmethod
    def _is_expression(cls, matches: str | None) -> str | None:
        try:
            re.compile(matches or "")
        except re.error as error:
            raise ValueError(f"{matches!r} is not a regular expression: {error}") from None
        return matches


class GateConfig(Config):
    """What a checkpoint must reach before it is released.

    Attributes:
        min_score: The score of the evaluation that the recipe describes.
        min_score_low: The lower end of the score's 95 % interval; null asks for nothing.
        no_regression: Refuse what a paired test (McNemar, p < 0.05) on the same questions shows to be worse than the
            stable release.
        max_regression: Refuse what may be worse than the stable release by more than that: the 95 % interval of the
            paired difference must lie above minus this number; null asks for nothing.
        max_empty_fraction: Share of the evaluation's answers that may be empty; null sets no limit.
        max_same_answer_fraction: Share of them that may be one and the same text; null sets no limit.
        max_model_bytes: Size of the model's files; null sets no limit.
        max_first_token_s: Median time from a question about an image to the first token, of one engine without other
            requests and with a replica's resources; null sets no limit.
        max_token_s: Median time of every further token, in the same engine; null sets no limit.
        max_memory_bytes: Memory of that engine's process, or on a GPU what it takes of the GPU's; null sets no limit.
        sanity_prompts: Questions that the engine is asked; a bad answer to any of them refuses the checkpoint.
        contamination_certificate: Every training dataset must have a certificate of being free of the images of the
            evaluation's dataset, as a selection with a `decontaminate` step has.
    """

    min_score: float = Fraction
    min_score_low: float | None = Field(default=None, ge=0.0, le=1.0)
    no_regression: bool = False
    max_regression: float | None = Field(default=None, ge=0.0, le=1.0)
    max_empty_fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    max_same_answer_fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    max_model_bytes: int | None = Field(default=None, gt=0)
    max_first_token_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_token_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    sanity_prompts: tuple[SanityPrompt, ...] = ()
    contamination_certificate: bool = False

    @property
    def asks_engine(self) -> bool:
        """Whether any condition needs an engine of the model."""
        limits = self.max_first_token_s, self.max_token_s, self.max_memory_bytes
        return bool(self.sanity_prompts) or any(limit is not None for limit in limits)


class ReleaseConfig(Config):
    """How the result is published.

    Attributes:
        name: What the releases are versions of.
        gate: What a checkpoint must reach.
        choose: The checkpoint that `jobs/release.py` takes: the newest, or the best of those that were evaluated.
        score: The score that says which is the best, as `DATASET/METRIC` or `BENCHMARK/NUMBER`; null for the score of
            the section `evaluate`.
        when: `manual`: `jobs/release.py` releases. `every_commit`: each checkpoint becomes a release and the alias
            `candidate` once it is evaluated. `best_evaluated`: the same, for a checkpoint that is better than all that
            were released before.
    """

    name: Name
    gate: GateConfig
    choose: Literal["last", "best"] = "last"
    score: str | None = None
    when: Literal["manual", "best_evaluated", "every_commit"] = "manual"


class AverageConfig(Config):
    """A model that is the weighted mean of two others' weights (model soups, arXiv 2203.05482)."""

    first: Name  # names of recipes; the second's configuration is kept
    second: Name
    first_weight: float = Fraction


Section = Literal["model", "ingest", "curate", "pretrain", "finetune", "average", "evaluate", "release"]


class Recipe(Config):
    """One model, from raw pairs to a release. A recipe with `average` describes the average of two other models.

    Each job needs some of the sections (`require`); a recipe for `jobs/ingest.py` may hold `ingest` alone.
    """

    name: Annotated[Name, OnResume.FREE]
    description: Annotated[str, OnResume.FREE] = ""
    model: ModelConfig | None = None
    ingest: IngestConfig | None = None
    curate: CurateConfig | None = None
    pretrain: StageConfig | None = None
    finetune: StageConfig | None = None
    average: AverageConfig | None = None
    evaluate: EvaluateConfig | None = None
    benchmarks: tuple[BenchmarkConfig, ...] = ()  # beside `evaluate`, for `evaluate_every_checkpoints`
    release: ReleaseConfig | None = None

    @model_validator(mode="after")
    def _chosen_checkpoints_are_evaluated(self) -> "Recipe":
        problem = next(self._problems_of_choosing(), None)
        if problem:
            raise ValueError(problem)
        return self

    def _problems_of_choosing(self) -> Iterator[str]:
        """Yield what is wrong between the sections that evaluate and choose checkpoints."""
        for stage in ("pretrain", "finetune"):
            config: StageConfig | None = getattr(self, stage)
            if config and config.evaluate_every_checkpoints and not (self.evaluate or self.benchmarks):
                yield f"{stage}.evaluate_every_checkpoints needs something to evaluate by: add evaluate or benchmarks"
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in names:
            if names.count(name) > 1:
                yield f"benchmarks names {name!r} twice: their scores would have the same name, so keep one"
        release, released = self.release, self.released_stage
        if release is None or (release.when == "manual" and release.choose == "last"):
            return
        key = f"release.when is {release.when}" if release.when != "manual" else "release.choose is best"
        if released is None or self.require(released).evaluate_every_checkpoints is None:
            yield f"{key}, but no checkpoint is evaluated: set {released or 'finetune'}.evaluate_every_checkpoints"
        if self.evaluate is None:
            yield f"{key}, but there is no section evaluate, which release.gate judges by: add one"
        elif self.evaluate.shuffled_images:
            yield f"{key}, but evaluate.shuffled_images is a control and no score: remove it"
        if release.score not in (None, self.evaluation_score) and not self.benchmarks:
            yield f"release.score is {release.score!r}, but the only score is {self.evaluation_score!r}: name that"

    @property
    def released_stage(self) -> Literal["pretrain", "finetune"] | None:
        """The stage whose checkpoints become releases: the last that the recipe has."""
        return "finetune" if self.finetune else "pretrain" if self.pretrain else None

    @property
    def evaluations(self) -> tuple[EvaluateConfig | BenchmarkConfig, ...]:
        """What checkpoints are evaluated by: the dataset of `evaluate`, and the benchmarks."""
        return (*([self.evaluate] if self.evaluate else []), *self.benchmarks)

    @property
    def evaluation_score(self) -> str | None:
        """The name of the score of the section `evaluate`."""
        return f"{self.evaluate.dataset}/{self.evaluate.metric}" if self.evaluate else None

    @property
    def best_by(self) -> str | None:
        """The name of the score that says which checkpoint is the best."""
        return (self.release.score if self.release else None) or self.evaluation_score

    @overload
    def require(self, section: Literal["model"]) -> ModelConfig: ...
    @overload
    def require(self, section: Literal["pretrain", "finetune"]) -> StageConfig: ...
    @overload
    def require(self, section: Literal["ingest"]) -> IngestConfig: ...
    @overload
    def require(self, section: Literal["curate"]) -> CurateConfig: ...
    @overload
    def require(self, section: Literal["average"]) -> AverageConfig: ...
    @overload
    def require(self, section: Literal["evaluate"]) -> EvaluateConfig: ...
    @overload
    def require(self, section: Literal["release"]) -> ReleaseConfig: ...
    def require(self, section: Section) -> Any:
        """Return a section that a job cannot do without.

        Raises:
            ConfigError: The recipe does not have it.
        """
        config = getattr(self, section)
        if config is None:
            raise ConfigError(f"recipe {self.name!r} has no section {section!r}: add one, as jobs/recipes/ show it")
        return config

    def check_trainable(self) -> None:
        """Refuse to train a recipe that is the average of two others.

        Raises:
            ConfigError: It has an `average`.
        """
        if self.average is not None:
            raise ConfigError(
                f"recipe {self.name!r} is the average of {self.average.first!r} and {self.average.second!r}: "
                f"train these two, then run jobs/average.py --recipe {self.name}"
            )
