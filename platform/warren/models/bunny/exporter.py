"""A model in the Hugging Face LLaVA layout back to Bunny's layout."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PretrainedConfig

from warren.data.model_inputs import TOKENIZER_FILE, Inputs
from warren.errors import ModelError
from warren.models.bunny.families import FAMILIES, PROMPT_KEY
from warren.models.bunny.names import to_bunny
from warren.models.bunny.tokenizer import in_old_format, without_image_token
from warren.models.bunny.tower_files import OWN_TOWERS, with_eva_extras, write_json, write_tower
from warren.models.extended_llava import PLAIN_PROJECTOR
from warren.models.head import Head
from warren.models.llava_layout import new_folder, read_model_config
from warren.models.minicpm import check_minicpm, minicpm_fields
from warren.models.tensors import MAX_SHARD_BYTES, LazyTensors, read_folder, write_tensors
from warren.models.vocabulary import HEAD, num_rows, scaled_head, with_vocabulary

_TOWER = "vision_tower.vision_model."
_MAX_LENGTH = "tokenizer_model_max_length"
_NAMES = {"granite": "bunny-minicpm"}  # a MiniCPM trains as a Granite (`models/minicpm.py`)
_CLASS_NAMES = {
    "bunny-phi": "Phi",
    "bunny-phi3": "Phi3",
    "bunny-llama": "Llama",
    "bunny-qwen2": "Qwen2",
    "bunny-stablelm": "StableLM",
    "bunny-minicpm": "MiniCPM",
}


def export_bunny(
    source: Path, target: Path, dtype: torch.dtype | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a merged Bunny checkpoint, its vision tower beside it.

    `unfreeze_vision_tower` is set, so that Bunny's loader takes the tower in the checkpoint, which is this model's.

    Args:
        source: A model that Warren wrote or imported.
        target: A folder that does not exist yet.
        dtype: Of the weights written; None keeps theirs.
        max_shard_bytes: Weights are split into files of at most this.

    Raises:
        ModelError: Bunny has no family for this decoder or no such tower, or the folder is no such model.
    """
    config, inputs = read_model_config(source), Inputs.load(source)
    vision = config.vision_config
    if vision.model_type not in OWN_TOWERS:
        raise ModelError(f"Bunny has no {vision.model_type!r} towers; it has {', '.join(OWN_TOWERS)}")
    fields = _bunny_config(config, inputs)
    tokenizer_json = (source / TOKENIZER_FILE).read_text()
    ids = _token_ids(inputs, Tokenizer.from_str(tokenizer_json))
    fields["eos_token_id"] = ids["eos_token_id"]
    fields[PROMPT_KEY] = {
        "template": inputs.template,
        "end_of_answer": inputs.tokens.eos_token,
        "pad_is_eos": ids["eos_token_id"] == ids["pad_token_id"],
    }
    tensors = _decoder_tensors(read_folder(source), config, keep_dtype=dtype is None)
    fields["vocab_size"] = num_rows(tensors)
    tower = with_eva_extras(vision, {k.removeprefix(_TOWER): r for k, r in tensors.items() if k.startswith(_TOWER)})
    tensors |= {_TOWER + name: read for name, read in tower.items()}
    text_tokenizer = in_old_format(without_image_token(tokenizer_json))
    with new_folder(target) as folder:
        write_tensors(to_bunny(tensors, config), folder, dtype, max_shard_bytes=max_shard_bytes)
        write_json(folder / "config.json", fields)
        write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
        (folder / TOKENIZER_FILE).write_text(text_tokenizer)
        _write_tokenizer_settings(inputs, text_tokenizer, fields, folder)
        write_tower(vision, tower, inputs.image, folder, dtype)


def _token_ids(inputs: Inputs, tokenizer: Tokenizer) -> dict[str, int | None]:
    tokens = inputs.tokens
    return {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokenizer.token_to_id(tokens.eos_token),
        "pad_token_id": tokens.pad_token_id,
    }


def _decoder_tensors(tensors: LazyTensors, config: Any, keep_dtype: bool) -> LazyTensors:
    """Return a model's tensors with the vocabulary and the head of its language model's own checkpoint."""
    head, rows = Head.of(config), num_rows(tensors)
    if config.image_token_index == rows - 1 and config.image_token_index in head.unpredicted_ids:
        tensors = with_vocabulary(tensors, rows - 1, rows - 1)
    if head.tied:
        return {name: read for name, read in tensors.items() if name != HEAD}
    return scaled_head(tensors, head.divisor, keep_dtype)


def _bunny_config(config: Any, inputs: Inputs) -> dict[str, Any]:
    original, head = getattr(config, "bunny_config", None), Head.of(config)
    if original:
        check_minicpm(config)
        fields = {**original, "unfreeze_vision_tower": True, "tie_word_embeddings": head.tied}
        # A model that was trained further may pad its images, unlike the original.
        if (original.get("image_aspect_ratio") == "pad") != inputs.image.padding:
            fields["image_aspect_ratio"] = _aspect(inputs)
        return fields
    text = config.text_config
    name = _NAMES.get(text.model_type, f"bunny-{text.model_type}")
    if name not in FAMILIES:
        raise ModelError(f"Bunny has no family for {text.model_type!r}; it has {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    back = {new: old for old, new in family.renamed.items()}
    decoder = {back.get(key, key): value for key, value in _flat(text).items()}
    if family.window_slack and decoder.get("sliding_window"):
        decoder["sliding_window"] -= family.window_slack
    if family.scaled:
        decoder = minicpm_fields(decoder, head.divisor)
    scales = getattr(config, "vision_scales", None)
    return {
        **decoder,
        "bos_token_id": inputs.tokens.bos_token_id,
        "pad_token_id": inputs.tokens.pad_token_id,
        "architectures": [f"Bunny{_CLASS_NAMES[name]}ForCausalLM"],
        "model_type": name,
        "mm_vision_tower": OWN_TOWERS[config.vision_config.model_type],
        "mm_hidden_size": config.vision_config.hidden_size * len(scales or [0]),
        "mm_projector_type": getattr(config, "projector_type", PLAIN_PROJECTOR),
        "use_mm_proj": True,
        "use_s2": bool(scales),
        **({"s2_scales": ",".join(map(str, scales))} if scales else {}),
        "image_aspect_ratio": _aspect(inputs),
        "tokenizer_padding_side": "right",
        _MAX_LENGTH: getattr(text, "max_position_embeddings", 2048),
        "tie_word_embeddings": head.tied,
        "unfreeze_vision_tower": True,
    }


def _aspect(inputs: Inputs) -> str:
    return "pad" if inputs.image.padding else "square"


def _flat(text: PretrainedConfig) -> dict[str, Any]:
    """Return a decoder's fields as transformers 4 wrote them: the rotary parameters were not a group of their own."""
    fields: dict[str, Any] = text.to_dict()
    rope = fields.pop("rope_parameters", None) or {}
    fields["torch_dtype"] = fields.pop("dtype", None)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            fields[key] = rope[key]
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return fields


def _write_tokenizer_settings(inputs: Inputs, tokenizer_json: str, fields: dict[str, Any], folder: Path) -> None:
    tokens, vocabulary = inputs.tokens, Tokenizer.from_str(tokenizer_json)
    begin = None if tokens.bos_token_id is None else vocabulary.id_to_token(tokens.bos_token_id)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokens.eos_token,
            "pad_token": vocabulary.id_to_token(tokens.pad_token_id),
            **({"bos_token": begin} if begin else {}),
            **({"chat_template": inputs.chat_template} if inputs.chat_template else {}),
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            **({"model_max_length": fields[_MAX_LENGTH]} if _MAX_LENGTH in fields else {}),
        },
    )
