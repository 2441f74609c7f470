"""What reading a selection costs by how much of each row group is kept: `python -m benchmarks.selection_reading`.

Every kept sample is read and decoded, as training does: with masks over the parent's shards (`rewrite_below: 0`), and
from shards that were written anew (1). Where masks cost notably more, row groups are worth writing anew.
"""

import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from warren.config import CurateConfig
from warren.config.curate import KeysStep
from warren.curate.pipeline import curate
from warren.curate.tasks import run_here
from warren.data.images import MAX_PIXELS, decode_image
from warren.data.manifest import Manifest, dataset_folder, write_manifest, write_shard
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.stream import iter_samples
from warren.storage import Location

SAMPLES, PER_SHARD, PER_GROUP, ROUNDS = 1024, 512, 64, 5
FRACTIONS = (0.9, 0.7, 0.5, 0.3, 0.1)


def image(number: int) -> bytes:
    """Return a 640 × 480 JPEG of about 90 kB."""
    noise = np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((640, 480)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def seconds(root: Location, manifest: Manifest) -> float:
    """Read and decode a dataset; return the fewest CPU seconds of some rounds."""
    folder = dataset_folder(root, f"{manifest.name}@{manifest.version}")
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for sample in iter_samples(folder, manifest):
            decode_image(sample.images[0], MAX_PIXELS)
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    """Print one line for each share kept; the last line is one JSON object."""
    encoded = [image(number) for number in range(64)]
    turns = (Turn("user", IMAGE_MARK), Turn("assistant", "noise"))
    results = {}
    with tempfile.TemporaryDirectory(prefix="selection-reading-") as name:
        root = Location(name)
        samples = [Sample(f"{n}", (encoded[n % 64],), turns, "bench") for n in range(SAMPLES)]
        folder, starts = dataset_folder(root, "all@v1"), range(0, SAMPLES, PER_SHARD)
        shards = tuple(write_shard(folder, f"shard-{n}.parquet", samples[n:][:PER_SHARD], PER_GROUP) for n in starts)
        write_manifest(root, Manifest("all", "v1", shards, "bench", "CC0"))
        for fraction in FRACTIONS:
            keys = np.random.default_rng(0).permutation(SAMPLES)[: int(fraction * SAMPLES)]
            (Path(name) / "keys.txt").write_text("\n".join(map(str, keys)))
            step = KeysStep(step="keys", allow=str(Path(name) / "keys.txt"))
            took = []
            for rewrite_below in (0.0, 1.0):
                config = CurateConfig(
                    name=f"kept-{fraction}-{rewrite_below}",
                    datasets=("all@v1",),
                    steps=(step,),
                    rewrite_below=rewrite_below,
                    task_memory_mib=1 + int(1000 * fraction),
                )
                took.append(seconds(root, curate(config, root, run_here)) / len(keys) * 1000)
            results[fraction] = {"masked_ms": round(took[0], 3), "rewritten_ms": round(took[1], 3)}
            print(json.dumps({"kept": fraction, **results[fraction]}), file=sys.stderr, flush=True)
    print(json.dumps({"ms_a_sample": results}))


if __name__ == "__main__":
    main()
