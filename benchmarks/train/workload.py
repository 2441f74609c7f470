"""What every contestant trains: the same weights on the same samples, with lengths mixed as in stage 2.

Bunny's stage 2 at about a quarter of its size: 144 image tokens for 729, a context of 512 for 2,048, conversations from
a few words to the whole context, one in ten without an image. The decoder is Qwen2 with a head half as large as its
body, as in Qwen1.5-0.5B, and a vocabulary of 32,768.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from warren.config import (
    Duration,
    EvaluateConfig,
    GateConfig,
    LanguageModelConfig,
    ModelConfig,
    Recipe,
    ReleaseConfig,
    Resources,
    StageConfig,
    TokenizerConfig,
    VisionTowerConfig,
)
from warren.data.manifest import Manifest, dataset_folder, write_manifest, write_shard
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.storage import Location

SAMPLES = 352
BATCH = 16
CONTEXT = 512
NUM_THREADS = 2
PADDED = Resources(num_workers=1, micro_batch_size=8, data_cpus_per_task=0.5)
PACKED = Resources(num_workers=1, micro_batch_size=4, data_cpus_per_task=0.5, packing=True)
"""Four full sequences hold about as many slots as eight padded samples."""


def recipe(steps: int) -> Recipe:
    """Return the recipe; only its first stage is trained, with what stage 2 trains."""
    tower = {"image_size": 168, "patch_size": 14, "hidden_size": 128, "intermediate_size": 256}
    decoder = {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 20,
        "max_position_embeddings": CONTEXT,
    }
    stage = StageConfig(
        dataset="mix@v1",
        trainable=("projector", "language_model"),
        duration=Duration(steps=steps),
        global_batch_size=BATCH,
        max_length_tokens=CONTEXT,
        learning_rate=1e-4,
        checkpoint_every_steps=10**6,
    )
    return Recipe(
        name="bench-train",
        model=ModelConfig(
            vision_tower=VisionTowerConfig(
                family="siglip", config={**tower, "num_hidden_layers": 4, "num_attention_heads": 4}
            ),
            language_model=LanguageModelConfig(
                model_type="qwen2", config={**decoder, "num_attention_heads": 8, "num_key_value_heads": 8}
            ),
            tokenizer=TokenizerConfig(train_vocab_size=32768),
            template="brief",
        ),
        pretrain=stage,
        finetune=stage,
        evaluate=EvaluateConfig(dataset="mix@v1"),
        release=ReleaseConfig(name="bench-train", gate=GateConfig(min_score=0.0)),
    )


def write_samples(root: Location) -> Manifest:
    """Write the dataset, the same one every time."""
    folder = dataset_folder(root, "mix@v1")
    shard = write_shard(folder, "shard-00000.parquet", list(_samples()), samples_per_row_group=32)
    manifest = Manifest("mix", "v1", (shard,), "benchmarks/train", "CC0")
    write_manifest(root, manifest)
    return manifest


def _samples() -> Iterator[Sample]:
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(3, 8))) for _ in range(40_000)])

    def text(count: int) -> str:
        return " ".join(rng.choice(words, count))

    for number in range(SAMPLES):
        with_image = number % 10 != 0
        most = 300 if with_image else 420  # words; a little more than a token each
        total = int(np.clip(rng.lognormal(np.log(50), 0.9), 8, most))
        asked = total // 3
        mark = f"{IMAGE_MARK}\n" if with_image else ""
        turns = (Turn("user", mark + text(asked)), Turn("assistant", text(total - asked)))
        yield Sample(f"mix-{number:05d}", (_image(rng),) if with_image else (), turns, "benchmarks/train")


def _image(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    small.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def root_of(folder: Path) -> Location:
    """Return the storage root of a measurement."""
    return Location.parse(str(folder / "store"))
