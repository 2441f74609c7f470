"""Configuration of an ingest: where raw pairs are, and the dataset that they become."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from warren.config.layered_config import Config, Replaces
from warren.config.names import Name

Source = Literal["easy-vqa", "bunny-json", "webdataset", "parquet", "table"]


class ColumnsConfig(Config):
    """Columns of a table, or fields of a JSON record, that hold the images and one kind of text."""

    replaces: ClassVar[Replaces] = {
        "caption": ("conversations", "question", "answer"),
        "conversations": ("caption", "question", "answer"),
        "question": ("caption", "conversations"),
        "answer": ("caption", "conversations"),
    }

    image: str | None = "image"  # also "images", where there is no "image"; None: there are no images
    caption: str | None = None
    conversations: str | None = None
    question: str | None = None  # with `answer`
    answer: str | None = None

    @model_validator(mode="after")
    def _one_text(self) -> "ColumnsConfig":
        if (self.question is None) != (self.answer is None):
            raise ValueError("'question' and 'answer' need each other")
        text_columns = [name for name in ("caption", "conversations", "question") if getattr(self, name) is not None]
        if len(text_columns) > 1:
            raise ValueError(f"give one of 'caption', 'conversations' and 'question' with 'answer', not {text_columns}")
        return self

    @property
    def names_text(self) -> bool:
        """Whether a text column is named."""
        return any((self.caption, self.conversations, self.question))


class IngestConfig(Config):
    """Where raw pairs are, and how they are read.

    Attributes:
        source: Format of the raw pairs.
        path: A file, a folder, or a pattern with `*` or `{a,b}`, in S3 or on a file system that every node sees. None
            takes easy-vqa's own package.
        images: Folder or S3 prefix that relative image paths start from; None takes the folder of `path`.
        name: Name of the dataset; easy-vqa has names of its own.
        licence: Licence of the pairs, for the manifest and the data card.
        origin: Where the pairs came from, for the manifest and the data card; empty takes `path`.
        columns: For `parquet` and `table`, and for JSON records whose fields have unusual names.
        quoted: For `table`: whether cells may be in quotes. None: in .csv they may, in .tsv they may not.
        add_image_marks: Put image marks before the first question of a conversation that has images but no marks.
        system_turns: `keep` trains with a conversation's system text in place of the template's, `drop` leaves it out.
        download_deadline_s: Time for all downloads of one sample; a sample that takes longer is quarantined.
        max_pixels: Larger images are quarantined before they are decoded.
        max_characters: Longer conversations are quarantined.
        exif_orientation: `apply` turns images as their EXIF data say; `ignore` takes them as stored, as Bunny does.
        alpha: `white` and `black` put transparent images on that colour; `drop` takes the colours that transparency
            hides, as Bunny does.
        max_quarantined_fraction: Largest share of unusable samples; with more, no dataset is published.
    """

    # what a lower layer says about its source does not hold for another source
    replaces: ClassVar[Replaces] = {
        "source": (
            *("path", "images", "name", "licence", "origin", "columns"),
            *("limit_images", "questions_per_conversation"),
        )
    }

    source: Source
    path: str | None = None
    images: str | None = None
    name: Name | None = None
    version: Name = "v1"
    licence: str = "unknown"
    origin: str = ""
    columns: ColumnsConfig = ColumnsConfig()
    quoted: bool | None = None
    add_image_marks: bool = False
    system_turns: Literal["keep", "drop"] = "keep"
    download_deadline_s: float = Field(default=60.0, gt=0)
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
        if self.source in ("parquet", "table") and not self.columns.names_text:
            raise ValueError(
                f"source {self.source!r} needs 'columns.caption', 'columns.conversations', or 'columns.question' and "
                "'columns.answer'"
            )
        return self

    @property
    def content_options(self) -> dict[str, Any]:
        """Options that decide the datasets' samples, without those that have their default."""
        described = {"name", "version", "licence", "origin", "max_quarantined_fraction", "download_deadline_s"}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=described)
