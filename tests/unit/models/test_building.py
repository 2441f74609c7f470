"""Every tower and projector of a recipe: built, saved, loaded, trained in the right places."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import tiny_model_config
from warren.config import ModelConfig
from warren.errors import ConfigError
from warren.models import build_model, freeze_all_but, inputs_of, load, save_model, train_tokenizer

TOKENIZER = train_tokenizer(["USER: what colour is it? ASSISTANT: red"] * 4, 300)


def recipe(family: str = "siglip", projector: str = "mlp2x_gelu", **tower: Any) -> ModelConfig:
    values = tiny_model_config().model_dump(mode="json")
    values["vision_tower"] |= {"family": family, **tower}
    if family == "dinov2":
        values["vision_tower"]["config"].pop("intermediate_size")
    values["projector"]["type"] = projector
    return ModelConfig.model_validate_json(json.dumps(values))


@pytest.mark.parametrize(
    ("config", "model_type", "num_tokens"),
    [
        (recipe("siglip"), "llava", 16),
        (recipe("clip"), "llava", 16),
        (recipe("dinov2"), "llava", 16),
        (recipe("eva-clip"), "warren_llava", 16),
        (recipe("siglip", scales_px=[32, 64, 96]), "warren_llava", 16),
        (recipe("siglip", "sppv3"), "warren_llava", 4),
        (recipe("dinov2", "ldp"), "warren_llava", 4),
        (recipe("clip", "vanilla"), "warren_llava", 4),
    ],
    ids=lambda value: str(getattr(getattr(value, "vision_tower", value), "family", value)),
)
def test_a_model_of_every_kind_comes_back_and_its_processor_counts_its_image_tokens(
    config: ModelConfig, model_type: str, num_tokens: int, tmp_path: Path
) -> None:
    model, inputs = build_model(config, TOKENIZER, seed=1).eval(), inputs_of(config, TOKENIZER)
    save_model(model.state_dict(), model.config, inputs, TOKENIZER.json, tmp_path)
    loaded, processor = load(tmp_path)
    assert loaded.config.model_type == model_type
    image = torch.randint(0, 255, (inputs.image.size_px, inputs.image.size_px, 3), dtype=torch.uint8).numpy()
    found = processor(images=[image], text="<image> what?", return_tensors="pt")
    assert int((found["input_ids"] == TOKENIZER.image_token_id).sum()) == num_tokens == inputs.tokens.tokens_per_image
    with torch.no_grad():
        assert torch.equal(loaded(**found).logits, model(**found).logits)


@pytest.mark.parametrize("family", ["siglip", "clip", "dinov2", "eva-clip"])
def test_every_parameter_that_trains_gets_a_gradient(family: str) -> None:
    model = build_model(recipe(family), TOKENIZER, seed=1)
    freeze_all_but(model, ["vision_tower", "projector", "language_model"])
    ids = torch.tensor([[5, *[TOKENIZER.image_token_id] * 16, 9, 30]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without <= {"model.vision_tower.embeddings.mask_token"}  # DINOv2's own, for its own training


def test_parts_that_do_not_fit_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="scales_px starts with 384; the tower takes 32 px"):
        build_model(recipe(scales_px=[384, 768]), TOKENIZER, seed=1)
    with pytest.raises(ValueError, match="not ascending multiples"):
        recipe(scales_px=[32, 80])
    with pytest.raises(ValueError, match="pattern"):
        recipe(projector="mlp")
