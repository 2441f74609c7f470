"""Bunny checkpoints imported: the logits are Bunny's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bunny_oracle import Compared, checkpoint
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.models.bunny import import_bunny
from warren.models.tensors import read_folder
from warren.models.tokenizer import read_tokenizer

TOLERANCE = 1e-5
NAMES = ["bunny-phi", "bunny-llama", "bunny-qwen2", "bunny-phi-clip", "bunny-lora-qwen2", "bunny-pretrain-qwen2"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compared]:
    found: dict[str, Compared] = {}

    def get(name: str) -> Compared:
        if name not in found:
            needs_base = name in ("bunny-lora-qwen2", "bunny-pretrain-qwen2")
            options = {"base": checkpoint("base-llm-qwen2")} if needs_base else {}
            found[name] = Compared(name, tmp_path_factory.mktemp("imported") / name, **options)
        return found[name]

    return get


def assert_imports_as(expected: Compared, source: Path, target: Path) -> None:
    import_bunny(source, target, base=checkpoint("base-llm-qwen2"), vision_tower=checkpoint("towers/siglip-tiny"))
    one, other = (load_file(folder / "model.safetensors") for folder in (target, expected.folder))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_bunnys(name: str, imported: Callable[[str], Compared]) -> None:
    compared = imported(name)
    assert compared.single_difference() < TOLERANCE
    assert compared.text_difference() < TOLERANCE
    assert compared.batch_difference() < TOLERANCE
    found, expected = compared.greedy()
    assert found == expected


@pytest.mark.parametrize("name", ["bunny-phi", "bunny-llama", "bunny-qwen2"])
def test_inputs_carry_the_template_and_give_bunnys_ids(name: str, imported: Callable[[str], Compared]) -> None:
    compared = imported(name)
    inputs = Inputs.load(compared.folder)
    facts = json.loads((compared.source / "expected.json").read_text())
    assert inputs.template == "bunny"
    assert inputs.image.padding
    assert inputs.tokens.pad_token_id == facts["pad_token_id_for_training"]
    tokenizer = tokenizer_from_json((compared.folder / "tokenizer.json").read_text())
    assert tokenizer.token_to_id(inputs.tokens.eos_token) == facts["eos_token_id"]
    text = compared.processor(text=facts["text_prompt"])["input_ids"][0]
    assert text == compared.expected["text_input_ids"].tolist()


def test_a_trained_tower_comes_from_the_checkpoint_and_a_frozen_one_from_its_folder(
    imported: Callable[[str], Compared],
) -> None:
    name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    folder = load_file(checkpoint("towers/siglip-tiny") / "model.safetensors")[name.removeprefix("vision_tower.")]
    frozen = load_file(imported("bunny-qwen2").folder / "model.safetensors")[name]
    trained = load_file(imported("bunny-llama").folder / "model.safetensors")[name]
    assert torch.equal(frozen, folder)
    assert not torch.equal(trained, folder)


def test_small_shards_hold_the_same_and_load_the_same(tmp_path: Path, imported: Callable[[str], Compared]) -> None:
    import_bunny(checkpoint("bunny-phi"), tmp_path / "m", max_shard_bytes=200_000)
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 220_000 for shard in shards)
    whole = load_file(imported("bunny-phi").folder / "model.safetensors")
    parts = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_pickles_with_tensors_only_import_like_safetensors(tmp_path: Path, imported: Callable[[str], Compared]) -> None:
    source = tmp_path / "lora"
    source.mkdir()
    for file in checkpoint("bunny-lora-qwen2").iterdir():
        if file.name.startswith(("adapter_config", "config")):
            (source / file.name).write_bytes(file.read_bytes())
        elif file.suffix == ".safetensors":
            torch.save(load_file(file), source / f"{file.stem}.bin")
    assert_imports_as(imported("bunny-lora-qwen2"), source, tmp_path / "m")


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.", "model.model.", "model."])
def test_what_trained_beside_an_adapter_may_have_any_prefix_that_bunny_strips(
    prefix: str, tmp_path: Path, imported: Callable[[str], Compared]
) -> None:
    source = tmp_path / "lora"
    shutil.copytree(checkpoint("bunny-lora-qwen2"), source)
    file = source / "non_lora_trainables.safetensors"
    save_file({prefix + name[name.index("mm_projector.") :]: t for name, t in load_file(file).items()}, file)
    assert_imports_as(imported("bunny-lora-qwen2"), source, tmp_path / "m")


@pytest.mark.parametrize("prefix", ["base_model.model.model.mm_projector.", "mm_projector."])
def test_a_stage_1_projector_may_have_any_prefix(
    prefix: str, tmp_path: Path, imported: Callable[[str], Compared]
) -> None:
    source = tmp_path / "stage-1"
    shutil.copytree(checkpoint("bunny-pretrain-qwen2"), source)
    file = source / "mm_projector.safetensors"
    save_file({prefix + name.partition("mm_projector.")[2]: t for name, t in load_file(file).items()}, file)
    assert_imports_as(imported("bunny-pretrain-qwen2"), source, tmp_path / "m")


def test_safetensors_are_taken_before_old_pickles(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("bunny-qwen2"), tmp_path / "both")
    index = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "both" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert read_folder(tmp_path / "both").keys() == read_folder(checkpoint("bunny-qwen2")).keys()


def test_add_bos_token_decides_whether_a_llama_tokenizer_puts_one_in_front(tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint("bunny-llama") / file, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    begin = read_tokenizer(tmp_path)[0].bos_token_id
    assert begin is not None
    for kind, added, expected in (
        ("LlamaTokenizer", False, None),
        ("LlamaTokenizerFast", True, begin),
        ("PreTrainedTokenizerFast", False, begin),
    ):
        changed = settings | {"tokenizer_class": kind, "add_bos_token": added, "pad_token": "<|end_of_text|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        tokenizer, _ = read_tokenizer(tmp_path)
        assert tokenizer.bos_token_id == expected
        ids = tokenizer_from_json(tokenizer.json).encode("a").ids
        assert (ids[0] == begin) == (expected is not None)


def test_the_merged_adapter_is_bunnys_merge(tmp_path: Path, imported: Callable[[str], Compared]) -> None:
    import_bunny(checkpoint("bunny-lora-qwen2/merged"), tmp_path / "m")
    one = load_file(tmp_path / "m" / "model.safetensors")
    other = load_file(imported("bunny-lora-qwen2").folder / "model.safetensors")
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6
