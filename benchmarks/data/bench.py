"""Compare Warren's loader with torch's DataLoader, webdataset and mosaicml-streaming, from one S3 server.

make bench-data

The last line is one JSON object. CPU seconds count every process: the training worker, its children, and all of Ray's.
`loading_cpu_ms_per_image` is without what the idle cluster uses, as it does under any loader that a cluster runs. The
contestants take turns, so that whatever else the machine does meets all of them.

The first batch is timed from the moment a training worker has imported what trains and asks. Warren's worker has begun
to load before that, as in real training; `warren-cold` has not. Before the worker starts, Warren's controller has made
the plan (`prepare_s`).
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from warren.data.images import ImageSpec
from warren.data.manifest import Manifest, dataset_folder, write_manifest, write_shard
from warren.data.model_inputs import Inputs
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.template import TokenSpec
from warren.models import train_tokenizer
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.testbed import RayHead, S3Server

HERE = Path(__file__).parent
BUCKET = "bench"
NAMES = ("torch", "webdataset", "mosaic", "warren", "warren-cold")
SIZE_PX = 384
PATCHES = 16
PAIRS_PER_SHARD = 256
PAIRS_PER_ROW_GROUP = 16
DIFFERENT_PICTURES = 128


def main() -> None:
    """Prepare the data, let the contestants take turns, print medians and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers' libraries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--readers", type=int, default=2, help="processes that read at the same time, for everyone")
    parser.add_argument("--first", type=int, default=8, help="batch that measuring starts behind")
    parser.add_argument("--last", type=int, default=40, help="batch that measuring ends with")
    parser.add_argument("--profile", action="store_true", help="show the CPU seconds of the cluster's processes")
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    options = parser.parse_args()
    num_pairs = (options.last + 8) * options.batch_size
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        S3Server(Path(folder) / "s3") as server,
    ):
        os.environ.update(server.environment)
        _prepare(Path(folder), num_pairs, options)
        results = _take_turns(Path(folder), options, dict(server.environment))
    _report(results, num_pairs)


def _prepare(folder: Path, num_pairs: int, options: argparse.Namespace) -> None:
    """Write the same pairs in every contestant's format."""
    pairs = list(draw_pairs(num_pairs))
    ensure_bucket(BUCKET)
    tokenizer = train_tokenizer([caption for _, caption in pairs], 512)
    tokens = TokenSpec(tokenizer.image_token_id, PATCHES, tokenizer.eos_token, tokenizer.pad_token_id)
    inputs = Inputs("plain", tokens, ImageSpec(SIZE_PX, (0.5,) * 3, (0.5,) * 3))
    task = {
        "bucket": BUCKET, "inputs": inputs.to_json(), "tokenizer_json": tokenizer.json,
        "batch_size": options.batch_size, "max_length_tokens": 256, "readers": options.readers,
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    root = Location.parse(f"s3://{BUCKET}")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: (root / f"files/{i:06d}.jpg").create_bytes(pairs[i][0]), range(num_pairs)))
    (root / "files/captions.json").create_json([caption for _, caption in pairs])
    shards = []
    for number, start in enumerate(range(0, num_pairs, PAIRS_PER_SHARD)):
        mine = list(enumerate(pairs))[start : start + PAIRS_PER_SHARD]
        (root / f"tars/{number:05d}.tar").create_bytes(_tar(mine))
        samples = [Sample(f"{i:06d}", (image,), caption_turns(caption), "bench") for i, (image, caption) in mine]
        path = f"shard-{number:05d}.parquet"
        shards.append(write_shard(dataset_folder(root / "warren", "pairs@v1"), path, samples, PAIRS_PER_ROW_GROUP))
    write_manifest(root / "warren", Manifest("pairs", "v1", tuple(shards), "bench", "CC0"))
    subprocess.run([options.peers, "-W", "ignore", HERE / "write_mds.py", root.uri], check=True)


def draw_pairs(num_pairs: int) -> Iterator[tuple[bytes, str]]:
    """Draw images of a photo's size on disk and in pixels."""
    drawn = np.random.default_rng(7)
    images = []
    for _ in range(DIFFERENT_PICTURES):
        coarse = Image.fromarray(drawn.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), 3)
        grain = drawn.normal(0, 12, (480, 640, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    for number in range(num_pairs):
        yield images[number % DIFFERENT_PICTURES], f"image {number} shows colours that nobody has named yet"


def caption_turns(caption: str) -> tuple[Turn, Turn]:
    """Return the conversation of a pair."""
    return Turn("user", IMAGE_MARK), Turn("assistant", caption)


def _tar(pairs: list[tuple[int, tuple[bytes, str]]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, (image, caption) in pairs:
            for suffix, data in (("jpg", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _take_turns(
    folder: Path, options: argparse.Namespace, environment: dict[str, str]
) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    ray_folder = folder / "r"
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    for number in range(options.rounds):
        for name in options.only:
            if not name.startswith("warren"):
                result = _run(options.peers, name, folder, options, environment)
            else:  # its cluster lives for its turn only: idle processes would cost the others
                with RayHead(ray_folder, options.readers, environment, object_store_bytes=600_000_000) as head:
                    address = {"RAY_ADDRESS": head.driver_address, "RAY_AUTH_MODE": "disabled"}
                    cluster = ["--cluster", str(ray_folder)] + ["--only-begin"] * (name == "warren-cold")
                    result = _run(sys.executable, name, folder, options, {**environment, **address}, cluster)
            print(f"round {number + 1} {name}: {json.dumps(result)}", flush=True)
            results[name].append(result)
    return results


def _run(
    python: str,
    name: str,
    folder: Path,
    options: argparse.Namespace,
    environment: dict[str, str],
    more: list[str] | None = None,
) -> dict[str, float]:
    command = [python, "-W", "ignore", str(HERE / "worker.py"), name, str(folder / "task.json")]
    command += ["--profile"] * options.profile
    command += ["--first", str(options.first), "--last", str(options.last), *(more or [])]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _report(results: dict[str, list[dict[str, float]]], num_pairs: int) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    for name, metrics in medians.items():
        print(f"{name:>12}: " + ", ".join(f"{key} {value:.2f}" for key, value in metrics.items()))
    peers = [metrics for name, metrics in medians.items() if not name.startswith("warren")]
    summary: dict[str, object] = {"pairs": num_pairs, "raw": results}
    if peers and "warren" in medians:
        mine = medians["warren"]
        summary = {
            "ratio_vs_best_peer_per_cpu_s": min(p["cpu_ms_per_image"] for p in peers) / mine["cpu_ms_per_image"],
            "ratio_per_cpu_s_of_loading": min(p["loading_cpu_ms_per_image"] for p in peers)
            / mine["loading_cpu_ms_per_image"],
            "ratio_at_the_worker": min(p["worker_cpu_ms_per_image"] for p in peers) / mine["worker_cpu_ms_per_image"],
            "ratio_images_per_s": mine["images_per_s"] / max(p["images_per_s"] for p in peers),
            **summary,
        }
    for name, key in (("warren", "first_batch_vs_torch"), ("warren-cold", "first_batch_cold_vs_torch")):
        if name in medians and "torch" in medians:
            summary = {key: medians[name]["first_batch_s"] / medians["torch"]["first_batch_s"], **summary}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
