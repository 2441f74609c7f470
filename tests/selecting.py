"""A dataset with planted duplicates, its embeddings, and selections of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factories import make_image, write_dataset
from warren.config import CurateConfig
from warren.curate.pipeline import curate
from warren.curate.tasks import Runner, run_here
from warren.curate.vector_math import unit
from warren.data.manifest import Manifest, read_manifest
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.stream import iter_samples
from warren.storage import Location

ROWS, WIDTH = 300, 16
STEPS: list[dict[str, Any]] = [
    {"step": "caption", "max_words": 6},
    {"step": "cluster", "num_clusters": 5, "seed": 1},
    {"step": "near_duplicates"},
    {"step": "rank_band", "by": "clip_score", "band": [0.1, 0.9]},
    {"step": "rank_band", "by": "centroid_cosine", "band": [0.05, 0.8]},
    {"step": "sample", "samples": 60, "seed": 2},
]


def pair(number: int) -> Sample:
    """Return a pair; every third is a near duplicate of the one before it, every seventh has a long caption."""
    encoded = make_image(((number * 5) % 256, (number * 11) % 256, 90), (16 + number % 40, 24))
    words = ["one", "two", "three"] * (4 if number % 7 == 0 else 1)
    return Sample(
        f"pair-{number:04d}",
        (encoded,),
        (Turn("user", IMAGE_MARK), Turn("assistant", f"{number} {' '.join(words)}")),
        "t",
    )


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Return the image and text embeddings of the pairs."""
    random = np.random.default_rng(0)
    image = unit(random.standard_normal((ROWS, WIDTH)))
    image[2::3] = unit(image[1::3] + 0.02 * random.standard_normal((ROWS // 3, WIDTH)))
    return image, unit(image + random.standard_normal((ROWS, WIDTH)))


def write_embeddings(folder: Path, **changes: Any) -> Path:
    """Write embeddings in two Parquet files, in another order than the dataset's."""
    image, text = vectors()
    columns = {
        "key": [f"pair-{n:04d}" for n in range(ROWS)],
        "image_embedding": list(image),
        "text_embedding": list(text),
    }
    order = np.random.default_rng(3).permutation(ROWS)
    table = pa.table({**columns, **changes}).take(order)
    folder.mkdir()
    pq.write_table(table.slice(0, 190), folder / "a.parquet", row_group_size=70)
    pq.write_table(table.slice(190), folder / "b.parquet")
    return folder


def write_pairs(root: Location) -> Manifest:
    """Write the dataset `pairs@v1`."""
    return write_dataset(root, "pairs", [pair(n) for n in range(ROWS)], per_shard=70, per_group=8)


def config_of(folder: Path | None, steps: list[dict[str, Any]], **changes: Any) -> CurateConfig:
    values: dict[str, Any] = {"name": "chosen", "datasets": ["pairs@v1"], "steps": steps, **changes}
    if folder is not None:
        values.setdefault("embeddings", {"path": str(folder)})
    return CurateConfig.model_validate_json(json.dumps(values))


def select(
    root: Location, folder: Path | None, steps: list[dict[str, Any]], run: Runner = run_here, **changes: Any
) -> Manifest:
    """Run a selection in this process."""
    return curate(config_of(folder, steps, **changes), root, run)


def samples_of(root: Location, reference: str) -> list[Sample]:
    name, version = reference.split("@")
    return list(iter_samples(root / "datasets" / name / version, read_manifest(root, reference)))


def numbers_of(root: Location, reference: str) -> list[int]:
    """Return the numbers of a dataset's pairs, in stored order."""
    return [int(sample.key.split("-")[1]) for sample in samples_of(root, reference)]


def files(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def write_tiny_clip(folder: Path) -> Path:
    """Write a CLIP of random weights, with tokenizer and image processor, as transformers stores one."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    from warren.data.model_inputs import tokenizer_from_json
    from warren.models import train_tokenizer

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_from_json(train_tokenizer(["one two three 0123456789"] * 4, 300).json),
        pad_token="<|endoftext|>",
        model_max_length=16,
    )
    text = {**size, "vocab_size": 320, "max_position_embeddings": 16, "eos_token_id": tokenizer.pad_token_id}
    vision = {**size, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder
