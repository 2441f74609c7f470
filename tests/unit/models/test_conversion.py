"""Out of the LLaVA layout and between models: Bunny's layout and back, adapters, averages, and the job around them."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bunny_oracle import checkpoint
from factories import tiny_model_config
from warren.cli.convert import main
from warren.data.model_inputs import INPUTS_FILE, Inputs
from warren.errors import ModelError, ReleaseError
from warren.models import (
    average_models,
    build_model,
    export_model,
    import_bunny,
    inputs_of,
    load,
    merge_adapter,
    save_model,
)
from warren.models.tokenizer import train_tokenizer

TOWER = "model.vision_tower."
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] != 'user' %}<|end_of_text|>{% endif %}{% endfor %}"
)


def run(*arguments: str | Path) -> int:
    return main("", [str(argument) for argument in arguments])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def tiny(folder: Path, seed: int) -> Path:
    tokenizer = train_tokenizer(["USER: what colour is it? ASSISTANT: red"] * 4, 300)
    config = tiny_model_config()
    model = build_model(config, tokenizer, seed)
    folder.mkdir()
    save_model(model.state_dict(), model.config, inputs_of(config, tokenizer), tokenizer.json, folder)
    return folder


@pytest.mark.parametrize("name", ["bunny-phi", "bunny-llama", "bunny-qwen2"])
def test_a_checkpoint_comes_back_from_the_llava_layout(name: str, tmp_path: Path) -> None:
    source = checkpoint(name)
    assert run("import", source, tmp_path / "llava") == 0
    assert run("export", "--layout", "bunny", tmp_path / "llava", tmp_path / "bunny") == 0
    before, after = weights(source), weights(tmp_path / "bunny")
    assert before.keys() == after.keys()
    trained = json.loads((source / "config.json").read_text())["unfreeze_vision_tower"]
    compared = [n for n in before if trained or not n.startswith(TOWER)]  # else the folder's tower was taken
    assert all(torch.equal(before[n].float(), after[n]) for n in compared)
    config = json.loads((tmp_path / "bunny" / "config.json").read_text())
    ours = ("unfreeze_vision_tower", "warren_prompt")
    original = json.loads((source / "config.json").read_text())
    assert {k: v for k, v in config.items() if k not in ours} == {k: v for k, v in original.items() if k not in ours}
    vocabulary = json.loads((tmp_path / "bunny" / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary == json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]


def test_a_model_of_warren_goes_to_bunny_and_both_load_the_same(tmp_path: Path) -> None:
    source = tiny(tmp_path / "m", seed=3)
    export_model("bunny", source, tmp_path / "bunny")
    ids = torch.tensor([[5, *[2] * 16, 9, 30]])
    pixels = torch.randn(1, 3, 32, 32)
    image = load(source)[0].config.image_token_id
    assert image == 2
    with torch.no_grad():
        expected = load(source)[0](input_ids=ids, pixel_values=pixels).logits
        found = load(tmp_path / "bunny")[0](input_ids=ids, pixel_values=pixels).logits
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["bunny-qwen2-s2", "bunny-phi-eva", "projectors/bunny-phi-sppv1"])
def test_an_extended_checkpoint_comes_back_too(name: str, tmp_path: Path) -> None:
    source = checkpoint(name)
    import_bunny(source, tmp_path / "llava")
    export_model("bunny", tmp_path / "llava", tmp_path / "bunny")
    before, after = weights(source), weights(tmp_path / "bunny")
    assert before.keys() == after.keys()
    assert all(before[n].shape == after[n].shape for n in before)
    # A frozen tower was taken from its folder; what came of it is compared below.
    assert all(torch.equal(before[n], after[n]) for n in after if not n.startswith(TOWER))
    import_bunny(tmp_path / "bunny", tmp_path / "again")
    assert all(torch.equal(t, weights(tmp_path / "again")[n]) for n, t in weights(tmp_path / "llava").items())


def test_an_average_is_the_weighted_sum_of_every_tensor(tmp_path: Path) -> None:
    one, other = tiny(tmp_path / "a", seed=1), tiny(tmp_path / "b", seed=2)
    assert run("average", one, other, "--weight", "0.3", tmp_path / "c") == 0
    a, b, c = weights(one), weights(other), weights(tmp_path / "c")
    assert all(torch.allclose(c[name], 0.3 * a[name] + 0.7 * b[name], atol=1e-7) for name in a)
    assert c.keys() == a.keys()
    load(tmp_path / "c")


def test_different_models_have_no_average(tmp_path: Path) -> None:
    one, other = tiny(tmp_path / "a", seed=1), tiny(tmp_path / "b", seed=2)
    with pytest.raises(ModelError, match="must be from 0 to 1"):
        average_models(one, other, 1.5, tmp_path / "c")
    tensors = load_file(other / "model.safetensors")
    name = "multi_modal_projector.linear_1.bias"
    save_file(tensors | {name: tensors[name][:5].clone()}, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"linear_1.bias has shape \[32\] in the first model and \[5\] in the second"):
        average_models(one, other, 0.5, tmp_path / "c")
    tensors.pop(name)
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ModelError, match="are different models"):
        average_models(one, other, 0.5, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_adapter_adds_scale_times_b_times_a(tmp_path: Path) -> None:
    base, adapter = tiny(tmp_path / "m", seed=1), tmp_path / "adapter"
    adapter.mkdir()
    module = "language_model.model.layers.0.self_attn.q_proj"
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    names = {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    save_file(names, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 8, "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    merge_adapter(adapter, base, tmp_path / "merged")
    before, after = weights(base), weights(tmp_path / "merged")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{module}.weight"}
    assert torch.allclose(after[f"{module}.weight"], before[f"{module}.weight"] + 2.0 * b @ a, atol=1e-5)
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ModelError, match="only plain LoRA can be merged"):
        merge_adapter(adapter, base, tmp_path / "other")


def test_merging_a_bunny_adapter_is_importing_it_with_its_base(tmp_path: Path) -> None:
    adapter, base = checkpoint("bunny-lora-qwen2"), checkpoint("base-llm-qwen2")
    assert run("merge", adapter, base, tmp_path / "merged") == 0
    assert run("import", adapter, tmp_path / "imported", "--base", base) == 0
    one, other = weights(tmp_path / "merged"), weights(tmp_path / "imported")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_dtype_written_can_be_chosen(tmp_path: Path) -> None:
    assert run("import", checkpoint("bunny-qwen2"), tmp_path / "m", "--dtype", "bfloat16") == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "m").values()} == {torch.bfloat16}
    assert load(tmp_path / "m")[0].dtype == torch.bfloat16
    tiny(tmp_path / "t", seed=1)
    assert run("export", "--layout", "llava", "--dtype", "bfloat16", tmp_path / "t", tmp_path / "half") == 0
    assert load(tmp_path / "half")[0].dtype == torch.bfloat16


def test_a_model_with_a_tower_that_bunny_does_not_have_is_refused(tmp_path: Path) -> None:
    source = tiny(tmp_path / "m", seed=1)
    config = json.loads((source / "config.json").read_text())
    config["vision_config"] = {"model_type": "dinov2", "hidden_size": 32, "num_attention_heads": 4}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="Bunny has no 'dinov2' towers; it has siglip_vision_model"):
        export_model("bunny", source, tmp_path / "bunny")


def test_what_was_trained_with_padding_says_so_and_keeps_its_own_template_in_bunnys_layout(tmp_path: Path) -> None:
    source = tmp_path / "llava"
    import_bunny(checkpoint("bunny-llama"), source)
    inputs = json.loads((source / INPUTS_FILE).read_text())
    assert inputs["image"]["padding"]
    inputs |= {"template": "native", "chat_template": CHAT}
    inputs["image"]["padding"] = False  # as after a stage with other settings
    (source / INPUTS_FILE).write_text(json.dumps(inputs))
    export_model("bunny", source, tmp_path / "bunny")
    assert json.loads((tmp_path / "bunny" / "config.json").read_text())["image_aspect_ratio"] == "square"
    import_bunny(tmp_path / "bunny", tmp_path / "again")
    assert Inputs.load(tmp_path / "again") == Inputs.load(source)


def test_an_average_reads_each_pickle_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tiny(tmp_path / name, seed) for seed, name in enumerate(("a", "b"), start=1)]
    for folder in folders:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    opened, read = [], torch.load

    def noted(file: Any, **options: Any) -> Any:
        opened.append(file)
        return read(file, **options)

    monkeypatch.setattr(torch, "load", noted)
    average_models(folders[0], folders[1], 0.5, tmp_path / "c")
    assert len(opened) == 2


def test_weights_that_a_configuration_leaves_out_are_no_model(tmp_path: Path) -> None:
    source = tiny(tmp_path / "m", seed=1)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    if "layer_types" in config["text_config"]:
        config["text_config"]["layer_types"] = config["text_config"]["layer_types"][:1]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReleaseError, match=r"layers\.1\..*which its config\.json has no place for"):
        load(source)


def test_the_job_answers_a_mistake_with_one_line(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = repository / "jobs" / "convert.py"
    monkeypatch.syspath_prepend(str(job.parent))
    monkeypatch.setattr(sys, "argv", [str(job), "import", str(tmp_path / "nothing"), str(tmp_path / "target")])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(job), run_name="__main__")
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "nothing is no folder" in message
