"""CLIP and SigLIP models that compute the embeddings of samples: image and text, or the image alone."""

from typing import Any

import numpy as np

from warren.config.curate import EmbeddingsConfig
from warren.curate.array_files import Arrays
from warren.curate.filters import caption_of
from warren.curate.sample_pieces import SamplePiece
from warren.data.images import MAX_PIXELS, decode_image
from warren.errors import ModelError


class EmbeddingModel:
    """A model in transformers' layout, on the GPU if there is one.

    Args:
        config: Names the model; without a `text_column` no text is embedded.

    Raises:
        ModelError: It cannot be loaded, or has no text side although texts are to be embedded.
    """

    def __init__(self, config: EmbeddingsConfig) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        name = config.model or ""
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._batch_size = config.batch_size
        self._reads_text = config.text_column is not None
        try:
            self._model = AutoModel.from_pretrained(name).eval().to(self._device)
            self._processor = AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ModelError(f"embeddings.model {name!r} cannot be loaded: {error}") from None
        if self._reads_text and not hasattr(self._model, "get_text_features"):
            raise ModelError(
                f"embeddings.model {name!r} ({type(self._model).__name__}) has no text side and gives no clip_score: "
                "take a CLIP or SigLIP model, or set embeddings.text_column to null to embed images alone"
            )
        self._tokenizer = AutoTokenizer.from_pretrained(name) if self._reads_text else None

    def embed(self, piece: SamplePiece) -> Arrays:
        """Return `row`, `image` and `text` of a piece's samples that have an image; of several, the first counts."""
        rows: list[int] = []
        images: list[np.ndarray] = []
        texts: list[np.ndarray] = []
        for first, table in piece.tables(["images", "turns"]):
            for start in range(0, table.num_rows, self._batch_size):
                batch = table.slice(start, self._batch_size).to_pylist()
                shown = [(first + start + n, row) for n, row in enumerate(batch) if row["images"]]
                if not shown:
                    continue
                rows += [row for row, _ in shown]
                images.append(self._images([row["images"][0]["bytes"] for _, row in shown]))
                if self._reads_text:
                    texts.append(self._texts([caption_of(row) for _, row in shown]))
        made = {"row": np.array(rows, np.uint32), "image": _together(images)}
        return {**made, "text": _together(texts)} if self._reads_text else made

    def _images(self, encoded: list[bytes]) -> np.ndarray:
        pixels = [decode_image(data, MAX_PIXELS) for data in encoded]
        inputs = self._processor(images=pixels, return_tensors="pt").to(self._device)
        with self._torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                return _numbers(self._model.get_image_features(**inputs))
            return _numbers(self._model(**inputs))

    def _texts(self, captions: list[str]) -> np.ndarray:
        assert self._tokenizer is not None
        longest = self._model.config.text_config.max_position_embeddings
        # SigLIP was trained on captions padded to the full length, so it needs the padding; CLIP does not mind.
        inputs = self._tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(self._device)
        with self._torch.inference_mode():
            return _numbers(self._model.get_text_features(**inputs))


def _numbers(output: Any) -> np.ndarray:
    """Return unit rows in float16 of a model's output, which is a tensor or holds the pooled one."""
    pooled = output if hasattr(output, "norm") else output.pooler_output
    pooled = pooled.float()
    pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    # Unit rows lose nothing that matters in float16, and take half of the storage.
    return np.asarray(pooled.half().cpu().numpy())


def _together(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, 1), np.float16)
