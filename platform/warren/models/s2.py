"""S²: one tower over several scales of an image, features side by side (arXiv 2403.13043), with Bunny's choices."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def multi_scale_features(tower: Callable[[Tensor], Tensor], pixels: Tensor, scales: Sequence[int]) -> Tensor:
    """Encode each scale in tiles of the smallest, and concatenate the channels scale by scale.

    Args:
        tower: Pixels [B, 3, S, S] to features [B, N, C], N a square, S the smallest scale.
        pixels: [B, 3, H, W], as large as the largest scale.
        scales: Ascending multiples of the smallest, in pixels: (384, 768, 1152).

    Returns:
        [B, N, C * number of scales].
    """
    smallest, size = scales[0], 0
    features = []
    for scale in scales:
        resized = functional.interpolate(pixels.float(), size=(scale, scale), mode="bicubic").to(pixels.dtype)
        per_side = scale // smallest
        grid = _stitched(tower(_tiles(resized, per_side)), per_side)
        size = size or grid.shape[-1]
        features.append(functional.interpolate(grid.float(), size=(size, size), mode="area").to(grid.dtype))
    return torch.cat(features, dim=1).flatten(2).transpose(1, 2)


def _tiles(pixels: Tensor, per_side: int) -> Tensor:
    """Cut [B, 3, S, S] into tiles on the batch axis: row by row, all images of a tile together."""
    rows = pixels.chunk(per_side, dim=2)
    return torch.cat([tile for row in rows for tile in row.chunk(per_side, dim=3)])


def _stitched(features: Tensor, per_side: int) -> Tensor:
    """Undo `_tiles` on features [B * tiles, N, C]: a grid [B, C, side * per_side, side * per_side]."""
    side = math.isqrt(features.shape[1])
    tiles = features.transpose(1, 2).reshape(len(features), -1, side, side).chunk(per_side**2)
    rows = [torch.cat(tiles[row * per_side : (row + 1) * per_side], dim=3) for row in range(per_side)]
    return torch.cat(rows, dim=2)
