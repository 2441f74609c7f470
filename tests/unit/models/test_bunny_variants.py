"""Bunny checkpoints of less usual kinds: how towers, processors and adapters are told apart, and what is rounded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from bunny_oracle import checkpoint
from warren.config import LanguageModelConfig, ModelConfig, VisionTowerConfig
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import ConfigError, ModelError
from warren.models import import_bunny, inputs_of, merge_adapter, read_tokenizer

Tensors = dict[str, torch.Tensor]
PEFT = "base_model.model."
TOWER = "model.vision_tower.vision_tower.vision_model."
QUERY = f"{TOWER}encoder.layers.0.self_attn.q_proj"
ON_DISK = "vision_tower.vision_model."


def copy(name: str, folder: Path, **config: Any) -> Path:
    """Copy an oracle checkpoint, and change its config.json."""
    shutil.copytree(checkpoint(name), folder)
    edit(folder / "config.json", mm_vision_tower=str(checkpoint("towers/siglip-tiny")), **config)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change(file: Path, work: Callable[[Tensors], Tensors]) -> None:
    save_file(work(load_file(file)), file)


def imported(source: Path, target: Path, **options: Any) -> Tensors:
    import_bunny(source, target, **options)
    tensors: Tensors = load_file(target / "model.safetensors")
    return tensors


def tower_of(tensors: Tensors, prefix: str = ON_DISK) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("says", ["unfreeze_vision_tower", "continuous_training", None])
def test_a_checkpoint_uses_its_own_tower_where_bunny_does(says: str | None, tmp_path: Path) -> None:
    flags = {"unfreeze_vision_tower": False, "continuous_training": False} | ({says: True} if says else {})
    source = copy("bunny-llama", tmp_path / "source", **flags)
    found = tower_of(imported(source, tmp_path / "m"))
    own = tower_of(load_file(source / "model.safetensors"), TOWER)
    folder = tower_of(load_file(checkpoint("towers/siglip-tiny") / "model.safetensors"), "vision_model.")
    expected, other = (own, folder) if says else (folder, own)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not all(torch.equal(found[name], other[name]) for name in found)


def test_a_tower_that_should_be_in_the_checkpoint_and_is_not_is_an_error(tmp_path: Path) -> None:
    for says in ("unfreeze_vision_tower", "continuous_training"):
        source = copy("bunny-qwen2", tmp_path / says, **{says: True})
        kept = {n: t for n, t in load_file(source / "model.safetensors").items() if not n.startswith(TOWER)}
        save_file(kept, source / "model.safetensors")
        with pytest.raises(ModelError, match=f"config.json says {says}, but the checkpoint holds no vision tower"):
            import_bunny(source, tmp_path / "m")


@pytest.mark.parametrize("name", ["bunny-qwen2", "bunny-llama", "bunny-phi-clip"])
def test_images_are_normalised_as_the_towers_folder_says(name: str, tmp_path: Path) -> None:
    kind = "clip" if "clip" in name else "siglip"
    tower = tmp_path / f"{kind}-tower"
    shutil.copytree(checkpoint(f"towers/{kind}-tiny"), tower)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    edit(tower / "preprocessor_config.json", image_mean=mean, image_std=std)
    import_bunny(checkpoint(name), tmp_path / "m", vision_tower=tower)
    image = Inputs.load(tmp_path / "m").image
    assert (list(image.mean), list(image.std)) == (mean, std)
    processor = json.loads((tmp_path / "m" / "processor_config.json").read_text())["image_processor"]
    assert (processor["image_mean"], processor["image_std"]) == (mean, std)
    config = ModelConfig(
        vision_tower=VisionTowerConfig(family=kind, pretrained=str(tower)),  # type: ignore[arg-type]
        language_model=LanguageModelConfig(pretrained=str(checkpoint("base-llm-qwen2"))),
    )
    tokenizer, _ = read_tokenizer(checkpoint("base-llm-qwen2"))
    assert list(inputs_of(config, tokenizer).image.mean) == mean
    edit(tower / "preprocessor_config.json", do_normalize=False)
    with pytest.raises(ConfigError, match=r"model.vision_tower: .*do_normalize is False"):
        inputs_of(config, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_rescale": False}, "do_rescale is False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"resample": 2}, "resample is 2"),
        ({"size": {"height": 64, "width": 64}}, "size is {'height': 64"),
        ({"image_mean": [0.5]}, "image_mean is .0.5.; it must be three numbers"),
    ],
)
def test_a_processor_that_warren_does_not_follow_is_an_error(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("towers/siglip-tiny"), tmp_path / "tower")
    edit(tmp_path / "tower" / "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=f"preprocessor_config.json: {message}"):
        import_bunny(checkpoint("bunny-qwen2"), tmp_path / "m", vision_tower=tmp_path / "tower")


def tower_adapter(names: Tensors) -> Tensors:
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    return names | {f"{PEFT}{QUERY}.lora_A.weight": a, f"{PEFT}{QUERY}.lora_B.weight": b}


@pytest.mark.parametrize("trained", [True, False])
def test_adapters_inside_the_tower_give_the_tower_that_was_trained(trained: bool, tmp_path: Path) -> None:
    """Bunny's continuous training puts them there; of a tower that trains too, PEFT renames the adapted layers."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    shutil.copytree(checkpoint("bunny-lora-qwen2/merged"), base)
    source = copy("bunny-lora-qwen2", tmp_path / "lora", unfreeze_vision_tower=trained, vocab_size=420)
    change(source / "adapter_model.safetensors", tower_adapter)
    own = tower_of(load_file(base / "model.safetensors"), TOWER)
    if trained:
        own = {name: tensor + 0.1 for name, tensor in own.items()}
        layer = "encoder.layers.0.self_attn.q_proj."
        names = {n: n.replace(layer, f"{layer}base_layer.") for n in own}
        change(
            source / "non_lora_trainables.safetensors",
            lambda tensors: tensors | {f"{PEFT}{TOWER}{names[n]}": t for n, t in own.items()},
        )
    adapter = load_file(source / "adapter_model.safetensors")
    a, b = (adapter[f"{PEFT}{QUERY}.lora_{which}.weight"] for which in "AB")
    query = "encoder.layers.0.self_attn.q_proj.weight"
    own[query] = own[query] + (b @ a) * 16 / 4  # alpha over the rank
    found = tower_of(imported(source, tmp_path / "m", base=base))
    assert all(torch.allclose(found[name], own[name], atol=1e-6) for name in found)


def test_adapters_of_a_tower_that_the_base_lacks_are_named(tmp_path: Path) -> None:
    source = copy("bunny-lora-qwen2", tmp_path / "lora")
    change(source / "adapter_model.safetensors", tower_adapter)
    with pytest.raises(ModelError, match=rf"changes {QUERY.replace('.', '[.]')}, which the base does not have"):
        import_bunny(source, tmp_path / "m", base=checkpoint("base-llm-qwen2"))


def test_lora_bias_all_imports_with_the_biases_it_trained(tmp_path: Path) -> None:
    """PEFT then saves every bias there is: of adapted layers, of the projector, of a frozen tower."""
    source = copy("bunny-lora-qwen2", tmp_path / "lora")
    base = load_file(checkpoint("base-llm-qwen2") / "model.safetensors")
    biases = {name: tensor + 0.5 for name, tensor in base.items() if name.endswith(".bias")}
    assert biases
    tower = load_file(checkpoint("towers/siglip-tiny") / "model.safetensors")
    frozen = {f"model.vision_tower.vision_tower.{name}": t for name, t in tower.items() if name.endswith(".bias")}
    wrapped = {f"{PEFT}{name.removesuffix('bias')}base_layer.bias": tensor for name, tensor in biases.items()}
    plain = {f"{PEFT}{name}": tensor for name, tensor in frozen.items()}
    change(source / "adapter_model.safetensors", lambda tensors: tensors | wrapped | plain)
    change(source / "non_lora_trainables.safetensors", lambda tensors: tensors | wrapped)
    edit(source / "adapter_config.json", bias="all")
    found = imported(source, tmp_path / "m", base=checkpoint("base-llm-qwen2"))
    for name, tensor in biases.items():
        assert torch.equal(found[f"language_model.{name}"], tensor)
    before = imported(copy("bunny-lora-qwen2", tmp_path / "plain"), tmp_path / "n", base=checkpoint("base-llm-qwen2"))
    assert all(torch.equal(found[n], before[n]) for n in before if n.removeprefix("language_model.") not in biases)


def test_a_projector_beside_a_whole_checkpoint_changes_nothing(tmp_path: Path) -> None:
    expected = imported(checkpoint("bunny-qwen2"), tmp_path / "expected")
    source = copy("bunny-qwen2", tmp_path / "both")
    projector = load_file(checkpoint("bunny-pretrain-qwen2") / "mm_projector.safetensors")
    torch.save(projector, source / "mm_projector.bin")
    found = imported(source, tmp_path / "m")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with_base = imported(source, tmp_path / "with-base", base=checkpoint("base-llm-qwen2"))  # as Bunny does then
    assert torch.equal(with_base["multi_modal_projector.linear_1.weight"], projector["model.mm_projector.0.weight"])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_an_adapter_is_added_in_float32_and_rounded_once_where_it_is_written(half: torch.dtype, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(checkpoint("base-llm-qwen2"), base)
    change(base / "model.safetensors", lambda tensors: {name: t.to(half) for name, t in tensors.items()})
    source = copy("bunny-lora-qwen2", tmp_path / "lora")
    adapter, weights = (
        load_file(f / n) for f, n in ((source, "adapter_model.safetensors"), (base, "model.safetensors"))
    )
    settings = json.loads((source / "adapter_config.json").read_text())
    found = imported(source, tmp_path / "m", base=base)
    layers = [name.split(".lora_A.")[0] for name in adapter if ".lora_A." in name]
    rounded = imported(source, tmp_path / "half", base=base, dtype=half)
    for layer in layers:
        a, b = (adapter[f"{layer}.lora_{which}.weight"].float() for which in "AB")
        name = layer.removeprefix(PEFT)
        exact = weights[f"{name}.weight"].float() + (b @ a) * (settings["lora_alpha"] / settings["r"])
        assert torch.allclose(found[f"language_model.{name}.weight"], exact, atol=1e-7)
        assert torch.equal(rounded[f"language_model.{name}.weight"], found[f"language_model.{name}.weight"].to(half))


def test_a_merge_keeps_the_bases_type_also_where_the_adapter_holds_whole_modules(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    import_bunny(checkpoint("bunny-qwen2"), base, dtype=torch.float16)
    weights = load_file(base / "model.safetensors")
    adapter.mkdir()
    layer, projector = "model.language_model.layers.0.self_attn.q_proj", "model.multi_modal_projector.linear_1.weight"
    a, b, whole = torch.randn(4, 64), torch.randn(64, 4), torch.randn(64, 32)
    names = {f"{PEFT}{layer}.lora_A.weight": a, f"{PEFT}{layer}.lora_B.weight": b, f"{PEFT}{projector}": whole}
    save_file(names, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, "r": 4}))
    merge_adapter(adapter, base, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(merged[name], (weights[name].float() + 2.0 * (b @ a)).half())
    assert torch.equal(merged["multi_modal_projector.linear_1.weight"], whole.half())


@pytest.mark.parametrize("name", ["bunny-llama", "bunny-phi"])
def test_two_images_in_one_message_give_bunnys_ids(name: str, tmp_path: Path) -> None:
    """Bunny tokenises the text around each mark alone, keeps one BOS, and puts each image's features at its mark."""
    import_bunny(checkpoint(name), tmp_path / "m")
    inputs, text = Inputs.load(tmp_path / "m"), (tmp_path / "m" / "tokenizer.json").read_text()
    tokenizer, original = tokenizer_from_json(text), Tokenizer.from_file(str(checkpoint(name) / "tokenizer.json"))
    question = f"{IMAGE_MARK}\n{IMAGE_MARK}\nWhich is larger? {IMAGE_MARK} is the third."
    ids = inputs.encode_prompt((Turn("user", question),), tokenizer, num_images=3)
    rendered = f"{inputs.prompts.system} USER: {question} ASSISTANT:"  # type: ignore[union-attr]
    begin = inputs.tokens.bos_token_id
    expected = [] if begin is None else [begin]
    for number, piece in enumerate(rendered.split(IMAGE_MARK)):
        expected += [inputs.tokens.image_token_id] * inputs.tokens.tokens_per_image if number else []
        piece_ids = original.encode(piece).ids
        expected += piece_ids[1:] if piece_ids and piece_ids[0] == begin else piece_ids
    assert ids.tolist() == expected
