"""Which raw pairs become which datasets."""

from typing import Literal

from pydantic import Field

from warren.config.tree import Config


class IngestConfig(Config):
    """Which raw pairs become which datasets."""

    source: Literal["easy-vqa"]
    path: str | None = None  # None: the source's own package
    version: str = "v1"
    limit_images: int | None = Field(default=None, gt=0)
    questions_per_conversation: int = Field(default=1, gt=0)
    samples_per_shard: int = Field(default=2048, gt=0)
    samples_per_row_group: int = Field(default=64, gt=0)
    max_quarantined_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
