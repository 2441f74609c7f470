"""Normalisation of pixels, the same for training, serving and evaluation."""

import torch
from torch import Tensor, nn

from warren.data.images import ImageSpec


class ImageNormalizer(nn.Module):
    """Scales pixels to [0, 1], subtracts the mean and divides by the standard deviation of each channel.

    Mean and standard deviation are buffers, so that they move to a device with the module, and are in no state dict.

    Args:
        spec: The model's image preprocessing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `dtype` (images, 3, height, width) for pixels uint8 (images, 3, height, width).

        The computation is in float32, whatever the model's type is.
        """
        return ((pixels.float() / 255.0 - self.mean) / self.std).to(dtype)
