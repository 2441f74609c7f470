"""How many altered evaluation images `decontaminate` finds among other images, and how many of its matches are wrong.

python -m benchmarks.contamination FOLDER --drawn 95000 --planted 200

Some images of a folder, and as many that are drawn, become an evaluation set. An altered copy of each is planted among
the other images. Without a folder all images are drawn. The last line is one JSON object: recall by kind of change,
precision, the wrong matches, and images searched a second.
"""

import argparse
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from benchmarks.drawn_images import drawn_image
from warren.config import CurateConfig
from warren.config.curate import DecontaminateStep
from warren.curate.pipeline import curate
from warren.curate.tasks import Task, Workspace
from warren.data.images import MAX_PIXELS, decode_image
from warren.data.manifest import Manifest, Shard, dataset_folder, write_manifest, write_shard
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import BadSampleError
from warren.storage import Location

KINDS = ("encoded", "scaled", "grey", "mirrored", "cropped", "cropped and mirrored")
CORES, PER_SHARD, PER_GROUP = 2, 1024, 64
_EXAM = 10**9  # number of the first image that is drawn for the evaluation set


def altered(data: bytes, kind: str, random: np.random.Generator) -> bytes:
    """Return an altered copy of an image."""
    image = decode_image(data, MAX_PIXELS)
    if kind.startswith("cropped"):
        side = random.uniform(0.7, 0.95)
        left, top = random.uniform(0, 1 - side, 2)
        edges = np.array([left, top, left + side, top + side]) * ([image.width, image.height] * 2)
        first_x, first_y, last_x, last_y = np.rint(edges).astype(int).tolist()
        image = image.crop((first_x, first_y, last_x, last_y))
    if kind.endswith("mirrored"):
        image = ImageOps.mirror(image)
    if kind == "grey":
        image = image.convert("L")
    if kind == "scaled":
        factor = random.uniform(0.4, 1.6)
        image = image.resize((max(24, int(image.width * factor)), max(24, int(image.height * factor))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=35 if kind == "encoded" else 85)
    return buffer.getvalue()


def images(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the images of a folder by path, in an order that has nothing to do with their names."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in np.random.default_rng(0).permutation(len(paths)):
        data = paths[number].read_bytes()
        try:
            decode_image(data, MAX_PIXELS)
        except BadSampleError:
            continue
        yield str(paths[number].relative_to(folder)), data


def write(root: Location, name: str, pairs: Iterable[tuple[str, bytes]], num_drawn: int = 0) -> None:
    """Write a dataset of images, and of some that are drawn."""
    every = list(pairs)
    folder, starts = dataset_folder(root, f"{name}@v1"), range(0, len(every), PER_SHARD)
    shards = [_shard(folder, f"shard-{n}", every[n:][:PER_SHARD]) for n in starts]
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
        first = range(0, num_drawn, PER_SHARD)
        shards += pool.map(_draw_shard, [folder] * len(first), first, [min(n + PER_SHARD, num_drawn) for n in first])
    write_manifest(root, Manifest(name, "v1", tuple(shards), "bench", "various"))


def _shard(folder: Location, name: str, pairs: Iterable[tuple[str, bytes]]) -> Shard:
    turns = (Turn("user", IMAGE_MARK), Turn("assistant", "an image"))
    samples = [Sample(key, (data,), turns, "bench") for key, data in pairs]
    return write_shard(folder, f"{name}.parquet", samples, PER_GROUP)


def _draw_shard(folder: Location, first: int, stop: int) -> Shard:
    return _shard(folder, f"shard-drawn-{first}", ((f"drawn {n}", drawn_image(n)) for n in range(first, stop)))


def _do(work: Workspace, task: Task) -> None:
    work.put(task.name, task.compute())


def search(root: Location) -> tuple[dict[str, Any], float]:
    """Return the certificate's step, and the seconds that tasks took on all cores."""
    step = DecontaminateStep(step="decontaminate", datasets=("exam@v1",), remove=False)
    config = CurateConfig(name="searched", datasets=("pairs@v1",), steps=(step,))
    seconds = 0.0
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:

        def run(work: Workspace, tasks: Sequence[Task]) -> None:
            nonlocal seconds
            began = time.perf_counter()
            list(pool.map(_do, [work] * len(tasks), tasks))
            seconds += time.perf_counter() - began

        manifest = curate(config, root, run)
    certificate = (dataset_folder(root, "searched@v1") / manifest.selection["certificate"]["file"]).read_json()
    return certificate["steps"][0], seconds


def main() -> None:
    """Plant, search, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--drawn", type=int, default=0, help="images that are drawn, besides those of the folder")
    parser.add_argument("--limit", type=int, help="take only so many images of the folder")
    options = parser.parse_args()
    every = list(images(options.folder))[: options.limit] if options.folder else []
    of_folder = 0 if not every else options.planted // 2 if options.drawn else options.planted
    exam, others = every[:of_folder], every[of_folder:]
    exam += [(f"exam {n}", drawn_image(_EXAM + n)) for n in range(options.planted - of_folder)]
    random = np.random.default_rng(1)
    planted = [(f"planted {n}", altered(data, KINDS[n % len(KINDS)], random)) for n, (_, data) in enumerate(exam)]
    with tempfile.TemporaryDirectory(prefix="bench-contamination-") as name:
        root = Location(name)
        write(root, "exam", exam)
        write(root, "pairs", [*others, *planted], options.drawn)
        result, seconds = search(root)
    print(json.dumps(summary(result, [key for key, _ in exam], len(others) + len(planted) + options.drawn, seconds)))


def summary(result: dict[str, Any], exam: list[str], num_images: int, seconds: float) -> dict[str, Any]:
    """Return recall, precision and speed."""
    pairs = {(match["key"], match["evaluation_key"]) for match in result["matches"]}
    hits = [(f"planted {n}", key) in pairs for n, key in enumerate(exam)]
    recalls = {kind: float(np.mean(hits[n :: len(KINDS)])) for n, kind in enumerate(KINDS)}
    wrong = sorted({key for key, _ in pairs if not key.startswith("planted ")})
    matched = {key for key, _ in pairs}
    return {
        "images": num_images,
        "planted": len(exam),
        "recall": round(float(np.mean(hits)), 4),
        "recall_by_kind": {kind: round(value, 3) for kind, value in recalls.items()},
        "precision": round(1 - len(wrong) / max(1, len(matched)), 4),
        "wrong": [pair for pair in sorted(pairs) if pair[0] in set(wrong)],
        "images_per_s": round(num_images / seconds, 1),
        "cores": CORES,
    }


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    main()
