"""`make bench-selection`: does a model learn more from selected pairs than from as many random ones?

python -m benchmarks.selection_training FOLDER --model MODEL

FOLDER holds `pairs.jsonl` (image, caption) and the images. A tenth of the pairs is held out; altered copies of some of
the others are planted among them. The selection leaves out near duplicates by the embeddings of MODEL, a folder in
transformers' layout such as `jobs/pretrained.py dinov2-small-112` writes, and then draws half of all pairs. A random
half is drawn from all of them. On each a small model is trained from random weights, with Warren's batches and loss,
by several seeds. The last line is one JSON object: planted copies that were left out, losses on the pairs that are held
out, and the difference with its 95 % interval over the seeds.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.contamination import altered
from benchmarks.split_pairs import split
from warren.config import CurateConfig, Duration, ModelConfig, Resources, StageConfig
from warren.config.curate import EmbeddingsConfig
from warren.curate.embedding_model import EmbeddingModel
from warren.curate.pipeline import curate
from warren.curate.sample_pieces import SamplePiece
from warren.curate.sample_vectors import ComputedVectors, VectorPiece
from warren.curate.tasks import Workspace, run_here
from warren.data.manifest import Manifest, dataset_folder, read_manifest, write_manifest, write_shard
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.stream import DatasetSource, Encoding, StreamSpec, iter_samples
from warren.models import TrainedTokenizer, build_model, inputs_of, train_tokenizer
from warren.storage import Location
from warren.train.objective import Objective, to_tensors
from warren.train.optimization import optimizer

BATCH, CONTEXT, THRESHOLD, PLANTED = 32, 128, 0.95, 0.2
RESOURCES = Resources(num_workers=1, micro_batch_size=32, data_cpus_per_task=0.5)
MODEL: dict[str, Any] = {
    "vision_tower": {
        "family": "siglip",
        "config": {
            **{"image_size": 64, "patch_size": 8, "hidden_size": 64, "intermediate_size": 128},
            **{"num_hidden_layers": 3, "num_attention_heads": 4},
        },
    },
    "language_model": {
        "model_type": "qwen2",
        "config": {
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"num_key_value_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.15},
        },
    },
    "tokenizer": {"train_vocab_size": 1024},
    "template": "brief",
}


def write_pairs(root: Location, folder: Path, limit: int) -> int:
    """Write `pairs@v1`, with planted copies, and `heldout@v1`; return how many copies there are."""
    tables = split(map(json.loads, (folder / "pairs.jsonl").read_text().splitlines()))
    random = np.random.default_rng(0)
    pairs: list[tuple[str, bytes, str]] = []
    for number, row in enumerate(tables["captions"][:limit]):
        data = (folder / row["image"]).read_bytes()
        pairs.append((row["image"], data, row["caption"]))
        if random.random() < PLANTED:
            copy = altered(data, "encoded" if number % 2 else "scaled", random)
            pairs.append((f"copy of {row['image']}", copy, row["caption"]))
    _write(root, "pairs", [pairs[n] for n in random.permutation(len(pairs))])
    held_out = [(row["image"], row["conversations"][1]["content"]) for row in tables["heldout"]]
    _write(root, "heldout", [(image, (folder / image).read_bytes(), caption) for image, caption in held_out])
    return sum(key.startswith("copy of ") for key, *_ in pairs)


def _write(root: Location, name: str, pairs: Sequence[tuple[str, bytes, str]]) -> None:
    samples = [Sample(k, (d,), (Turn("user", IMAGE_MARK), Turn("assistant", c)), "bench") for k, d, c in pairs]
    shard = write_shard(dataset_folder(root, f"{name}@v1"), "shard-0.parquet", samples, 64)
    write_manifest(root, Manifest(name, "v1", (shard,), "bench", "various"))


def with_image_processor(model: Path, folder: Path) -> Path:
    """Return a folder of a model that also says how DINOv2 scales images, if the model's own does not say."""
    if (model / "preprocessor_config.json").exists():
        return model
    from transformers import AutoConfig, BitImageProcessorPil

    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    side = AutoConfig.from_pretrained(model).image_size
    size = {"height": side, "width": side}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
    BitImageProcessorPil(size=size, do_center_crop=False, image_mean=mean, image_std=std).save_pretrained(folder)
    return folder


def _embed(config: EmbeddingsConfig, work: Workspace, pieces: list[SamplePiece]) -> list[VectorPiece]:
    model = EmbeddingModel(config)
    for piece in pieces:
        work.put(f"{piece.number}", model.embed(piece))
    return [ComputedVectors(work.file(f"{piece.number}").location) for piece in pieces]


def select(root: Location, name: str, steps: list[dict[str, Any]], dataset: str, model: str | None = None) -> Manifest:
    """Select from a dataset."""
    values: dict[str, Any] = {"name": name, "datasets": [dataset], "steps": steps}
    if model is not None:
        values["embeddings"] = {"model": model, "text_column": None}
    return curate(CurateConfig.model_validate_json(json.dumps(values)), root, run_here, _embed)


def keys(root: Location, manifest: Manifest) -> set[str]:
    """Return the keys of a dataset's samples."""
    folder = dataset_folder(root, f"{manifest.name}@{manifest.version}")
    return {sample.key for sample in iter_samples(folder, manifest)}


class Trainer:
    """Trains small models on datasets and measures their loss on what is held out."""

    def __init__(self, root: Location, steps: int) -> None:
        self._root, self._steps = root, steps
        self._model = ModelConfig.model_validate_json(json.dumps(MODEL))
        manifest = read_manifest(root, "pairs@v1")
        samples = iter_samples(dataset_folder(root, "pairs@v1"), manifest)
        self._tokenizer: TrainedTokenizer = train_tokenizer([sample.turns[1].text for sample in samples], 1024)
        self._inputs = inputs_of(self._model, self._tokenizer)

    def loss(self, dataset: str, seed: int) -> float:
        """Return the mean loss of a caption's token on `heldout@v1` after training on a dataset."""
        stage = StageConfig(
            dataset=dataset,
            trainable=("vision_tower", "projector", "language_model"),
            duration=Duration(steps=self._steps),
            global_batch_size=BATCH,
            max_length_tokens=CONTEXT,
            learning_rate=2e-3,
            weight_decay=0.05,
            template="plain",
            checkpoint_every_steps=10**6,
        )
        model = build_model(self._model, self._tokenizer, seed).train()
        objective, adam = Objective(model, self._inputs), optimizer(model, stage)
        for batch, num_tokens in self._batches(dataset, seed, num_steps=self._steps):
            for micro in batch:
                (objective(**micro) / num_tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), stage.max_grad_norm)
            adam.step()
            adam.zero_grad()
        model.eval()
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch, num_tokens in self._batches("heldout@v1", 0, epochs=1):
                total += sum(float(objective(**micro)) for micro in batch)
                count += num_tokens
        return total / count

    def _batches(self, dataset: str, seed: int, **length: int) -> Any:
        manifest = read_manifest(self._root, dataset)
        source = DatasetSource(dataset_folder(self._root, dataset), manifest, manifest.rows)
        encoding = Encoding(self._inputs, self._tokenizer.json, CONTEXT)
        spec = StreamSpec((source,), encoding, BATCH, seed, 4096, **length)  # type: ignore[arg-type]
        reader = spec.reader(spec.cut(1, RESOURCES))
        for read in spec.reads():
            for parts in reader.read(read):
                micro_batches = [to_tensors(micro, torch.device("cpu")) for micro in parts[0].micro_batches]
                yield micro_batches, parts[0].num_supervised_tokens


def main() -> None:
    """Select, train, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000, help="pairs, without the copies")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-selection-") as name:
        root = Location(name)
        model = with_image_processor(options.model, Path(name) / "model")
        num_planted = write_pairs(root, options.folder, options.limit)
        near = [{"step": "cluster", "num_clusters": 20}, {"step": "near_duplicates", "threshold": THRESHOLD}]
        unlike = select(root, "unlike", near, "pairs@v1", str(model))
        every, kept = keys(root, read_manifest(root, "pairs@v1")), keys(root, unlike)
        pairs = [(key, key.removeprefix("copy of ")) for key in every if key.startswith("copy of ")]
        half, trainer, losses = len(every) // 2, Trainer(root, options.steps), []
        for seed in range(options.seeds):
            of_seed = []
            for kind, dataset in (("selected", "unlike@v1"), ("random", "pairs@v1")):
                select(root, f"{kind}-{seed}", [{"step": "sample", "samples": half, "seed": seed}], dataset)
                of_seed.append(trainer.loss(f"{kind}-{seed}@v1", seed))
            losses.append(of_seed)
            print(json.dumps({"seed": seed, "selected": of_seed[0], "random": of_seed[1]}), flush=True)
    summary: dict[str, Any] = {
        "pairs": len(every),
        "planted": num_planted,
        "left_after_near_duplicates": len(kept),
        "half": half,
    }
    summary["planted_found"] = round(float(np.mean([not (a in kept and b in kept) for a, b in pairs])), 4)
    print(json.dumps({**summary, **compared(np.array(losses)), "steps": options.steps, "batch": BATCH}))


def compared(losses: np.ndarray) -> dict[str, Any]:
    """Return the mean losses and the paired difference with its 95 % interval (Student's t over the seeds).

    Args:
        losses: [seeds, 2], of the selected and of the random half.
    """
    differences = losses[:, 0] - losses[:, 1]
    error = stats.t.ppf(0.975, len(losses) - 1) * differences.std(ddof=1) / np.sqrt(len(losses))
    middle = float(differences.mean())
    return {
        "losses": {"selected": losses[:, 0].round(4).tolist(), "random": losses[:, 1].round(4).tolist()},
        "selected_minus_random": round(middle, 4),
        "interval": [round(middle - float(error), 4), round(middle + float(error), 4)],
    }


if __name__ == "__main__":
    main()
