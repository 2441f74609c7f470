"""The model: transformers' LLaVA, saved so that it loads without Warren."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from factories import colour_sample, make_image, tiny_model_config
from warren.config import ModelConfig
from warren.data.images import Resize
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.errors import ConfigError, ReleaseError
from warren.models import TrainedTokenizer, build_model, freeze_all_but, inputs_of, load, save_model, train_tokenizer

TOKENIZER = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model")
    config = tiny_model_config()
    model = build_model(config, TOKENIZER, seed=1)
    save_model(model.state_dict(), model.config, inputs_of(config, TOKENIZER), TOKENIZER.json, target)
    return target


def test_a_saved_model_comes_back_bit_by_bit(folder: Path) -> None:
    built = build_model(tiny_model_config(), TOKENIZER, seed=1).state_dict()
    loaded = load(folder)[0].state_dict()
    assert built.keys() == loaded.keys()
    assert all(torch.equal(built[name], loaded[name]) for name in built)


def test_names_on_disk_are_those_that_vllm_loads(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "np") as file:
        names = set(file.keys())
    prefixes = (
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "language_model.model.",
        "language_model.lm_head.",
    )
    assert all(name.startswith(prefixes) for name in names)
    assert {name.split(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["image_processor"]["crop_size"] == {"height": 32, "width": 32}
    assert processor["patch_size"] == 8
    assert processor["num_additional_image_tokens"] == 0


@pytest.mark.parametrize("size", [(97, 60), (41, 120), (32, 32)])
@pytest.mark.parametrize(("padding", "resize"), [(True, "stretch"), (False, "stretch"), (False, "crop")])
def test_the_saved_image_processor_makes_warrens_pixels(
    tmp_path: Path, padding: bool, resize: Resize, size: tuple[int, int]
) -> None:
    config = tiny_model_config()
    model, inputs = build_model(config, TOKENIZER, seed=1), inputs_of(config, TOKENIZER)
    inputs = replace(inputs, image=replace(inputs.image, padding=padding, resize=resize))
    save_model(model.state_dict(), model.config, inputs, TOKENIZER.json, tmp_path)
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    theirs = load(tmp_path)[1].image_processor(Image.fromarray(noise), return_tensors="np").pixel_values[0]
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    ours = inputs.pixels((buffer.getvalue(),))[0] / 255.0
    np.testing.assert_allclose(theirs, (ours - 0.5) / 0.5, atol=1e-6)


def test_the_hugging_face_processor_sees_what_training_saw(folder: Path) -> None:
    _, processor = load(folder)
    inputs = Inputs.load(folder)
    sample = colour_sample(2)
    encoded = inputs.encode_sample(sample, tokenizer_from_json(TOKENIZER.json), 96)
    text = "".join(["USER: ", sample.turns[0].text, " ASSISTANT: ", sample.turns[1].text, "<|endoftext|>"])
    theirs = processor(images=[Image.open(io.BytesIO(sample.images[0]))], text=text, return_tensors="pt")
    assert theirs["input_ids"][0].tolist() == encoded.input_ids.tolist()
    ours = (encoded.pixels / 255.0 - 0.5) / 0.5
    assert np.abs(theirs["pixel_values"].numpy() - ours).max() < 1e-6


def test_only_the_named_parts_train_and_unused_blocks_never() -> None:
    model = build_model(tiny_model_config(), TOKENIZER, seed=1)
    trained, total = freeze_all_but(model, ["projector"])
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert 0 < trained < total
    assert all(name.startswith("model.multi_modal_projector.") for name in names)
    freeze_all_but(model, ["vision_tower", "projector", "language_model"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all("encoder.layers.1." in n or "post_layernorm" in n or ".head." in n for n in frozen)


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (build_model(tiny_model_config(), TOKENIZER, seed=s).lm_head.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    assert train_tokenizer(texts, 320) == TOKENIZER
    assert isinstance(TOKENIZER, TrainedTokenizer)


def test_a_mismatch_between_model_and_inputs_is_an_error_at_load(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    inputs = json.loads((tmp_path / "warren_inputs.json").read_text())
    inputs["tokens"]["tokens_per_image"] = 9
    (tmp_path / "warren_inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(ReleaseError, match="tokens per image: model 16, inputs 9"):
        load(tmp_path)
    (tmp_path / "warren_inputs.json").unlink()
    with pytest.raises(ReleaseError, match="not written by Warren"):
        load(tmp_path)


def test_a_configuration_that_transformers_refuses_is_a_config_error() -> None:
    values = tiny_model_config().model_dump(mode="json")
    values["language_model"]["model_type"] = "qwen-two"
    with pytest.raises(ConfigError, match="language_model"):
        build_model(ModelConfig.model_validate_json(json.dumps(values)), TOKENIZER, seed=1)


def test_an_image_is_decoded_once_per_mark() -> None:
    inputs = inputs_of(tiny_model_config(), TOKENIZER)
    assert inputs.pixels((make_image(), make_image())).shape == (2, 3, 32, 32)
    assert inputs.pixels(()).shape == (0, 3, 32, 32)
