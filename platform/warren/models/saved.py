"""A model on disk: the Hugging Face LLaVA layout that transformers, vLLM and SGLang load, plus its inputs.

Names and processor fields that vLLM needs and transformers' own `save_pretrained` does not write: the tower under
`vision_tower.vision_model.*` (transformers 5 drops `vision_model`), and `crop_size` in the image processor.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from warren.data.inputs import Inputs
from warren.errors import ModelError, ReleaseError
from warren.models.tensors import MAX_SHARD_BYTES, WEIGHTS_FILE, LazyTensors, write_tensors

TOKENIZER_FILE = "tokenizer.json"

_DISK_NAMES = (  # in memory (transformers 5) → on disk
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def save_model(state: dict[str, torch.Tensor], config: Any, inputs: Inputs, tokenizer_json: str, folder: Path) -> None:
    """Write weights, configuration, processor, tokenizer and inputs.

    Args:
        state: The model's state dict, by in-memory names.
        config: Its `LlavaConfig`.
        inputs: What the model was trained on; serving refuses anything else.
        tokenizer_json: The text of its `tokenizer.json`.
        folder: An existing local folder.
    """
    save_file(
        {_disk_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    _save_rest(config, inputs, tokenizer_json, folder)


def save_tensors(
    tensors: LazyTensors,
    config: Any,
    inputs: Inputs,
    tokenizer_json: str,
    folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the same as `save_model` from tensors by their names on disk, a shard at a time.

    Raises:
        ModelError: The tensors are not exactly those the configuration asks for.
    """
    write_tensors(tensors, folder, dtype, expected_shapes(config), max_shard_bytes)
    if dtype is not None:
        config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
    _save_rest(config, inputs, tokenizer_json, folder)


def expected_shapes(config: Any) -> dict[str, torch.Size]:
    """Return the names on disk and shapes of a model, without allocating it."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {_disk_name(name): tensor.shape for name, tensor in model.state_dict().items()}


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that appears as `target` only when the block ends without an error.

    Raises:
        ModelError: `target` exists already and is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists already; nothing is overwritten, name a new folder")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_rest(config: Any, inputs: Inputs, tokenizer_json: str, folder: Path) -> None:
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer_json)
    _processor(inputs, config, folder).save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer_json)  # the bytes trained with, not a re-serialised copy
    end = Tokenizer.from_str(tokenizer_json).token_to_id(inputs.tokens.eos_token)
    GenerationConfig(eos_token_id=end, pad_token_id=inputs.tokens.pad_token_id).save_pretrained(folder)
    inputs.save(folder)


def load(folder: str | Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a model and its processor from a local folder that Warren wrote.

    The model takes `input_ids` with one image token per visual feature, `pixel_values` and `attention_mask`.

    Raises:
        ReleaseError: The folder is no such model.
    """
    folder = Path(folder)
    model, _, _ = load_bundle(folder)
    return model, LlavaProcessor.from_pretrained(folder)


def load_bundle(folder: Path) -> tuple[LlavaForConditionalGeneration, Inputs, str]:
    """Load a model, its inputs and the text of its tokenizer, and check that they fit each other.

    Raises:
        ReleaseError: A file is missing, or the parts contradict each other (invariant 12).
    """
    inputs = Inputs.load(folder)
    try:
        tokenizer_json = (folder / TOKENIZER_FILE).read_text()
        model, found = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ReleaseError(f"{folder} does not load: {error}") from None
    if found["missing_keys"]:
        raise ReleaseError(f"{folder} lacks {', '.join(sorted(found['missing_keys'])[:4])}: it is not complete")
    config = model.config
    expected = {
        "image token id": (config.image_token_index, inputs.tokens.image_token_id),
        "tokens per image": (config.image_seq_length, inputs.tokens.tokens_per_image),
        "image size": (config.vision_config.image_size, inputs.image.size_px),
    }
    wrong = [f"{what}: model {a}, inputs {b}" for what, (a, b) in expected.items() if a != b]
    largest = max(Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True).values())
    if largest >= config.text_config.vocab_size:
        wrong.append(f"vocabulary: model {config.text_config.vocab_size}, tokenizer needs {largest + 1}")
    if wrong:
        raise ReleaseError(f"{folder}: model and inputs do not belong together ({'; '.join(wrong)})")
    return model.eval(), inputs, tokenizer_json


def _disk_name(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in _DISK_NAMES if name.startswith(old)), name)


def _processor(inputs: Inputs, config: Any, folder: Path) -> LlavaProcessor:
    size = {"height": inputs.image.size_px, "width": inputs.image.size_px}
    image_processor = SiglipImageProcessorPil(
        size=size,
        crop_size=size,  # vLLM counts image tokens from it
        do_center_crop=False,
        image_mean=list(inputs.image.mean),
        image_std=list(inputs.image.std),
    )
    vocabulary = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / TOKENIZER_FILE),
        eos_token=inputs.tokens.eos_token,
        pad_token=vocabulary.id_to_token(inputs.tokens.pad_token_id),
        additional_special_tokens=["<image>"],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if config.vision_feature_select_strategy == "full" else 1,
        image_token="<image>",
    )
