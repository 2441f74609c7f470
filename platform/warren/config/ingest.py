"""Which raw pairs become which datasets."""

from typing import Any, Literal

from pydantic import Field, model_validator

from warren.config.tree import Config

Source = Literal["easy-vqa", "bunny-json", "webdataset", "parquet", "table"]


class ColumnsConfig(Config):
    """Which columns of a table hold what. A table has captions or conversations."""

    image: str | None = "image"  # None: the table has no pictures
    caption: str | None = None
    conversations: str | None = None

    @model_validator(mode="after")
    def _one_text(self) -> "ColumnsConfig":
        if self.caption is not None and self.conversations is not None:
            raise ValueError("give one of 'caption' and 'conversations'")
        return self


class IngestConfig(Config):
    """Where raw pairs are, and what is taken of them.

    Attributes:
        source: Format of the raw pairs.
        path: A file, a folder, or a pattern with `*`, in S3 or on a file system that every node sees. None takes
            easy-vqa's own package.
        images: Folder or S3 prefix that relative picture paths start from; None takes the folder of `path`.
        name: Name of the dataset; easy-vqa has names of its own.
        licence: Written into the manifest and the data card; so is `origin`, where the pairs came from.
        columns: For `parquet` and `table`.
        max_pixels: Larger pictures are quarantined before they are decoded.
        max_characters: Longer conversations are quarantined.
        exif_orientation: `apply` turns images as their EXIF data say; `ignore` takes them as stored, as Bunny does.
        alpha: `white` and `black` put transparent images on that colour; `drop` takes the colours that transparency
            hides, as Bunny does.
        max_quarantined_fraction: Share of unusable samples above which nothing is published.
    """

    source: Source
    path: str | None = None
    images: str | None = None
    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = "v1"
    licence: str = "unknown"
    origin: str = ""
    columns: ColumnsConfig = ColumnsConfig()
    limit_images: int | None = Field(default=None, gt=0)
    questions_per_conversation: int = Field(default=1, gt=0)
    samples_per_shard: int = Field(default=2048, gt=0)
    samples_per_row_group: int = Field(default=64, gt=0)
    max_pixels: int = Field(default=64_000_000, gt=0)
    max_characters: int = Field(default=100_000, gt=0)
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"
    max_quarantined_fraction: float = Field(default=0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> "IngestConfig":
        if self.source == "easy-vqa":
            return self
        if self.path is None or self.name is None:
            raise ValueError(f"source {self.source!r} needs 'path' (the raw pairs) and 'name' (of the dataset)")
        if self.limit_images is not None or self.questions_per_conversation != 1:
            raise ValueError("'limit_images' and 'questions_per_conversation' are for easy-vqa only")
        if self.source in ("parquet", "table") and not (self.columns.caption or self.columns.conversations):
            raise ValueError(f"source {self.source!r} needs 'columns.caption' or 'columns.conversations'")
        return self

    @property
    def content_options(self) -> dict[str, Any]:
        """What decides which samples the datasets hold, defaults left out: not the ceiling, nor texts for people."""
        described = {"name", "version", "licence", "origin", "max_quarantined_fraction"}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=described)
