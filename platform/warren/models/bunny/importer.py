"""From a published Bunny checkpoint to the Hugging Face LLaVA layout, tensor by tensor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warren.data.model_inputs import TrainedTokenizer
from warren.errors import ModelError
from warren.models.bunny.configuration import inputs_of_bunny, llava_config, text_config
from warren.models.bunny.families import FAMILIES, Family, family_of
from warren.models.bunny.names import to_llava
from warren.models.bunny.tower import read_tower
from warren.models.head import Head, appended_ids
from warren.models.llava_layout import new_folder, save_tensors
from warren.models.lora_merge import ADAPTER_CONFIG, merged, unwrapped
from warren.models.minicpm import granite_fields
from warren.models.pretrained import read_config
from warren.models.tensors import MAX_SHARD_BYTES, LazyTensors, has_weights, read_either, read_folder
from warren.models.tokenizer import check_named, has_tokenizer, read_tokenizer
from warren.models.vocabulary import num_rows, scaled_head, untied, with_vocabulary

_COPY = "model.vision_tower."
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A Bunny checkpoint of any kind, as if it were merged.

    Attributes:
        config: Its config.json.
        tensors: By the names of a merged checkpoint.
        tokenizer: The folder that holds its tokenizer.
        is_lora: Whether it has adapters. Bunny merges them and then cuts the vocabulary to the tokenizer's.
        has_tower_adapters: Whether its adapters change the vision tower too.
    """

    config: dict[str, Any]
    tensors: LazyTensors
    tokenizer: Path
    is_lora: bool = False
    has_tower_adapters: bool = False


def read_checkpoint(source: Path, base: Path | None = None) -> Checkpoint:
    """Read a checkpoint. Its files show its kind: LoRA (`adapter_config.json`), stage 1 (`mm_projector`) or whole.

    A whole checkpoint may have an `mm_projector` beside its weights; its own projector counts, as in Bunny.

    Args:
        source: The checkpoint's folder.
        base: The language model (or Bunny) that a LoRA or stage-1 checkpoint was trained from.

    Raises:
        ModelError: A file is missing or damaged, or `base` is missing or not needed.
    """
    if not source.is_dir():
        raise ModelError(f"{source} is no folder")
    config = read_config(source)
    family_of(config)
    lora = (source / ADAPTER_CONFIG).is_file()
    stage_1 = any((source / f"mm_projector.{ending}").is_file() for ending in ("bin", "safetensors"))
    if not lora and (not stage_1 or (base is None and has_weights(source))):
        if base is not None:
            raise ModelError(f"{source} is a whole checkpoint: it needs no --base")
        return Checkpoint(config, read_folder(source), source)
    if base is None:
        kind = "a LoRA adapter" if lora else "a stage-1 projector"
        raise ModelError(f"{source} is {kind}; give the model it was trained from as --base DIR")
    tensors, tokenizer = read_folder(base), source if has_tokenizer(source) else base
    if not lora:
        projector = read_either(source, "mm_projector")
        return Checkpoint(config, {**tensors, **{_of_projector(n): read for n, read in projector.items()}}, tokenizer)
    trained = read_either(source, "non_lora_trainables")
    # With `lora_bias: all` the adapter also lists the biases of a frozen tower, which equal those in its folder.
    tensors = merged({**tensors, **_unwrapped(trained)}, source, ignored=(_COPY,))
    in_tower = any(_COPY in name and ".lora_A." in name for name in read_either(source, "adapter_model"))
    return Checkpoint(config, tensors, tokenizer, True, in_tower)


def is_bunny(folder: Path) -> bool:
    """Tell whether a folder's config.json names a Bunny family."""
    return (folder / "config.json").is_file() and read_config(folder).get("model_type") in FAMILIES


def import_bunny(
    source: Path,
    target: Path,
    base: Path | None = None,
    vision_tower: Path | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Convert a checkpoint. Nothing appears at `target` unless everything fits.

    Args:
        source: Merged or full, LoRA, or stage 1.
        target: A folder that does not exist yet.
        base: For LoRA and stage 1, the model they were trained from.
        vision_tower: A tower folder, instead of the one in the checkpoint's configuration.
        dtype: Of the weights written. Float32 keeps every bit of a half-precision checkpoint and of its tower.
        max_shard_bytes: Weights are split into files of at most this.

    Raises:
        ModelError: Anything is missing, unknown or of the wrong shape.
    """
    checkpoint = read_checkpoint(source, base)
    family = family_of(checkpoint.config)
    tokenizer, num_text_tokens = _tokenizer(checkpoint.tokenizer, family)
    tower = read_tower(source, checkpoint.config, checkpoint.tensors, vision_tower, checkpoint.has_tower_adapters)
    kept = {n: r for n, r in checkpoint.tensors.items() if not n.startswith(_COPY) and n not in family.unused}
    rows = num_text_tokens if checkpoint.is_lora else max(num_text_tokens, num_rows(kept, _EMBEDDINGS))
    head = _head(checkpoint.config, family, kept, appended_ids(tokenizer, rows))
    text = text_config(checkpoint.config, family, max(rows, tokenizer.vocab_size), tokenizer)
    config = llava_config(checkpoint.config, tower.config, text, tokenizer, head)
    tensors = to_llava(kept, config)
    tensors = scaled_head(untied(tensors) if head.tied else tensors, 1.0 / head.divisor)
    tensors = with_vocabulary(tensors, rows, text.vocab_size)
    tensors |= {f"vision_tower.vision_model.{name}": read for name, read in tower.tensors.items()}
    inputs = inputs_of_bunny(checkpoint.config, family, config, tokenizer, tower.normalisation)
    with new_folder(target) as folder:
        save_tensors(tensors, config, inputs, tokenizer.json, folder, dtype, max_shard_bytes)


def _head(config: dict[str, Any], family: Family, tensors: LazyTensors, unpredicted_ids: tuple[int, ...]) -> Head:
    """Return how the head trains in Bunny. A head in the checkpoint counts as tied only if it equals the embeddings."""
    tied = bool(config.get("tie_word_embeddings", family.tied))
    if tied and _HEAD in tensors:
        tied = torch.equal(tensors[_HEAD](), tensors[_EMBEDDINGS]())
    divisor = granite_fields(config)["logits_scaling"] if family.scaled else 1.0
    return Head(unpredicted_ids, tied, divisor)


def _tokenizer(folder: Path, family: Family) -> tuple[TrainedTokenizer, int]:
    """Read the tokenizer as Bunny prepares it; one that names no eos or no pad is not the one it was trained with."""
    check_named(folder, pad=not family.pad_is_eos)
    return read_tokenizer(folder, family.end_of_answer, family.end_of_answer if family.pad_is_eos else None)


def _unwrapped(trained: LazyTensors) -> LazyTensors:
    """Strip what PEFT puts in front, by the rule of Bunny's loader: `base_model.`, then one `model.` of two."""
    names = {name: name.removeprefix("base_model.") for name in trained}
    if any(name.startswith("model.model.") for name in names.values()):
        names = {name: plain.removeprefix("model.") for name, plain in names.items()}
    return {unwrapped(names[name]): read for name, read in trained.items()}


def _of_projector(name: str) -> str:
    """Name a tensor of `mm_projector.bin` as in a merged checkpoint; Bunny takes any prefix."""
    _, separator, rest = name.partition("mm_projector.")
    return f"model.mm_projector.{rest}" if separator else name
