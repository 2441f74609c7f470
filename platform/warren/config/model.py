"""The model of a recipe: vision tower, projector, language model, tokenizer and prompt template."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from warren.config.catalog import BACKBONES, TOWERS, check_template, entry
from warren.config.layered_config import Config, Replaces
from warren.config.resume import OnResume

ModelPart = Literal["vision_tower", "projector", "language_model"]


class VisionTowerConfig(Config):
    """The image encoder: one of the catalog by `name`, or a `family`.

    A family's weights come from `pretrained`, or are random with the sizes in `config`. Values beside a `name` override
    those of its catalog entry.
    """

    replaces: ClassVar[Replaces] = {
        "name": ("family", "pretrained", "config"),
        "family": ("name", "pretrained"),
        "pretrained": ("config",),
    }

    name: Annotated[str | None, OnResume.FREE] = None  # the fields below say what it stands for
    family: Literal["siglip", "clip", "eva-clip", "dinov2"]  # "siglip" is SigLIP 2's fixed-size towers too
    pretrained: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    scales_px: tuple[int, ...] | None = None  # S²: ascending multiples of the tower's size; Bunny's are 384, 768, 1152

    @model_validator(mode="before")
    @classmethod
    def _from_catalog(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name") is None:
            return data
        tower = entry("vision tower", TOWERS, data["name"])
        known = {"family": tower.family, "pretrained": tower.pretrained}
        return {**known, **data, "config": _with_catalog(tower.config, data.get("config"))}

    @field_validator("scales_px", mode="before")
    @classmethod
    def _tuple(cls, scales: Any) -> Any:
        return tuple(scales) if isinstance(scales, list) else scales  # strict mode takes no list after _from_catalog

    @field_validator("scales_px")
    @classmethod
    def _ascending_multiples(cls, scales: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if scales is not None and (
            not scales or scales[0] < 1 or list(scales) != sorted(set(scales)) or any(s % scales[0] for s in scales)
        ):
            raise ValueError(f"{list(scales)} are not ascending multiples of the first")
        return scales


def _with_catalog(known: Mapping[str, Any], sizes: Any) -> Any:
    """Merge the sizes that a recipe names over those of the catalog."""
    return {**known, **sizes} if isinstance(sizes, dict) else dict(known) if sizes is None else sizes


class ProjectorConfig(Config):
    """The map from patch features to language-model embeddings."""

    type: str = Field(
        default="mlp2x_gelu", pattern=r"^(linear|mlp[1-9]\d*x_gelu|sppv[123]|ldp|vanilla|minigpt|identity)$"
    )


class LanguageModelConfig(Config):
    """The decoder: one of the catalog by `name`, weights from `pretrained`, or a `model_type` with random weights.

    `pretrained` is a hub id, a local folder or an S3 folder. Sizes are read from there unless `config` has them.
    """

    replaces: ClassVar[Replaces] = {
        "name": ("pretrained", "model_type", "config", "eos_token", "pad_token", "bos_token"),
        "pretrained": ("name", "model_type", "config", "eos_token", "pad_token", "bos_token"),
        "model_type": ("name", "pretrained"),
    }

    name: Annotated[str | None, OnResume.FREE] = None  # the fields below say what it stands for
    pretrained: str | None = None
    model_type: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    eos_token: str | None = None  # None: the tokenizer's own
    pad_token: str | None = None  # None: the tokenizer's own, else its unk, else the eos
    bos_token: str | None = None  # put before every sample; None: only if the tokenizer itself adds one

    @model_validator(mode="before")
    @classmethod
    def _from_catalog(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name") is None:
            return data
        backbone = entry("language model", BACKBONES, data["name"])
        known = {key: getattr(backbone, key) for key in ("pretrained", "model_type", "eos_token", "pad_token")}
        return {**known, **data, "config": _with_catalog(backbone.config, data.get("config"))}

    @model_validator(mode="after")
    def _some_source(self) -> "LanguageModelConfig":
        if self.pretrained is None and self.model_type is None:
            raise ValueError("give 'name', 'pretrained' or 'model_type'")
        return self


class TokenizerConfig(Config):
    """Where the tokenizer comes from: the language model's own, or one trained on the datasets of both stages."""

    train_vocab_size: int | None = Field(default=None, ge=300)


class ModelConfig(Config):
    """The whole vision-language model."""

    # a pretrained language model has a tokenizer of its own
    replaces: ClassVar[Replaces] = dict.fromkeys(
        ("language_model.name", "language_model.pretrained"), ("tokenizer.train_vocab_size",)
    )

    vision_tower: VisionTowerConfig
    projector: ProjectorConfig = ProjectorConfig()
    language_model: LanguageModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    template: str = "bunny"

    @model_validator(mode="before")
    @classmethod
    def _template_of_the_backbone(cls, data: Any) -> Any:
        backbone = data.get("language_model") if isinstance(data, dict) else None
        name = backbone.get("name") if isinstance(backbone, dict) else None
        return {"template": BACKBONES[name].template, **data} if name in BACKBONES else data

    @field_validator("template")
    @classmethod
    def _known_template(cls, name: str) -> str:
        return check_template(name)

    @model_validator(mode="after")
    def _one_tokenizer(self) -> "ModelConfig":
        if (self.language_model.pretrained is None) == (self.tokenizer.train_vocab_size is None):
            raise ValueError(
                "a language model without 'pretrained' needs tokenizer.train_vocab_size; "
                "a pretrained one has its own tokenizer"
            )
        return self
