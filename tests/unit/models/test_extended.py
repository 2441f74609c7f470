"""What plain LLaVA cannot express: S², other projectors, EVA-CLIP. Numbers are Bunny's, or a definition's."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from bunny_oracle import Compared
from warren.errors import ConfigError
from warren.models.extended_llava import ExtendedLlava
from warren.models.projectors import build_projector, num_projected
from warren.models.s2 import multi_scale_features

NAMES = [
    "bunny-qwen2-s2",
    "bunny-phi-eva",
    "projectors/bunny-phi-linear",
    "projectors/bunny-phi-sppv1",
    "projectors/bunny-phi-minigpt",
]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_bunnys(name: str, tmp_path: Path) -> None:
    compared = Compared(name, tmp_path / "m")
    assert isinstance(compared.model, ExtendedLlava)
    assert compared.single_difference() < 1e-5
    assert compared.text_difference() < 1e-5
    assert compared.batch_difference() < 1e-5
    found, expected = compared.greedy()
    assert found == expected


def test_each_scale_is_encoded_in_tiles_row_by_row_and_scales_lie_side_by_side() -> None:
    batches: list[int] = []

    def tower(pixels: torch.Tensor) -> torch.Tensor:  # 2x2 patches, whose features are their mean colours
        batches.append(len(pixels))
        return functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)

    pixels = torch.rand(2, 3, 24, 24)
    found = multi_scale_features(tower, pixels, [8, 16, 24])
    assert batches == [2, 8, 18]
    assert found.shape == (2, 4, 9)
    # Of the largest scale nothing is lost but detail: its mean over each quarter of the image.
    whole = functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(found[..., 6:], whole, atol=1e-6)
    alone = multi_scale_features(tower, pixels[1:], [8, 16, 24])
    assert torch.allclose(alone[0], found[1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [("linear", 36), ("mlp1x_gelu", 36), ("mlp3x_gelu", 36), ("sppv1", 9), ("sppv2", 9), ("sppv3", 9), ("ldp", 9),
     ("vanilla", 9), ("minigpt", 9)],
)  # fmt: skip
def test_every_projector_gives_the_tokens_it_promises(name: str, num_tokens: int) -> None:
    features = torch.rand(2, 36, 8)
    assert build_projector(name, 8, 16)(features).shape == (2, num_tokens, 16)
    assert num_projected(name, 36) == num_tokens


def test_an_odd_grid_is_cut_by_pooling_and_rounded_up_by_ldp() -> None:
    assert [num_projected(name, 729) for name in ("sppv1", "ldp", "linear")] == [169, 196, 729]
    for name in ("sppv2", "ldp"):
        assert build_projector(name, 8, 16)(torch.rand(1, 25, 8)).shape[1] == num_projected(name, 25)


def test_folding_four_tokens_is_side_by_side_in_minigpt_and_by_channel_in_vanilla() -> None:
    features = torch.arange(8.0).reshape(1, 4, 2)
    seen = {}
    for name in ("minigpt", "vanilla"):
        projector = build_projector(name, 2, 8)
        torch.nn.init.eye_(projector.get_parameter("linear.weight"))
        torch.nn.init.zeros_(projector.get_parameter("linear.bias"))
        seen[name] = projector(features).flatten().tolist()
    assert seen == {"minigpt": [0, 1, 2, 3, 4, 5, 6, 7], "vanilla": [0, 2, 4, 6, 1, 3, 5, 7]}


def test_what_cannot_be_projected_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no projector named 'mlp'; valid: linear, mlpNx_gelu"):
        build_projector("mlp", 8, 16)
    with pytest.raises(ConfigError, match="cannot turn 8 features into 16"):
        build_projector("identity", 8, 16)
    assert torch.equal(build_projector("identity", 8, 8)(torch.ones(1, 4, 8)), torch.ones(1, 4, 8))
    with pytest.raises(ConfigError, match="729 do not divide by four"):
        num_projected("minigpt", 729)
