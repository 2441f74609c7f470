"""Projectors: patch features [B, N, C] to language-model embeddings [B, M, D], by the names Bunny gave them.

Parameter names are those of Bunny's checkpoints. Structures: Bunny (mlp, spp), MiniGPT-v2 (four tokens folded into
one), MobileVLM's LDP (arXiv 2312.16886).
"""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from warren.errors import ConfigError

_MLP = re.compile(r"mlp([1-9]\d*)x_gelu")
_MLP_KIND = "mlpNx_gelu"
_KINDS = ("linear", _MLP_KIND, "sppv1", "sppv2", "sppv3", "ldp", "vanilla", "minigpt", "identity")


def build_projector(name: str, in_features: int, out_features: int) -> nn.Module:
    """Build a projector by name.

    Raises:
        ConfigError: There is none of that name, or `identity` is asked to change the width.
    """
    if match := _MLP.fullmatch(name):
        layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
        for _ in range(int(match.group(1)) - 1):
            layers += [nn.GELU(), nn.Linear(out_features, out_features)]
        return nn.Sequential(*layers)
    if name == "identity" and in_features != out_features:
        raise ConfigError(f"projector 'identity' cannot turn {in_features} features into {out_features}")
    if name in ("sppv1", "sppv2", "sppv3"):
        return PooledProjector(in_features, out_features, version=int(name[-1]))
    if name in ("vanilla", "minigpt"):
        return FourTokens(in_features, out_features, interleaved=name == "vanilla")
    check_projector(name)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(in_features, out_features),
        "ldp": lambda: Ldp(in_features, out_features),
        "identity": nn.Identity,
    }
    return kinds[name]()


def check_projector(name: str) -> None:
    """Refuse a name that no projector has.

    Raises:
        ConfigError: There is none of that name.
    """
    if name == _MLP_KIND or (name not in _KINDS and not _MLP.fullmatch(name)):
        raise ConfigError(f"no projector named {name!r}; valid: {', '.join(_KINDS)} (N from 1)")


def num_projected(name: str, num_patches: int) -> int:
    """Return how many embeddings a projector makes of one image's patches.

    Raises:
        ConfigError: The projector cannot take that many.
    """
    side = math.isqrt(num_patches)
    if name.startswith("spp"):
        return (side // 2) ** 2
    if name == "ldp":
        return ((side + 1) // 2) ** 2
    if name in ("vanilla", "minigpt"):
        if num_patches % 4:
            raise ConfigError(f"projector {name!r} folds four patches into one; {num_patches} do not divide by four")
        return num_patches // 4
    return num_patches


class PooledProjector(nn.Module):
    """Linear layers around a 2x2 average pool of the patch grid: a quarter of the tokens."""

    def __init__(self, in_features: int, out_features: int, version: int) -> None:
        super().__init__()
        self.version = version
        self.linear_0 = nn.Linear(in_features, in_features)  # used in version 3; Bunny's checkpoints always hold it
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, N, C] to [B, N/4, D]; an odd last row and column are dropped."""
        if self.version == 1:
            pooled: Tensor = self.linear_2(_pooled(self.linear_1(features)))
        elif self.version == 2:
            pooled = _pooled(self.linear_2(self.linear_1(features)))
        else:
            pooled = self.linear_2(self.linear_1(_pooled(self.linear_0(features))))
        return pooled


class FourTokens(nn.Module):
    """Four consecutive tokens become one, side by side or channel by channel."""

    def __init__(self, in_features: int, out_features: int, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.linear = nn.Linear(4 * in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, N, C] to [B, N/4, D]."""
        batch, num_tokens, width = features.shape
        groups = features.reshape(batch, num_tokens // 4, 4, width)
        if self.interleaved:
            groups = groups.transpose(2, 3)
        projected: Tensor = self.linear(groups.reshape(batch, num_tokens // 4, 4 * width))
        return projected


class Ldp(nn.Module):
    """MobileVLM's lightweight downsample projector: an MLP, then two depthwise blocks, the second with stride 2."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "mlp": nn.Sequential(
                    nn.Identity(),
                    nn.Linear(in_features, out_features),
                    nn.GELU(),
                    nn.Linear(out_features, out_features),
                ),
                "mb_block": nn.Sequential(
                    nn.Identity(), InvertedResidual(out_features, stride=1), InvertedResidual(out_features, stride=2)
                ),
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, N, C] to [B, ceil(sqrt(N) / 2)^2, D]."""
        return _tokens(self.model["mb_block"](_grid(self.model["mlp"](features))))


class InvertedResidual(nn.Module):
    """MobileNetV3's block with as many channels inside as outside (arXiv 1905.02244)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, ChannelNorm(width), nn.Hardswish()),
            SqueezeExcitation(width),
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), ChannelNorm(width)),
        )

    def forward(self, grid: Tensor) -> Tensor:
        """Map [B, D, H, W] to [B, D, H/stride, W/stride]."""
        out: Tensor = self.block(grid)
        return out + grid if self.residual else out


class SqueezeExcitation(nn.Module):
    """Channels weighted by what the whole image says of them (arXiv 1709.01507)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rounded = max(8, (width // 4 + 4) // 8 * 8)
        squeezed = rounded + 8 if rounded < 0.9 * (width // 4) else rounded
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, grid: Tensor) -> Tensor:
        """Map [B, D, H, W] to the same shape."""
        weights = self.fc2(functional.relu(self.fc1(grid.mean(dim=(2, 3), keepdim=True))))
        return grid * functional.hardsigmoid(weights)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a grid."""

    def forward(self, grid: Tensor) -> Tensor:
        """Normalise [B, D, H, W] over D."""
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _pooled(features: Tensor) -> Tensor:
    return _tokens(functional.avg_pool2d(_grid(features), 2))


def _grid(features: Tensor) -> Tensor:
    batch, num_tokens, width = features.shape
    side = math.isqrt(num_tokens)
    return features.transpose(1, 2).reshape(batch, width, side, side)


def _tokens(grid: Tensor) -> Tensor:
    return torch.flatten(grid, 2).transpose(1, 2)
