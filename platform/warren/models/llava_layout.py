"""A model on disk: the Hugging Face LLaVA layout that transformers, vLLM and SGLang load, plus its inputs.

Names and processor fields that vLLM needs and transformers' own `save_pretrained` does not write: the tower under
`vision_tower.vision_model.*` (transformers 5 drops `vision_model`), and `crop_size` in the image processor.
"""

import json
import math
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
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from warren.compat.transformers import LLAVA_DISK_NAMES, TOWERS_WITHOUT_VISION_MODEL
from warren.data.images import ImageSpec
from warren.data.model_inputs import TOKENIZER_FILE, Inputs
from warren.errors import ModelError, ReleaseError
from warren.models.extended_llava import MODEL_CLASSES, ExtendedLlavaConfig
from warren.models.head import unsampled_ids
from warren.models.quiet import quiet_transformers
from warren.models.tensors import MAX_SHARD_BYTES, WEIGHTS_FILE, LazyTensors, write_tensors
from warren.storage import apply_umask


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
        {disk_name(name, config): tensor.detach().cpu().contiguous() for name, tensor in state.items()},
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
        model = MODEL_CLASSES[config.model_type](config)
    return {disk_name(name, config): tensor.shape for name, tensor in model.state_dict().items()}


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
        apply_umask(partial)  # safetensors writes files that no other user may read
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_rest(config: Any, inputs: Inputs, tokenizer_json: str, folder: Path) -> None:
    config.architectures = [MODEL_CLASSES[config.model_type].__name__]
    config.save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer_json)
    _processor(inputs, config, folder).save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer_json)  # the bytes trained with, not a re-serialised copy
    tokenizer = Tokenizer.from_str(tokenizer_json)
    GenerationConfig(
        eos_token_id=tokenizer.token_to_id(inputs.tokens.eos_token),
        pad_token_id=inputs.tokens.pad_token_id,
        suppress_tokens=unsampled_ids(tokenizer, config.text_config.vocab_size, inputs.tokens.image_token_id),
    ).save_pretrained(folder)
    inputs.save(folder)


def load_bundle(folder: Path) -> tuple[LlavaForConditionalGeneration, Inputs, str]:
    """Load a model, its inputs and the text of its tokenizer, and check that they fit each other.

    Raises:
        ReleaseError: A file is missing, or the parts contradict each other.
    """
    inputs = Inputs.load(folder)
    try:
        tokenizer_json = (folder / TOKENIZER_FILE).read_text()
        with quiet_transformers():
            model, report = _class_of(folder).from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ReleaseError(f"{folder} does not load: {error}") from None
    if report["missing_keys"]:
        raise ReleaseError(f"{folder} lacks {', '.join(sorted(report['missing_keys'])[:4])}: it is not complete")
    if report["unexpected_keys"]:
        names = ", ".join(sorted(report["unexpected_keys"])[:4])
        raise ReleaseError(f"{folder} holds {names}, which its config.json has no place for: they are not of one model")
    config = model.config
    expected = {
        "image token id": (config.image_token_index, inputs.tokens.image_token_id),
        "tokens per image": (config.image_seq_length, inputs.tokens.tokens_per_image),
        "image size": (image_size_px(config), inputs.image.size_px),
    }
    wrong = [f"{what}: model {a}, inputs {b}" for what, (a, b) in expected.items() if a != b]
    largest = max(Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True).values())
    if largest >= config.text_config.vocab_size:
        wrong.append(f"vocabulary: model {config.text_config.vocab_size}, tokenizer needs {largest + 1}")
    if wrong:
        raise ReleaseError(f"{folder}: model and inputs do not belong together ({'; '.join(wrong)})")
    return model.eval(), inputs, tokenizer_json


def image_size_px(config: Any) -> int:
    """Return the height and width of a model's images: the largest scale where there are several."""
    return int(max(getattr(config, "vision_scales", None) or [config.vision_config.image_size]))


def read_model_config(folder: Path) -> Any:
    """Read the configuration of a model that Warren wrote.

    Raises:
        ReleaseError: There is none, or it is of another kind.
    """
    return _class_of(folder).config_class.from_pretrained(folder)


def _class_of(folder: Path) -> type[LlavaForConditionalGeneration]:
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{folder} has no readable config.json: {error}") from None
    if model_type not in MODEL_CLASSES:
        raise ReleaseError(f"{folder}: model_type is {model_type!r}; Warren writes {', '.join(MODEL_CLASSES)}")
    return MODEL_CLASSES[model_type]


def disk_name(name: str, config: Any) -> str:
    """Return what a tensor of the model in memory is called on disk; a name on disk is returned as it is."""
    flat = config.vision_config.model_type in TOWERS_WITHOUT_VISION_MODEL and not isinstance(
        config, ExtendedLlavaConfig
    )
    if flat and name.startswith("model.vision_tower."):
        return name.removeprefix("model.")
    return next((new + name.removeprefix(old) for old, new in LLAVA_DISK_NAMES if name.startswith(old)), name)


def _patch_px(config: Any) -> int:
    """Return what the processor must divide the image's side by to count its image tokens."""
    if isinstance(config, ExtendedLlavaConfig):
        return int(image_size_px(config) // math.isqrt(config.image_seq_length))
    return int(config.vision_config.patch_size)


def _image_processor(spec: ImageSpec) -> LlavaImageProcessorPil:
    """Return the image processor that does what `to_pixels` does."""
    square = {"height": spec.size_px, "width": spec.size_px}
    crops = not spec.padding and spec.resize != "stretch"
    return LlavaImageProcessorPil(
        do_pad=spec.padding,
        size={"shortest_edge": spec.size_px} if crops else square,
        do_center_crop=crops,
        crop_size=square,  # vLLM counts image tokens from it, also where nothing is cropped
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def _processor(inputs: Inputs, config: Any, folder: Path) -> LlavaProcessor:
    image_processor = _image_processor(inputs.image)
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
        patch_size=_patch_px(config),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if config.vision_feature_select_strategy == "full" else 1,
        image_token="<image>",
    )
