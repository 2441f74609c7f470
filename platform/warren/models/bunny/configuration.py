"""From Bunny's config.json to a `LlavaConfig` and to the model's inputs."""

from typing import Any

from transformers import AutoConfig, LlavaConfig, PretrainedConfig

from warren.data.images import ImageSpec, Resize
from warren.data.model_inputs import Inputs, TrainedTokenizer
from warren.data.template import TokenSpec
from warren.errors import ConfigError, ModelError
from warren.models.bunny.families import PROMPT_KEY, Family
from warren.models.extended_llava import PLAIN_PROJECTOR, config_class
from warren.models.head import Head
from warren.models.llava_layout import image_size_px
from warren.models.minicpm import granite_fields
from warren.models.projectors import check_projector, num_projected
from warren.models.towers import Normalisation
from warren.models.vlm import CLIP_MEAN, CLIP_STD, FEATURE_LAYER, RESIZE, SIGLIP_MEAN, SIGLIP_STD, num_patches

SIGLIP = "siglip_vision_model"

# Fields that are not the decoder's own: Bunny adds them, or they depend on the versions of libraries.
_NOT_THE_DECODERS = {
    "architectures",
    "auto_map",
    "continuous_training",
    "freeze_mm_mlp_adapter",
    "image_aspect_ratio",
    "model_type",
    "s2_scales",
    "tie_word_embeddings",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "torch_dtype",
    "transformers_version",
    "tune_mm_mlp_adapter",
    "unfreeze_vision_tower",
    "use_mm_proj",
    "use_s2",
    "_name_or_path",
    PROMPT_KEY,
}


def text_config(
    config: dict[str, Any], family: Family, vocab_size: int, tokenizer: TrainedTokenizer
) -> PretrainedConfig:
    """Return the decoder's own configuration, without what Bunny adds."""
    fields = {
        family.renamed.get(key, key): value
        for key, value in config.items()
        if key not in _NOT_THE_DECODERS and not key.startswith("mm_")
    }
    fields = granite_fields(fields) | {"logits_scaling": 1.0} if family.scaled else fields
    if family.window_slack and fields.get("sliding_window"):
        fields["sliding_window"] += family.window_slack
    fields |= {"vocab_size": vocab_size, "tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id}
    try:
        return AutoConfig.for_model(family.model_type, **fields)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json does not describe a {family.model_type}: {error}") from None


def llava_config(
    source: dict[str, Any], vision: PretrainedConfig, text: PretrainedConfig, tokenizer: TrainedTokenizer, head: Head
) -> LlavaConfig:
    """Return the configuration of the whole model; `bunny_config` keeps the original for the way back.

    Raises:
        ModelError: The projector is unknown or of another width than the tower, or S² is asked of a tower other than
            SigLIP.
    """
    projector = source.get("mm_projector_type", PLAIN_PROJECTOR)
    projector = f"sppv{version}" if (version := _spp_version(projector)) else projector
    scales = _scales(source, vision)
    _check_width(source, vision.hidden_size * len(scales or [0]), scales)
    chosen = config_class(vision, projector, scales)
    extended = {} if chosen is LlavaConfig else {"projector_type": projector, "vision_scales": scales}
    try:
        check_projector(projector)
        num_tokens = num_projected(projector, num_patches(vision))
    except ConfigError as error:
        raise ModelError(f"config.json: mm_projector_type is {projector!r}: {error}") from None
    return chosen(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=num_tokens,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="full" if vision.model_type == SIGLIP else "default",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bunny_config=source,
        **head.fields(),
        **extended,
    )


def _check_width(source: dict[str, Any], width: int, scales: list[int] | None) -> None:
    hidden_size = source.get("mm_hidden_size", width)
    if hidden_size == width:
        return
    hint = (
        "; three times the tower's width is S²'s: set use_s2 to true" if not scales and hidden_size == 3 * width else ""
    )
    raise ModelError(
        f"config.json: mm_hidden_size is {hidden_size}, but use_s2 is {source.get('use_s2')!r} and so the vision "
        f"tower gives {width} features{hint}"
    )


def _scales(source: dict[str, Any], vision: PretrainedConfig) -> list[int] | None:
    if not source.get("use_s2"):
        return None
    if vision.model_type != SIGLIP:
        raise ModelError(f"config.json says use_s2, which Bunny has for SigLIP only, not for {vision.model_type}")
    scales = source.get("s2_scales", "384,768,1152")
    scales = sorted(int(scale) for scale in (scales.split(",") if isinstance(scales, str) else scales))
    if scales[0] != vision.image_size or any(scale % scales[0] for scale in scales):
        raise ModelError(f"S² scales {scales} are not multiples of the tower's {vision.image_size} px")
    return scales


def _spp_version(projector: str) -> int | None:
    """Return an SPP projector's version; Bunny accepts any name that starts with `spp` and contains v1, v2 or v3."""
    if not projector.startswith("spp"):
        return None
    return next((version for version in (1, 2, 3) if f"v{version}" in projector), None)


_RESIZE: dict[str, Resize] = {"clip_vision_model": RESIZE["clip"], "eva_clip_vision_model": RESIZE["eva-clip"]}


def inputs_of_bunny(
    source: dict[str, Any],
    family: Family,
    config: LlavaConfig,
    tokenizer: TrainedTokenizer,
    normalisation: Normalisation | None = None,
) -> Inputs:
    """Return the prompt template, special tokens and preprocessing the checkpoint was trained with."""
    siglip = config.vision_config.model_type == SIGLIP
    mean, std = normalisation or ((SIGLIP_MEAN, SIGLIP_STD) if siglip else (CLIP_MEAN, CLIP_STD))
    return Inputs(
        template=family.template,
        tokens=TokenSpec(
            image_token_id=tokenizer.image_token_id,
            tokens_per_image=config.image_seq_length,
            eos_token=tokenizer.eos_token,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        ),
        image=ImageSpec(
            size_px=image_size_px(config),
            mean=mean,
            std=std,
            padding=source.get("image_aspect_ratio") == "pad",
            resize=_RESIZE.get(config.vision_config.model_type, "stretch"),
        ),
        chat_template=tokenizer.chat_template,
    )
