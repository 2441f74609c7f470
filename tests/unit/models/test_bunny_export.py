"""What Bunny's layout must hold for Bunny: the rules of transformers 4.41, tokenizers 0.19 and its own loader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bunny_oracle import checkpoint
from factories import tiny_model_config
from warren.config import VisionTowerConfig
from warren.data.model_inputs import Inputs
from warren.errors import ModelError
from warren.models import build_model, export_bunny, import_bunny, inputs_of, load, save_model, train_tokenizer
from warren.models.bunny.tokenizer import in_old_format

TOKENIZER = train_tokenizer(["USER: what colour is it? ASSISTANT: red"] * 4, 300)
TOWER = "model.vision_tower."  # what Bunny takes off before it loads a trained tower, strictly
SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
EVA_WIDTH, EVA_BLOCKS, EVA_CLASSES = 32, 2, 768


def built(family: str, model_type: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = tiny_model_config()
        tower = VisionTowerConfig(family=family, config=SIZES | {"num_attention_heads": 2})  # type: ignore[arg-type]
        extra = {"pad_token_id": 1} if model_type == "phi3" else {}
        decoder = config.language_model.model_copy(
            update={"model_type": model_type, "config": config.language_model.config | extra}
        )
        config = config.model_copy(update={"vision_tower": tower, "language_model": decoder})
        model = build_model(config, TOKENIZER, seed=1)
        folder.mkdir()
        save_model(model.state_dict(), model.config, inputs_of(config, TOKENIZER), TOKENIZER.json, folder)

    return write


def imported(name: str) -> Callable[[Path], None]:
    base = checkpoint("base-llm-qwen2") if "lora" in name or "pretrain" in name else None
    return lambda folder: import_bunny(checkpoint(name), folder, base)


MODELS: dict[str, Callable[[Path], None]] = {
    f"{family} {model_type}": built(family, model_type)
    for family, model_type in (
        ("siglip", "qwen2"), ("clip", "llama"), ("eva-clip", "phi"), ("siglip", "phi3"), ("clip", "stablelm"),
    )
}  # fmt: skip
for oracle in ("bunny-llama", "bunny-phi", "bunny-lora-qwen2", "bunny-pretrain-qwen2"):
    MODELS[oracle] = imported(oracle)


@pytest.mark.parametrize("name", MODELS)
def test_an_export_keeps_the_rules_of_the_program_it_is_for(name: str, tmp_path: Path) -> None:
    MODELS[name](tmp_path / "llava")
    export_bunny(tmp_path / "llava", tmp_path / "bunny")
    config = read(tmp_path / "bunny" / "config.json")
    check_tokenizer(tmp_path / "bunny", Inputs.load(tmp_path / "llava"), config)
    check_tower(tmp_path / "bunny", config, is_new=" " in name)
    weights = load_file(tmp_path / "bunny" / "model.safetensors")
    assert len(weights["model.embed_tokens.weight"]) == len(weights["lm_head.weight"]) == config["vocab_size"]
    ids, pixels = torch.tensor([[5, 9, 30, 41, 7]]), None
    with torch.no_grad():
        one, other = (load(tmp_path / n)[0](input_ids=ids, pixel_values=pixels).logits for n in ("llava", "bunny"))
    assert torch.equal(one, other)


def read(file: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.read_text())
    return value


def check_tokenizer(folder: Path, inputs: Inputs, config: dict[str, Any]) -> None:
    """Check tokenizer.json by the format of tokenizers 0.19, and that all files name the same special tokens."""
    tree, settings = read(folder / "tokenizer.json"), read(folder / "tokenizer_config.json")
    vocabulary = dict(tree["model"]["vocab"]) | {token["content"]: token["id"] for token in tree["added_tokens"]}
    for merge in tree["model"]["merges"]:
        assert isinstance(merge, str)
        left, right = merge.split(" ")  # exactly two parts
        assert {left, right, left + right} <= vocabulary.keys()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= config["vocab_size"]
    assert settings["eos_token"] == inputs.tokens.eos_token
    end, generation = vocabulary[settings["eos_token"]], read(folder / "generation_config.json")
    assert config["eos_token_id"] == generation["eos_token_id"] == end
    assert vocabulary[settings["pad_token"]] == generation["pad_token_id"] == inputs.tokens.pad_token_id
    assert config.get("pad_token_id") in (None, inputs.tokens.pad_token_id)


def check_tower(folder: Path, config: dict[str, Any], is_new: bool) -> None:
    """Check the tower as `build_vision_tower` chooses its encoder and the encoder reads it; paths are the folder's."""
    name = config["mm_vision_tower"]
    kind = next(kind for kind in ("sig", "eva", "clip") if kind in name.lower())  # Bunny's order
    assert config["unfreeze_vision_tower"]
    held = {n.removeprefix(TOWER): t for n, t in load_file(folder / "model.safetensors").items() if n.startswith(TOWER)}
    if not is_new:  # the name is the original's
        return
    assert config["mm_hidden_size"] == SIZES["hidden_size"]
    if kind == "eva":
        check_eva(torch.load(folder / name, weights_only=True), held)
        return
    assert read(folder / name / "config.json")["image_size"] == SIZES["image_size"]
    processor = read(folder / name / "preprocessor_config.json")
    square = {"height": 32, "width": 32}
    assert processor["size"] == (square if kind == "sig" else {"shortest_edge": 32})
    assert processor["image_mean"] == pytest.approx([0.5] * 3 if kind == "sig" else [0.4815, 0.4578, 0.4082], abs=1e-4)
    assert (processor["resample"], processor["do_normalize"], processor["do_rescale"]) == (3, True, True)
    alone = load_file(folder / name / "model.safetensors")
    assert alone.keys() == {n.removeprefix("vision_tower.") for n in held}
    assert all(name.startswith("vision_model.") for name in alone)


def check_eva(alone: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> None:
    """Check the tensors that Bunny's EVA-CLIP loads strictly: also the ones that nothing but its constructor needs."""
    assert {n.removeprefix("visual.") for n in alone} == {n.removeprefix("vision_tower.model.") for n in held}
    assert alone["visual.head.weight"].shape == (EVA_CLASSES, EVA_WIDTH)
    assert alone["visual.head.bias"].shape == (EVA_CLASSES,)
    owners = ["visual.rope", *(f"visual.blocks.{number}.attn.rope" for number in range(EVA_BLOCKS))]
    side, half = 4, EVA_WIDTH // 2 // 2  # patches a side; half a head's width
    angles = torch.arange(side) / side * 16
    turns = torch.outer(angles, 10000.0 ** -(torch.arange(0, half, 2) / half)).repeat_interleave(2, dim=1)
    grid = torch.cat([turns[:, None].expand(-1, side, -1), turns[None].expand(side, -1, -1)], dim=2).flatten(0, 1)
    for owner in owners:
        torch.testing.assert_close(alone[f"{owner}.freqs_cos"], grid.cos())
        torch.testing.assert_close(alone[f"{owner}.freqs_sin"], grid.sin())


def test_the_rotary_tables_of_an_export_are_those_that_bunny_saved(tmp_path: Path) -> None:
    source = checkpoint("bunny-phi-eva")
    import_bunny(source, tmp_path / "llava")
    export_bunny(tmp_path / "llava", tmp_path / "bunny", torch.float16)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "bunny"))
    assert before.keys() == after.keys()
    tables = [name for name in before if ".rope." in name]
    assert len(tables) == 8
    assert all(torch.allclose(before[name].half(), after[name], atol=1e-3) for name in tables)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}


def test_a_tokenizer_that_the_old_format_cannot_hold_is_an_error() -> None:
    tree: dict[str, Any] = {"model": {"vocab": {}, "merges": [["a b", "c"]]}}
    with pytest.raises(ModelError, match=r"cannot read the merge \['a b', 'c'\]: a part of it holds a space"):
        in_old_format(json.dumps(tree))
    tree = {"model": {"vocab": {}}, "normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}]}}
    with pytest.raises(ModelError, match="has no normalizer of type ByteLevel"):
        in_old_format(json.dumps(tree))
    kept = {"model": {"vocab": {}, "merges": ["a b", ["c", "d"]]}}
    assert json.loads(in_old_format(json.dumps(kept)))["model"]["merges"] == ["a b", "c d"]


def test_a_small_tower_trained_and_exported_comes_back_whole(tmp_path: Path) -> None:
    for family in ("siglip", "clip", "eva-clip"):
        built(family, "qwen2")(tmp_path / family)
        export_bunny(tmp_path / family, tmp_path / f"{family}-bunny", max_shard_bytes=30_000)
        import_bunny(tmp_path / f"{family}-bunny", tmp_path / f"{family}-again")
        one, other = (load_file(tmp_path / n / "model.safetensors") for n in (family, f"{family}-again"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
