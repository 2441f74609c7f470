"""`make demo-curate`: raw pairs to a selected dataset on this machine, with a report to look at.

The embeddings are of no model: an image's is its pixels at 8 × 8. They are enough for images of one shape on one colour
and need no download. On your own data, name a CLIP model in the recipe.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from warren.cluster.batch.curation import curate
from warren.cluster.batch.ingestion import ingest
from warren.cluster.session import connect
from warren.config import CurateConfig, IngestConfig
from warren.config.curate import (
    ClusterStep,
    DecontaminateStep,
    DuplicatesStep,
    EmbeddingsConfig,
    NearDuplicatesStep,
    RankBandStep,
    SampleStep,
)
from warren.curate.pipeline import describe
from warren.data.images import MAX_PIXELS, decode_image
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.stream import iter_samples
from warren.storage import Location

_DATASET, _EXAM = "easy-vqa-captions@v1", "easy-vqa-test@v1"
_SIDE, _IMAGES = 8, 1500


def demonstrate(folder: Path) -> Path:
    """Ingest easy-vqa, select from it, and return the page that shows what was selected.

    Args:
        folder: For everything that is made; it is emptied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    root = Location(str(folder.absolute() / "store"))
    connect()
    ingest(IngestConfig(source="easy-vqa", limit_images=_IMAGES), root)
    embeddings = _write_embeddings(root, folder / "embeddings")
    config = CurateConfig(
        name="easy-vqa-core",
        datasets=(_DATASET,),
        embeddings=EmbeddingsConfig(path=str(embeddings.absolute()), text_column=None),
        steps=(
            DuplicatesStep(step="duplicates", of="image"),
            DecontaminateStep(step="decontaminate", datasets=(_EXAM,), max_distance=2, min_correlation=0.999),
            ClusterStep(step="cluster", num_clusters=24),
            NearDuplicatesStep(step="near_duplicates", threshold=0.995),
            RankBandStep(step="rank_band", by="centroid_cosine", band=(0.15, 0.85)),
            SampleStep(step="sample", samples=300),
        ),
    )
    manifest = curate(config, root)
    print("\n".join(describe(manifest)))
    return Path((dataset_folder(root, f"{manifest.name}@{manifest.version}") / "README.md").uri)


def _write_embeddings(root: Location, folder: Path) -> Path:
    """Write each image's pixels at 8 × 8 as its embedding."""
    keys, rows = [], []
    for sample in iter_samples(dataset_folder(root, _DATASET), read_manifest(root, _DATASET)):
        small = decode_image(sample.images[0], MAX_PIXELS).resize((_SIDE, _SIDE), Image.Resampling.BOX)
        keys.append(sample.key)
        rows.append(np.asarray(small, np.float32).ravel() - 128)
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"key": keys, "image_embedding": rows}), folder / "images.parquet")
    return folder
