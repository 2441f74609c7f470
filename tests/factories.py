"""Small, real things that tests are made of: samples, datasets, recipes, models."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from warren.config import (
    Duration,
    EvaluateConfig,
    GateConfig,
    LanguageModelConfig,
    ModelConfig,
    Recipe,
    ReleaseConfig,
    StageConfig,
    TokenizerConfig,
    VisionTowerConfig,
)
from warren.data.manifest import Manifest, Shard, dataset_folder, write_manifest, write_shard
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.stream import DatasetSource
from warren.storage import Location

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220), "black": (10, 10, 10)}
LLM_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {},
    "phi": {},
    "phi3": {"pad_token_id": 1},
    "stablelm": {},
    "gemma": {"head_dim": 16},
}
"""Families of language models, with what a tiny one of them needs beside the sizes that all share."""


def make_image(
    colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (64, 64), kind: str = "PNG"
) -> bytes:
    """Return an encoded image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def colour_sample(number: int, caption: bool = False) -> Sample:
    """Return a sample whose answer is the colour of its image."""
    name = list(COLOURS)[number % len(COLOURS)]
    question = IMAGE_MARK if caption else f"{IMAGE_MARK}\nwhat colour is number {number}?"
    turns = (Turn("user", question), Turn("assistant", name))
    return Sample(f"sample-{number:05d}", (make_image(COLOURS[name]),), turns, source="tests")


def text_sample(number: int, words: int = 3) -> Sample:
    """Return a sample without an image."""
    turns = (Turn("user", f"say number {number}"), Turn("assistant", " ".join(["red"] * words)))
    return Sample(f"text-{number:05d}", (), turns, source="tests")


def write_dataset(
    root: Location, name: str, samples: Sequence[Sample], per_shard: int = 40, per_group: int = 8
) -> Manifest:
    """Write samples as dataset `name@v1`."""
    folder = dataset_folder(root, f"{name}@v1")
    shards: list[Shard] = []
    for number, start in enumerate(range(0, len(samples), per_shard)):
        path = f"shard-{number:05d}.parquet"
        shards.append(write_shard(folder, path, samples[start : start + per_shard], per_group))
    manifest = Manifest(name, "v1", tuple(shards), "tests", "CC0")
    write_manifest(root, manifest)
    return manifest


def source_of(root: Location, manifest: Manifest, samples_per_epoch: int | None = None) -> DatasetSource:
    """Return a dataset as a run reads it."""
    folder = dataset_folder(root, f"{manifest.name}@{manifest.version}")
    return DatasetSource(folder, manifest, manifest.rows if samples_per_epoch is None else samples_per_epoch)


def tiny_model_config(**language_model: Any) -> ModelConfig:
    """Return a model of some 40,000 parameters."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **language_model,
    }
    return ModelConfig(
        vision_tower=VisionTowerConfig(family="siglip", config={"image_size": 32, "patch_size": 8, **tower}),
        language_model=LanguageModelConfig(model_type="qwen2", config=decoder),
        tokenizer=TokenizerConfig(train_vocab_size=320),
        template="brief",
    )


def tiny_stage(dataset: str, **changes: Any) -> StageConfig:
    """Return a stage of a few steps in which every part trains."""
    values: dict[str, Any] = {
        "dataset": dataset,
        "trainable": ("vision_tower", "projector", "language_model"),
        "duration": Duration(epochs=1),
        "global_batch_size": 8,
        "max_length_tokens": 96,
        "learning_rate": 1e-3,
        "shuffle_window_samples": 32,
        "checkpoint_every_steps": 4,
        "seed": 3,
    }
    return StageConfig(**{**values, **changes})


def tiny_recipe(name: str = "tiny", **changes: Any) -> Recipe:
    """Return a recipe over the datasets `captions@v1`, `train@v1` and `test@v1`."""
    values: dict[str, Any] = {
        "name": name,
        "model": tiny_model_config(),
        "pretrain": tiny_stage("captions@v1", template="plain"),
        "finetune": tiny_stage("train@v1"),
        "evaluate": EvaluateConfig(dataset="test@v1", max_new_tokens=4),
        "release": ReleaseConfig(name=name, gate=GateConfig(min_score=0.0)),
    }
    return Recipe(**{**values, **changes})
