"""Checkpoints that Bunny's own code wrote, with its logits: where they are, and how a model is compared with them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from warren.models import load
from warren.models.bunny import import_bunny

BUNNY_IMAGE = -200  # Bunny's placeholder: one per image, expanded to the features when it splices

_COPIES = Path(__file__).parent / "oracle" / "checkpoints"


def checkpoint(name: str) -> Path:
    """Return an oracle checkpoint's folder: the copy in the tests, or the whole set beside the repository."""
    roots = [_COPIES, *(Path(root) / "checkpoints" for root in (os.environ.get("WARREN_ORACLE"), _shared()) if root)]
    for root in roots:
        if (root / name / "config.json").is_file():
            return root / name
    pytest.skip(f"the oracle checkpoint {name} is not here; set WARREN_ORACLE to the folder of the oracles")


def _shared() -> str:
    return str(Path(__file__).resolve().parents[2] / "shared" / "oracle")


class Compared:
    """An imported checkpoint beside the numbers that Bunny computed for it."""

    def __init__(self, name: str, target: Path, **options: Any) -> None:
        self.source = checkpoint(name)
        import_bunny(self.source, target, **options)
        self.folder = target
        self.model, self.processor = load(target)
        self.expected = np.load(self.source / "expected.npz")
        self.image_token = int(self.model.config.image_token_id)
        self.num_image_tokens = int(self.model.config.image_seq_length)
        self.num_tokens = int(self.expected["single_logits"].shape[-1])

    def pixels(self, *numbers: int) -> torch.Tensor:
        if "pixel_values" in self.expected:
            return torch.from_numpy(self.expected["pixel_values"][list(numbers)])
        return (torch.from_numpy(self.expected["pixel_values_u8"][list(numbers)]) / 255.0 - 0.5) / 0.5

    def ids(self, key: str) -> torch.Tensor:
        return torch.tensor([self._expanded(self.expected[key])])

    def logits(self, **inputs: Any) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = self.model(**inputs).logits[..., : self.num_tokens].numpy()
        return logits

    def single_difference(self) -> float:
        found = self.logits(input_ids=self.ids("single_input_ids"), pixel_values=self.pixels(0))[0]
        return float(np.abs(found - self.expected["single_logits"]).max())

    def text_difference(self) -> float:
        found = self.logits(input_ids=self.ids("text_input_ids"))[0, :, ::8]
        return float(np.abs(found - self.expected["text_logits_col8"]).max())

    def batch_difference(self) -> float:
        spliced = self.expected["batch_spliced_mask"]
        ids = torch.zeros(spliced.shape, dtype=torch.long)
        for row, (text, mask) in enumerate(
            zip(self.expected["batch_input_ids"], self.expected["batch_attention_mask"], strict=True)
        ):
            expanded = self._expanded(text[mask])
            ids[row, : len(expanded)] = torch.tensor(expanded)
        found = self.logits(
            input_ids=ids, pixel_values=self.pixels(0, 1), attention_mask=torch.from_numpy(spliced).long()
        )
        return float(np.abs(found[..., ::8] - self.expected["batch_logits_col8"])[spliced].max())

    def greedy(self) -> tuple[list[int], list[int]]:
        """Return the tokens generated here and those by Bunny, up to its first doubtful step."""
        expected, margin = self.expected["greedy_ids"].tolist(), self.expected["greedy_margin"]
        sure = next((step for step, value in enumerate(margin) if value < 1e-3), len(margin))
        ids = self.ids("single_input_ids")
        with torch.no_grad():
            found = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=self.pixels(0),
                max_new_tokens=len(expected),
                do_sample=False,
            )
        return found[0, ids.shape[1] :].tolist()[:sure], expected[:sure]

    def _expanded(self, ids: np.ndarray) -> list[int]:
        return [
            token
            for text in ids.tolist()
            for token in ([self.image_token] * self.num_image_tokens if text == BUNNY_IMAGE else [text])
        ]
