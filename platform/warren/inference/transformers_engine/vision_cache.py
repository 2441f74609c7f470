"""Visual features of images, computed once per image and cached within a byte limit."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from warren.compat.transformers import image_features
from warren.data.images import ImageSpec
from warren.models.image_normalizer import ImageNormalizer

_IMAGES_PER_PASS = 16


class VisionCache:
    """The vision tower and projector of a model, with a least-recently-used cache by pixel digest."""

    def __init__(self, model: LlavaForConditionalGeneration, spec: ImageSpec, max_bytes: int) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._normalizer = ImageNormalizer(spec).to(self._device)
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, images: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Return features [tokens_per_image, hidden] for images uint8 (3, size_px, size_px) by digest."""
        features: dict[str, Tensor] = {}
        for digest in images:
            if digest in self._cache:
                self._cache.move_to_end(digest)
                features[digest] = self._cache[digest]
        missing = [digest for digest in images if digest not in features]
        self.hits += len(features)
        self.misses += len(missing)
        for start in range(0, len(missing), _IMAGES_PER_PASS):
            part = missing[start : start + _IMAGES_PER_PASS]
            for digest, computed in zip(part, self._compute([images[d] for d in part]), strict=True):
                features[digest] = computed
                self._keep(digest, computed)
        return features

    def _compute(self, images: list[np.ndarray]) -> list[Tensor]:
        normalised = self._normalizer(torch.from_numpy(np.stack(images)).to(self._device), self._dtype)
        # Without arguments, transformers takes the layer and the features that the model's configuration names.
        # A slice would keep the features of the whole pass in memory, which `num_bytes` does not count.
        return [features.clone() for features in image_features(self._model, normalised)]

    def _keep(self, digest: str, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if size > self._max_bytes:
            return
        self._cache[digest] = features
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            _, dropped = self._cache.popitem(last=False)
            self.num_bytes -= dropped.numel() * dropped.element_size()
