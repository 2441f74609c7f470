"""Configuration of data selection: the datasets, the embeddings, and the steps in order."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from warren.config.layered_config import Config
from warren.config.names import DatasetReference, Name

Band = tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]]
ScoreName = Literal["clip_score", "centroid_cosine"]


class EmbeddingsConfig(Config):
    """Where a pair's image and text embeddings come from: files, or a model that computes them.

    Attributes:
        path: Folder, file or pattern of Parquet files with a key and embeddings, or a folder as clip-retrieval writes
            it: `img_emb/*.npy`, `text_emb/*.npy`, `metadata/*.parquet`.
        model: Hub id or folder of a CLIP or SigLIP model in transformers' layout.
        key_column: Column of the samples' keys, in the Parquet files or in clip-retrieval's metadata.
        image_column: For Parquet: column of the image embeddings, a list of numbers in each row.
        text_column: Column of the text embeddings. None: there are none, and therefore no `clip_score`.
        cluster_column: For Parquet: the number of the row's cluster, for `cluster` steps with `assigned: true`.
        unmatched: `error` stops at keys that only one of dataset and embeddings has; `drop` leaves such samples out.
        batch_size: Samples of one forward of `model`.
        batch_actors: Processes that each load `model`.
        gpus_per_actor: GPUs of each of them.
    """

    path: str | None = None
    model: str | None = None
    key_column: str = "key"
    image_column: str = "image_embedding"
    text_column: str | None = "text_embedding"
    cluster_column: str | None = None
    unmatched: Literal["error", "drop"] = "error"
    batch_size: int = Field(default=32, gt=0)
    batch_actors: int = Field(default=1, gt=0)
    gpus_per_actor: float = Field(default=0.0, ge=0.0)

    def of_evaluations(self, path: str | None) -> "EmbeddingsConfig":
        """Return where embeddings of evaluation sets come from: files of the same columns, or the same model."""
        return self.model_copy(update={"path": path, "cluster_column": None, "unmatched": "drop"})

    @model_validator(mode="after")
    def _one_source(self) -> "EmbeddingsConfig":
        if (self.path is None) == (self.model is None):
            raise ValueError("give exactly one of 'path' (embeddings that exist) and 'model' (that computes them)")
        return self


class ClusterStep(Config):
    """K-means over the image embeddings; drops nothing but `drop_clusters`.

    Attributes:
        num_clusters: None: one for every 1,000 samples.
        samples_per_cluster: K-means is trained on this many samples for each cluster; `seed` draws them.
        assigned: Take the clusters of `embeddings.cluster_column` instead.
        centroids: With `assigned`: a .npy file of one row a cluster; None takes each cluster's mean.
        drop_clusters: Clusters that are left out, such as one of images that say "no image".
    """

    step: Literal["cluster"]
    num_clusters: int | None = Field(default=None, gt=0)
    samples_per_cluster: int = Field(default=64, gt=0)
    iterations: int = Field(default=10, gt=0)
    seed: int = Field(default=0, ge=0)
    assigned: bool = False
    centroids: str | None = None
    drop_clusters: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _trained_or_assigned(self) -> "ClusterStep":
        if self.centroids is not None and not self.assigned:
            raise ValueError("'centroids' belong to clusters that are given: set 'assigned: true'")
        if self.assigned and self.num_clusters is not None:
            raise ValueError("'num_clusters' is for k-means; with 'assigned: true' the clusters are given")
        return self


class NearDuplicatesStep(Config):
    """One sample of each group whose image embeddings are linked by a cosine above `threshold` within a cluster.

    Attributes:
        keep: Which member stays: by its distance to the centroid the `median` (Bunny), `nearest` or `farthest`.
    """

    step: Literal["near_duplicates"]
    threshold: float = Field(default=0.86, gt=0.0, lt=1.0)
    keep: Literal["median", "nearest", "farthest"] = "median"


class SemDeDupStep(Config):
    """SemDeDup (arXiv 2303.09540): leave out what is close to a sample that comes before it in its cluster.

    Attributes:
        threshold: The paper's 1 - epsilon.
        first: Samples are taken in the order of their cosine to the centroid: the paper's `farthest` first, or
            `nearest`.
    """

    step: Literal["semdedup"]
    threshold: float = Field(default=0.86, gt=0.0, lt=1.0)
    first: Literal["farthest", "nearest"] = "farthest"


class RankBandStep(Config):
    """The samples whose rank by a score is in a band, counted from the highest score.

    Attributes:
        by: `clip_score` is the cosine of image and text, `centroid_cosine` that of image and centroid.
        band: Fractions: [0.4, 0.6] of n samples keeps the ranks floor(0.4 n) to floor(0.6 n) - 1.
    """

    step: Literal["rank_band"]
    by: ScoreName
    band: Band

    @field_validator("band")
    @classmethod
    def _not_empty(cls, band: Band) -> Band:
        if band[0] >= band[1]:
            raise ValueError(f"the band {list(band)} keeps nothing: its first number must be the smaller one")
        return band


class SampleStep(Config):
    """A random sample; the same seed draws the same."""

    step: Literal["sample"]
    samples: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)


class BalanceStep(Config):
    """At most `samples_per_cluster` samples of each cluster, drawn by `seed`."""

    step: Literal["balance"]
    samples_per_cluster: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)


class CaptionStep(Config):
    """Samples whose caption, the text of all assistant turns, fulfils every condition.

    Attributes:
        max_repetition: Largest share that the most frequent word may have, in captions of 10 words or more.
        scripts: Unicode scripts, such as `LATIN` or `CJK`; at least half of the letters must be of one of them.
        drop_pattern: Regular expression; captions that match it are left out, such as boilerplate.
    """

    step: Literal["caption"]
    min_characters: int = Field(default=1, ge=0)
    max_characters: int | None = Field(default=None, gt=0)
    min_words: int = Field(default=0, ge=0)
    max_words: int | None = Field(default=None, gt=0)
    max_repetition: float = Field(default=1.0, gt=0.0, le=1.0)
    scripts: tuple[str, ...] = ()
    drop_pattern: str | None = None

    @field_validator("drop_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class ImageStep(Config):
    """Samples whose images fulfil every condition."""

    step: Literal["image"]
    min_side_px: int = Field(default=1, gt=0)
    max_side_px: int | None = Field(default=None, gt=0)
    min_pixels: int = Field(default=1, gt=0)
    max_aspect_ratio: float | None = Field(default=None, ge=1.0)  # longer side / shorter side


class DuplicatesStep(Config):
    """The first sample, in stored order, of those whose content is equal.

    Attributes:
        of: `image` compares the stored bytes, `pixels` a perceptual hash, `caption` the text, `pair` bytes and text.
        max_distance: For `pixels`: how many of the 64 bits may differ. Samples linked by such pairs are one group.
    """

    step: Literal["duplicates"]
    of: Literal["image", "pixels", "caption", "pair"] = "image"
    max_distance: int = Field(default=0, ge=0, le=7)

    @model_validator(mode="after")
    def _distance_of_pixels(self) -> "DuplicatesStep":
        if self.max_distance and self.of != "pixels":
            raise ValueError(f"'max_distance' is for 'of: pixels', not for 'of: {self.of}'")
        return self


class KeysStep(Config):
    """Samples by key, from lists: text files of one key a line, or Parquet with a column `key`."""

    step: Literal["keys"]
    allow: str | None = None
    deny: str | None = None

    @model_validator(mode="after")
    def _a_list(self) -> "KeysStep":
        if (self.allow is None) == (self.deny is None):
            raise ValueError("give exactly one of 'allow' and 'deny': a file of keys")
        return self


class FunctionStep(Config):
    """Your own function: takes a `warren.data.sample.Sample`, returns whether it stays.

    Attributes:
        call: `module:function`; every node must be able to import it.
    """

    step: Literal["function"]
    call: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    options: dict[str, Any] = Field(default_factory=dict)


class DecontaminateStep(Config):
    """Leave out samples that show an image of an evaluation set, an altered copy of one, or contain a question of one.

    Attributes:
        datasets: The evaluation sets.
        max_distance: Bits of 64 in which the perceptual hashes of two images may differ for them to be compared.
        min_cosine: Images are also compared if the cosine of their embeddings is at least this. Needs `embeddings`.
        evaluation_embeddings: With `embeddings.path`: path of the evaluation sets' embeddings, with the same columns.
        min_correlation: Correlation of the pixels from which on an image counts as a copy.
        question_words: Questions are looked for by runs of so many words; a sample with half of a question's runs
            contains it. Shorter questions are not looked for. None looks for images alone.
        remove: False writes the certificate and keeps what it found.
    """

    step: Literal["decontaminate"]
    datasets: tuple[DatasetReference, ...] = Field(min_length=1)
    max_distance: int = Field(default=18, ge=0, le=20)
    min_cosine: float | None = Field(default=None, gt=0.0, le=1.0)
    evaluation_embeddings: str | None = None
    min_correlation: float = Field(default=0.97, gt=0.0, le=1.0)
    question_words: int | None = Field(default=13, ge=4)
    remove: bool = True

    @model_validator(mode="after")
    def _compares_embeddings(self) -> "DecontaminateStep":
        if self.evaluation_embeddings is not None and self.min_cosine is None:
            raise ValueError("'evaluation_embeddings' are compared from a cosine on: set 'min_cosine'")
        return self


Step = Annotated[
    ClusterStep
    | NearDuplicatesStep
    | SemDeDupStep
    | RankBandStep
    | SampleStep
    | BalanceStep
    | CaptionStep
    | ImageStep
    | DuplicatesStep
    | KeysStep
    | FunctionStep
    | DecontaminateStep,
    Field(discriminator="step"),
]
_WITHIN_CLUSTERS = (NearDuplicatesStep, SemDeDupStep, BalanceStep)


class CurateConfig(Config):
    """A selection of one or more datasets' samples: a new dataset version that shares their shards.

    Attributes:
        datasets: What is selected from, in this order.
        rewrite_below: Row groups that keep a smaller share of their samples are copied into new shards; others are read
            where they are. 0 never copies, 1 copies every row group that loses a sample.
        task_memory_mib: Memory that a task may use; larger clusters are compared in blocks.
    """

    name: Name
    version: Name = "v1"
    datasets: tuple[DatasetReference, ...] = Field(min_length=1)
    embeddings: EmbeddingsConfig | None = None
    steps: tuple[Step, ...] = Field(min_length=1)
    rewrite_below: float = Field(default=0.5, ge=0.0, le=1.0)
    samples_per_shard: int = Field(default=2048, gt=0)
    samples_per_row_group: int = Field(default=64, gt=0)
    task_memory_mib: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _steps_have_what_they_need(self) -> "CurateConfig":
        if len(set(self.datasets)) != len(self.datasets):
            raise ValueError("datasets: name each dataset once")
        if f"{self.name}@{self.version}" in self.datasets:
            raise ValueError(f"{self.name}@{self.version} cannot be selected from itself: give it another version")
        clustered = False
        for number, step in enumerate(self.steps):
            where = f"steps.{number} ({step.step})"
            by_score = isinstance(step, RankBandStep)
            if self.embeddings is None and (by_score or isinstance(step, ClusterStep)):
                raise ValueError(f"{where} needs embeddings: add 'embeddings' with a 'path' or a 'model'")
            if not clustered and (
                isinstance(step, _WITHIN_CLUSTERS) or (by_score and step.by == "centroid_cosine")  # type: ignore[union-attr]
            ):
                raise ValueError(f"{where} works within clusters: put a 'cluster' step before it")
            if isinstance(step, ClusterStep) and step.assigned and not self.embeddings.cluster_column:  # type: ignore[union-attr]
                raise ValueError(f"{where}: 'assigned' needs 'embeddings.cluster_column'")
            if by_score and step.by == "clip_score" and self.embeddings.path and self.embeddings.text_column is None:  # type: ignore[union-attr]
                raise ValueError(f"{where}: a clip_score needs text embeddings: set 'embeddings.text_column'")
            if isinstance(step, DecontaminateStep) and step.min_cosine is not None:
                _check_embeddings(where, step, self.embeddings)
            clustered = clustered or isinstance(step, ClusterStep)
        return self

    @property
    def content_options(self) -> dict[str, Any]:
        """Options that decide the selected samples and how they are stored: without the name and options of speed."""
        costs: Any = {"embeddings": {"batch_actors", "gpus_per_actor"}, "task_memory_mib": True}
        return self.model_dump(mode="json", exclude={"name": True, "version": True, **costs})


def _check_embeddings(where: str, step: DecontaminateStep, embeddings: EmbeddingsConfig | None) -> None:
    if embeddings is None:
        raise ValueError(f"{where}: 'min_cosine' needs embeddings: add 'embeddings' with a 'path' or a 'model'")
    if (embeddings.path is None) != (step.evaluation_embeddings is None):
        advice = "set 'evaluation_embeddings'" if embeddings.path else "leave 'evaluation_embeddings' out"
        source = "files" if embeddings.path else "a model"
        raise ValueError(
            f"{where}: embeddings of evaluation sets must come from {source}, as those of samples: {advice}"
        )
