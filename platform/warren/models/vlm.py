"""Building the vision-language model. It is transformers' LLaVA: what Warren saves loads without Warren."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)

from warren.compat.torch import let_padding_row_train
from warren.config import LanguageModelConfig, ModelConfig, ModelPart, VisionTowerConfig
from warren.data.images import ImageSpec, Resize
from warren.data.model_inputs import Inputs, TrainedTokenizer
from warren.data.template import TokenSpec
from warren.errors import ConfigError, ModelError
from warren.models.adapters import has_adapters, is_adapter
from warren.models.extended_llava import MODEL_CLASSES, config_class
from warren.models.head import Head, appended_ids, unfold_head
from warren.models.minicpm import granite_fields
from warren.models.pretrained import folder_of, load_language_model, load_tower, read_config
from warren.models.projectors import num_projected
from warren.models.towers import MODEL_TYPES, Normalisation, known_config, normalisation, tower_config

FEATURE_LAYER = -2
"""Bunny and LLaVA read the tower before its last block."""

SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_NORMALISATION: dict[str, Normalisation] = {  # mean and standard deviation each family was trained with
    "siglip": (SIGLIP_MEAN, SIGLIP_STD),
    "clip": (CLIP_MEAN, CLIP_STD),
    "eva-clip": (CLIP_MEAN, CLIP_STD),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
}
RESIZE: dict[str, Resize] = {"clip": "crop", "eva-clip": "crop_even", "dinov2": "crop"}
"""How families other than SigLIP, which stretches, make an image square."""

_NOT_SIZES = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")

_MODULES: dict[ModelPart, tuple[str, ...]] = {
    "vision_tower": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "language_model": ("model.language_model.", "lm_head."),
}


def build_model(config: ModelConfig, tokenizer: TrainedTokenizer, seed: int) -> LlavaForConditionalGeneration:
    """Build the model of a recipe; parts without `pretrained` get random weights from `seed`.

    Raises:
        ConfigError: A part's configuration is not one transformers knows, or the parts do not fit each other.
    """
    llava = _llava_config(config, tokenizer)
    torch.manual_seed(seed)
    model = MODEL_CLASSES[llava.model_type](llava)
    if config.vision_tower.pretrained:
        load_tower(model.model.vision_tower, folder_of(config.vision_tower.pretrained))
    if config.language_model.pretrained:
        base = _base_config(config.language_model)
        folder = folder_of(config.language_model.pretrained)
        load_language_model(
            model.model.language_model, model.lm_head, folder, base.vocab_size, base.tie_word_embeddings
        )
        _reset(model.model.multi_modal_projector)
    return model


def outline_model(config: ModelConfig) -> LlavaForConditionalGeneration:
    """Build the model of a recipe as it trains, on the meta device: shapes, no weights, no tokenizer, no download.

    A pretrained language model has the rows its checkpoint has; one that must grow for `<image>` gets that row later.
    """
    nothing = TrainedTokenizer("", config.tokenizer.train_vocab_size or 0, image_token_id=0, pad_token_id=0)
    llava = _llava_config(config, nothing)
    with torch.device("meta"):
        model = MODEL_CLASSES[llava.model_type](llava)
    unfold_head(model)
    return model


def _llava_config(config: ModelConfig, tokenizer: TrainedTokenizer) -> LlavaConfig:
    vision = _vision_config(config.vision_tower)
    text = _text_config(config.language_model, tokenizer)
    scales = list(config.vision_tower.scales_px) if config.vision_tower.scales_px else None
    chosen = config_class(vision, config.projector.type, scales)
    return chosen(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=num_projected(config.projector.type, num_patches(vision)),
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="full" if config.vision_tower.family == "siglip" else "default",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        **_head(config.language_model, tokenizer).fields(),
        **({} if chosen is LlavaConfig else {"projector_type": config.projector.type, "vision_scales": scales}),
    )


def _reset(projector: nn.Module) -> None:
    """Give a new projector PyTorch's own initial weights, as Bunny does; transformers' are for whole new models."""
    for module in projector.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def inputs_of(config: ModelConfig, tokenizer: TrainedTokenizer) -> Inputs:
    """Return what the model of a recipe expects at its inputs."""
    vision = _vision_config(config.vision_tower)
    mean, std = _normalisation(config.vision_tower, vision)
    return Inputs(
        template=config.template,
        chat_template=tokenizer.chat_template,
        tokens=TokenSpec(
            image_token_id=tokenizer.image_token_id,
            tokens_per_image=num_projected(config.projector.type, num_patches(vision)),
            eos_token=tokenizer.eos_token,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        ),
        image=ImageSpec(
            size_px=max(config.vision_tower.scales_px or [vision.image_size]),
            mean=mean,
            std=std,
            resize=RESIZE.get(config.vision_tower.family, "stretch"),
        ),
    )


def freeze_all_but(model: nn.Module, trainable: Iterable[ModelPart]) -> tuple[int, int]:
    """Let only the named parts train.

    Blocks of the tower after the feature layer are never used, so they stay frozen: the optimizer would keep state for
    them, and they would get no gradient. Of a language model with adapters only the adapters train. If padding and the
    end of an answer are one token, torch would not train its embedding; here it is trained, as in Bunny.

    Returns:
        Trainable and total parameter counts.
    """
    prefixes = tuple(prefix for part in trainable for prefix in _MODULES[part])
    unused = _unused_tower_parameters(model)
    frozen = _MODULES["language_model"] if has_adapters(model) else ()
    embeddings: Any = model.get_submodule("model.language_model").get_input_embeddings()  # type: ignore[operator]
    let_padding_row_train(embeddings)
    trained = total = 0
    for name, parameter in model.named_parameters():
        trains = name.startswith(prefixes) and name not in unused
        parameter.requires_grad_(trains and (is_adapter(name) or not name.startswith(frozen)))
        trained += parameter.numel() if parameter.requires_grad else 0
        total += parameter.numel()
    return trained, total


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing: blocks run again in the backward pass instead of storing their activations.

    transformers also makes every embedding require a gradient, which only reentrant checkpointing needs. That is undone
    here: a frozen vision tower would get a graph, and run twice for nothing.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()


def part_of(parameter_name: str) -> ModelPart:
    """Name the part a parameter of the model belongs to."""
    return next(part for part, prefixes in _MODULES.items() if parameter_name.startswith(prefixes))


def num_patches(vision: PretrainedConfig) -> int:
    """Patch features of one image, the class token not counted."""
    return int((vision.image_size // vision.patch_size) ** 2)


def _unused_tower_parameters(model: nn.Module) -> set[str]:
    tower: Any = model.get_submodule("model.vision_tower")
    lists = [(name, module) for name, module in tower.named_modules() if isinstance(module, nn.ModuleList)]
    name, layers = next((name, module) for name, module in lists if len(module) == tower.config.num_hidden_layers)
    prefix = "model.vision_tower."
    used = len(layers) + 1 + FEATURE_LAYER
    behind = tuple(f"{prefix}{name}.{i}." for i in range(used, len(layers)))
    ends = tuple(f"{prefix}{end}." for end in ("post_layernorm", "head", "norm", "layernorm"))
    return {n for n, _ in model.named_parameters() if n.startswith((*behind, *ends))}


def _vision_config(config: VisionTowerConfig) -> PretrainedConfig:
    fields = {"vision_use_head": False} if config.family == "siglip" else {}
    try:
        if config.config or not config.pretrained:
            vision = known_config({"model_type": config.family, **fields, **config.config})
        else:
            vision = tower_config(folder_of(config.pretrained, weights=False))
            vision.update(fields)
    except ModelError as error:
        raise ConfigError(f"model.vision_tower: {error}") from None
    if vision.model_type != MODEL_TYPES[config.family]:
        raise ConfigError(
            f"model.vision_tower.family is {config.family!r}, but {config.pretrained} is {vision.model_type}"
        )
    if config.scales_px and config.scales_px[0] != vision.image_size:
        raise ConfigError(
            f"model.vision_tower.scales_px starts with {config.scales_px[0]}; the tower takes {vision.image_size} px"
        )
    return vision


def _normalisation(config: VisionTowerConfig, vision: PretrainedConfig) -> Normalisation:
    """Return what images are normalised with: by the processor in the tower's folder, else as its family was."""
    usual = _NORMALISATION[config.family]
    if not config.pretrained or (config.config and not Path(os.path.expandvars(config.pretrained)).exists()):
        return usual  # a published tower whose sizes are in the recipe: nothing needs to be downloaded
    try:
        return normalisation(folder_of(config.pretrained, weights=False), vision) or usual
    except ModelError as error:
        raise ConfigError(f"model.vision_tower: {error}") from None


def _text_config(config: LanguageModelConfig, tokenizer: TrainedTokenizer) -> PretrainedConfig:
    text = _base_config(config)
    text.vocab_size = max(text.vocab_size, tokenizer.vocab_size) if config.pretrained else tokenizer.vocab_size
    text.tie_word_embeddings = False
    text.pad_token_id = tokenizer.pad_token_id
    return text


def _head(config: LanguageModelConfig, tokenizer: TrainedTokenizer) -> Head:
    """Return how the head of a recipe's language model trains: as its checkpoint's did."""
    if not config.pretrained:
        return Head()
    base = _base_config(config)
    divisor = float(getattr(base, "logits_scaling", 1.0))
    return Head(appended_ids(tokenizer, base.vocab_size), bool(base.tie_word_embeddings), divisor)


def _base_config(config: LanguageModelConfig) -> PretrainedConfig:
    """Return the decoder's configuration as the recipe or its pretrained folder has it."""
    model_type, fields = _text_fields(config)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.language_model: {error}") from None


def _text_fields(config: LanguageModelConfig) -> tuple[str | None, dict[str, Any]]:
    """Return the decoder's kind and sizes: the recipe's, or those in its pretrained folder."""
    model_type, fields = config.model_type, dict(config.config)
    if config.pretrained and not fields:
        saved_config = read_config(folder_of(config.pretrained, weights=False))
        model_type = saved_config.pop("model_type", model_type)
        fields = {key: value for key, value in saved_config.items() if key not in _NOT_SIZES}
    return ("granite", granite_fields(fields)) if model_type == "minicpm" else (model_type, fields)
