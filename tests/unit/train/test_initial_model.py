"""What a stage starts from: a run's checkpoint or a model folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories import tiny_model_config
from warren.data.model_inputs import Inputs
from warren.errors import CheckpointError, ConfigError, CorruptDataError, ModelError
from warren.models import build_model, freeze_all_but, save_model, train_tokenizer
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.initial_model import InitialModel, frozen_digest
from warren.train.run import Run


def save(folder: Path, inputs: Inputs, tokenizer_json: str, seed: int = 1) -> Path:
    tokenizer = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)
    model = build_model(tiny_model_config(), tokenizer, seed)
    folder.mkdir(parents=True)
    save_model(model.state_dict(), model.config, inputs, tokenizer_json, folder)
    return folder


def commit(run: Run, step: int, local: Path) -> None:
    files = tuple(run.checkpoints.upload(step, "a1", local))
    run.checkpoints.commit(CheckpointManifest(step, 1, 0, "f", files))


def test_a_folder_gives_its_model_inputs_and_tokenizer(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> None:
    folder = save(tmp_path / "m", *tiny_inputs)
    initial_model = InitialModel.of_folder(Location.parse(str(folder)))
    assert (initial_model.inputs(), initial_model.tokenizer_json()) == tiny_inputs
    model = initial_model.load()
    file = folder / "model.safetensors"
    assert torch.equal(model.get_parameter("lm_head.weight"), load_file(file)["language_model.lm_head.weight"])
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert file.read_bytes() == before


def test_a_half_precision_model_is_trained_in_float32(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> None:
    folder = save(tmp_path / "m", *tiny_inputs)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    model = InitialModel.of_folder(Location.parse(str(folder))).load()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32


def test_a_folder_that_warren_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing has no warren_inputs.json.*convert.py import"):
        InitialModel.of_folder(Location.parse(str(tmp_path / "nothing")))


def test_another_template_than_the_models_is_refused(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> None:
    inputs, tokenizer_json = tiny_inputs
    initial_model = InitialModel.of_folder(Location.parse(str(save(tmp_path / "m", inputs, tokenizer_json))))
    initial_model.check_template(inputs.template)
    with pytest.raises(ConfigError, match=r"the recipe's template is 'bunny', but .* was trained on 'brief'"):
        initial_model.check_template("bunny")
    stage_1 = save(tmp_path / "s", inputs.with_template("plain"), tokenizer_json)
    InitialModel.of_folder(Location.parse(str(stage_1))).check_template("bunny")


def test_padding_is_the_models_unless_the_recipe_says_otherwise(tiny_inputs: tuple[Inputs, str]) -> None:
    padded = tiny_inputs[0].with_template("brief", image_padding=True)
    assert padded.with_template("bunny").image.padding
    assert not padded.with_template("bunny", image_padding=False).image.padding


def test_a_run_gives_its_newest_checkpoint_or_the_one_asked_for(
    tmp_path: Path, tiny_inputs: tuple[Inputs, str]
) -> None:
    run = Run(Location.parse(str(tmp_path / "runs/r")))
    with pytest.raises(CheckpointError, match="has no complete checkpoint: train it first"):
        InitialModel.of_run(run)
    for step in (2, 4):
        save(tmp_path / str(step) / "model", *tiny_inputs, seed=step)
        commit(run, step, tmp_path / str(step))
    assert InitialModel.of_run(run).step == 4
    initial_model = InitialModel.of_run(run, step=2)
    assert initial_model.folder.uri.endswith("checkpoints/00000002/a1/model")
    expected = load_file(tmp_path / "2/model/model.safetensors")["language_model.lm_head.weight"]
    assert torch.equal(initial_model.load().get_parameter("lm_head.weight"), expected)
    weights = Path(initial_model.folder.uri) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptDataError):
        initial_model.load()


def test_the_digest_of_what_is_frozen_follows_it_and_nothing_else() -> None:
    tokenizer = train_tokenizer(["a b"], 320)
    model = build_model(tiny_model_config(), tokenizer, seed=1)
    freeze_all_but(model, ["projector"])
    before = frozen_digest(model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight += 1.0
    assert frozen_digest(model) == before
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[-1] += 1.0
    assert frozen_digest(model) != before


def test_a_matrix_with_more_values_than_float32_can_count_has_a_digest() -> None:
    model = torch.nn.Module()
    model.head = torch.nn.Parameter(torch.zeros(1).expand(28_312_128), requires_grad=False)  # 49,152 × 576
    assert frozen_digest(model)
