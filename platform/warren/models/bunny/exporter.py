"""A model in the Hugging Face LLaVA layout back to Bunny's layout."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PretrainedConfig

from warren.data.inputs import TOKENIZER_FILE, Inputs
from warren.errors import ModelError
from warren.models.bunny.configuration import SIGLIP
from warren.models.bunny.families import FAMILIES, PROMPT_KEY, Family, family_of
from warren.models.bunny.names import projector_end, to_bunny
from warren.models.bunny.tokenizer import without_image_token
from warren.models.bunny.tower import OWN_FOLDER
from warren.models.eva_clip import EvaClipVisionConfig
from warren.models.extended import PLAIN_PROJECTOR
from warren.models.minicpm import minicpm_fields, scales_of, unfolded
from warren.models.saved import new_folder, read_model_config
from warren.models.tensors import MAX_SHARD_BYTES, LazyTensors, read_folder, write_tensors
from warren.models.vocabulary import with_vocabulary

_TOWER = "vision_tower.vision_model."
_NAMES = {"granite": "bunny-minicpm"}  # what a MiniCPM trains as
_CLASS_NAMES = {
    "bunny-phi": "Phi",
    "bunny-phi3": "Phi3",
    "bunny-llama": "Llama",
    "bunny-qwen2": "Qwen2",
    "bunny-stablelm": "StableLM",
    "bunny-minicpm": "MiniCPM",
}
_TOWERS = (SIGLIP, "clip_vision_model", EvaClipVisionConfig.model_type)


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
    if config.vision_config.model_type not in _TOWERS:
        raise ModelError(f"Bunny has no {config.vision_config.model_type!r} towers; it has {', '.join(_TOWERS)}")
    family, fields = _bunny_config(config, inputs)
    tokenizer_json = (source / TOKENIZER_FILE).read_text()
    text_tokenizer = without_image_token(tokenizer_json)
    fields["vocab_size"] = Tokenizer.from_str(text_tokenizer).get_vocab_size(with_added_tokens=True)
    fields[PROMPT_KEY] = {
        "template": inputs.template,
        "end_of_answer": inputs.tokens.eos_token,
        "pad_is_eos": Tokenizer.from_str(tokenizer_json).token_to_id(inputs.tokens.eos_token)
        == inputs.tokens.pad_token_id,
    }
    tensors = with_vocabulary(read_folder(source), fields["vocab_size"], fields["vocab_size"])
    if family.scaled and config.text_config.model_type == family.model_type:
        tensors = unfolded(tensors, scales_of(fields), projector_end(config))
    tower = {k.removeprefix(_TOWER): read for k, read in tensors.items() if k.startswith(_TOWER)}
    with new_folder(target) as folder:
        write_tensors(to_bunny(tensors, config), folder, dtype, max_shard_bytes=max_shard_bytes)
        _write_json(folder / "config.json", fields)
        (folder / TOKENIZER_FILE).write_text(text_tokenizer)
        _write_tokenizer_settings(inputs, text_tokenizer, folder)
        _write_tower(config.vision_config, tower, folder / OWN_FOLDER, dtype)


def _bunny_config(config: Any, inputs: Inputs) -> tuple[Family, dict[str, Any]]:
    original = getattr(config, "bunny_config", None)
    if original:
        family = family_of(original)
        fields = {**original, "unfreeze_vision_tower": True, "tie_word_embeddings": False}
        if (original.get("image_aspect_ratio") == "pad") != inputs.image.padding:  # trained further, in another way
            fields["image_aspect_ratio"] = _aspect(inputs)
        return family, fields
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
        decoder = minicpm_fields(decoder)
    scales = getattr(config, "vision_scales", None)
    return family, {
        **decoder,
        "architectures": [f"Bunny{_CLASS_NAMES[name]}ForCausalLM"],
        "model_type": name,
        "mm_vision_tower": OWN_FOLDER,
        "mm_hidden_size": config.vision_config.hidden_size * len(scales or [0]),
        "mm_projector_type": getattr(config, "projector_type", PLAIN_PROJECTOR),
        "use_mm_proj": True,
        "use_s2": bool(scales),
        **({"s2_scales": ",".join(map(str, scales))} if scales else {}),
        "image_aspect_ratio": _aspect(inputs),
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": getattr(text, "max_position_embeddings", 2048),
        "tie_word_embeddings": False,
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


def _write_tower(vision: PretrainedConfig, tensors: LazyTensors, folder: Path, dtype: torch.dtype | None) -> None:
    folder.mkdir()
    vision.save_pretrained(folder)
    write_tensors({f"vision_model.{name}": read for name, read in tensors.items()}, folder, dtype)


def _write_tokenizer_settings(inputs: Inputs, tokenizer_json: str, folder: Path) -> None:
    tokens, vocabulary = inputs.tokens, Tokenizer.from_str(tokenizer_json)
    begin = None if tokens.bos_token_id is None else vocabulary.id_to_token(tokens.bos_token_id)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokens.eos_token,
            "pad_token": vocabulary.id_to_token(tokens.pad_token_id),
            **({"bos_token": begin} if begin else {}),
            **({"chat_template": inputs.chat_template} if inputs.chat_template else {}),
            "padding_side": "right",
        },
    )


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
