"""Broken checkpoints: each is one named error, and nothing is left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bunny_oracle import checkpoint
from warren.errors import ModelError
from warren.models.bunny import import_bunny
from warren.models.tensors import read_file


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def changed_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensor = tensors.pop(name)
        if change is not None:
            tensors[name] = change(tensor).contiguous()
        save_file(tensors, folder / "model.safetensors")

    return apply


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without_eos(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|other|>"))
    (folder / "tokenizer_config.json").unlink()


def unnamed(*keys: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({k: v for k, v in settings.items() if k not in keys}))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown model type": (changed_config(model_type="bunny-mamba"), "'bunny-mamba'; known are bunny-llama"),
    "missing tensor": (changed_tensor("model.norm.weight", None), "1 missing: language_model.model.norm.weight"),
    "wrong shape": (
        changed_tensor("model.layers.0.mlp.up_proj.weight", lambda t: t[:, :8]),
        r"up_proj.weight has shape \[96, 8\], the model needs \[96, 64\]",
    ),
    "projector too wide": (
        changed_tensor("model.mm_projector.0.weight", lambda t: t.repeat(1, 3)),
        r"linear_1.weight has shape \[64, 96\], the model needs \[64, 32\]",
    ),
    "no head": (changed_tensor("lm_head.weight", None), "lacks language_model.lm_head.weight"),
    "use_s2 missing": (
        changed_config(mm_hidden_size=96),
        "mm_hidden_size is 96, but use_s2 is False and so the vision tower gives 32 features.*set use_s2 to true",
    ),
    "unknown projector": (
        changed_config(mm_projector_type="qformer"),
        "mm_projector_type is 'qformer': no projector named 'qformer'; valid: linear",
    ),
    "tokenizer without eos": (unnamed("eos_token"), "lacks eos_token .eos_token is None"),
    "tokenizer without pad": (unnamed("pad_token"), "lacks pad_token .pad_token is None, unk_token is None"),
    "damaged prompt": (changed_config(warren_prompt={"colour": 1}), "warren_prompt is {'colour': 1}"),
    "vocabulary too small": (
        changed_tensor("model.embed_tokens.weight", lambda t: t[:400]),
        "400 rows of embeddings, 420 tokens",
    ),
    "truncated file": (cut_short, "model.safetensors is damaged or cut short"),
    "no weights": (without("model.safetensors"), "has no weights"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer"),
    "no end of answer": (without_eos, "has no token '<|endoftext|>'"),
    "unknown tower": (changed_config(mm_vision_tower="nobody/tower"), "'nobody/tower', which is nowhere here"),
    "quantised": (changed_config(quantization_config={"bits": 4}), "is quantised"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_checkpoint_is_a_named_error_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(checkpoint("bunny-qwen2"), source)
    breaks, message = CASES[case]
    changed_config(mm_vision_tower=str(checkpoint("towers/siglip-tiny")))(source)
    breaks(source)
    with pytest.raises(ModelError, match=message.replace("|", r"\|")):
        import_bunny(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(checkpoint("bunny-pretrain-qwen2") / "config.json", source)
    torch.save({"model.mm_projector.0.weight": Code()}, source / "mm_projector.bin")
    with pytest.raises(ModelError, match="refused: it holds more than tensors"):
        import_bunny(source, tmp_path / "m", base=checkpoint("base-llm-qwen2"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_damaged_pickle_is_a_named_error(kept: float, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    tensors = {"model.mm_projector.0.weight": torch.ones(64, 64), "model.mm_projector.0.bias": torch.ones(64)}
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelError, match=r"mm_projector\.bin is .*damaged"):
        read_file(file)


def test_a_page_of_text_instead_of_a_pickle_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "mm_projector.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="more than tensors, or is damaged"):
        read_file(tmp_path / "mm_projector.bin")


def test_a_base_is_asked_for_where_it_is_needed_and_only_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LoRA adapter; give the model it was trained from as --base"):
        import_bunny(checkpoint("bunny-lora-qwen2"), tmp_path / "m")
    with pytest.raises(ModelError, match="stage-1 projector; give"):
        import_bunny(checkpoint("bunny-pretrain-qwen2"), tmp_path / "m")
    with pytest.raises(ModelError, match="needs no --base"):
        import_bunny(checkpoint("bunny-qwen2"), tmp_path / "m", base=checkpoint("base-llm-qwen2"))


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ModelError, match="exists already"):
        import_bunny(checkpoint("bunny-qwen2"), tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
