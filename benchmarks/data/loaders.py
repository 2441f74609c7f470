"""The loaders that are compared. Each gives batches of the same images and texts, as tensors for the same model.

Every loader turns a sample into tensors with the same function (`Inputs.encode_sample`: decode, resize, tokenise). What
differs is how bytes come from the S3 server, are shuffled, batched and carried to the trainer.
"""

import importlib
import io
import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from warren.data.images import write_pixels
from warren.data.model_inputs import EncodedSample, Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Sample, Turn

SHUFFLED_SAMPLES = 256
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What is to be loaded.

    Attributes:
        bucket: Holds the same pairs in every contestant's format.
        scratch: A local folder that is empty.
        readers: Processes that read at the same time, for every contestant.
    """

    bucket: str
    scratch: Path
    inputs: Inputs
    tokenizer_json: str
    batch_size: int
    max_length_tokens: int
    readers: int

    @classmethod
    def read(cls, path: Path, scratch: Path) -> "Task":
        """Read what the bench wrote."""
        facts = json.loads(path.read_text())
        return cls(scratch=scratch, inputs=Inputs.from_json(facts.pop("inputs")), **facts)

    def encode(self, image: bytes, caption: str) -> EncodedSample:
        """Decode, resize and tokenise one pair."""
        turns = (Turn("user", IMAGE_MARK), Turn("assistant", caption))
        sample = Sample("", (image,), turns, "")
        return self.inputs.encode_sample(sample, tokenizer_from_json(self.tokenizer_json), self.max_length_tokens)

    def collate(self, samples: Sequence[EncodedSample]) -> Batch:
        """Pad and stack."""
        length = max(len(sample.input_ids) for sample in samples)
        ids = np.full((len(samples), length), self.inputs.tokens.pad_token_id, dtype=np.int32)
        labels = np.full((len(samples), length), -100, dtype=np.int32)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.input_ids)] = sample.input_ids
            labels[row, : len(sample.labels)] = sample.labels
        images = [image for sample in samples for image in sample.images]
        pixels = np.empty((len(images), 3, self.inputs.image.size_px, self.inputs.image.size_px), dtype=np.uint8)
        write_pixels(images, pixels)
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "pixels": torch.from_numpy(pixels),
        }


class Files(Dataset):
    """One object an image, and a list of captions."""

    def __init__(self, task: Task) -> None:
        self._task = task
        listed = s3().get_object(Bucket=task.bucket, Key="files/captions.json")["Body"].read()
        self._captions: list[str] = json.loads(listed)

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> EncodedSample:
        answer = s3().get_object(Bucket=self._task.bucket, Key=f"files/{index:06d}.jpg")
        return self._task.encode(answer["Body"].read(), self._captions[index])


def torch_files(task: Task) -> Iterator[Batch]:
    """PyTorch's DataLoader over files."""
    return iter(
        DataLoader(
            Files(task), batch_size=task.batch_size, shuffle=True, num_workers=task.readers, collate_fn=task.collate
        )
    )


def webdataset(task: Task) -> Iterator[Batch]:
    """The webdataset library over tars; its reader is given S3 in-process, which costs less than its pipe to curl."""
    import webdataset as wds

    def open_s3(url: str, *_: Any, **__: Any) -> Any:
        bucket, _slash, key = url.removeprefix("s3://").partition("/")
        return io.BufferedReader(s3().get_object(Bucket=bucket, Key=key)["Body"]._raw_stream, 1 << 20)

    wds.gopen_schemes["s3"] = open_s3
    listed = s3().list_objects_v2(Bucket=task.bucket, Prefix="tars/")["Contents"]
    urls = [f"s3://{task.bucket}/{entry['Key']}" for entry in listed]
    pairs = wds.WebDataset(urls, shardshuffle=len(urls), seed=1).shuffle(SHUFFLED_SAMPLES).to_tuple("jpg", "txt")
    encoded = pairs.map(lambda pair: task.encode(pair[0], pair[1].decode()))
    batched = encoded.batched(task.batch_size, collation_fn=task.collate)
    return iter(wds.WebLoader(batched, batch_size=None, num_workers=task.readers))


def mosaic(task: Task) -> Iterator[Batch]:
    """The mosaicml-streaming library over MDS shards, which it keeps in a local folder."""
    streaming = import_streaming()

    class Pairs(streaming.StreamingDataset):  # type: ignore[name-defined]
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            return task.encode(row["image"], row["caption"])

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    pairs = Pairs(
        remote=f"s3://{task.bucket}/mds",
        local=str(task.scratch / "mds"),
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_block_size=SHUFFLED_SAMPLES,
        batch_size=task.batch_size,
        num_canonical_nodes=1,
    )
    return iter(DataLoader(pairs, batch_size=task.batch_size, num_workers=task.readers, collate_fn=task.collate))


def warren(task: Task) -> Iterator[Batch]:
    """Warren's own way: a rank's first step, and Ray Data's batches behind it."""
    from warren.cluster.train.run_dataset import batch_parts

    return (_tensors(part.micro_batches[0]) for part in batch_parts(*_warrens_plan(task), rank=0, start_step=0))


@lru_cache(maxsize=1)
def _warrens_plan(task: Task) -> tuple[Any, Any, Any]:
    """Plan the run and split it, as Ray Train's controller does."""
    from warren.cluster.train.run_dataset import DATASET, GlobalBatches, RemainingPlan
    from warren.config import Resources
    from warren.data.manifest import dataset_folder, read_manifest
    from warren.data.stream import DatasetSource, Encoding, StreamSpec
    from warren.storage import Location
    from warren.train.run import Run

    root = Location.parse(f"s3://{task.bucket}/warren")
    manifest = read_manifest(root, "pairs@v1")
    source = DatasetSource(dataset_folder(root, "pairs@v1"), manifest, manifest.rows)
    encoding = Encoding(task.inputs, task.tokenizer_json, task.max_length_tokens)
    spec = StreamSpec((source,), encoding, task.batch_size, seed=1, window_samples=SHUFFLED_SAMPLES, epochs=1)
    run = Run(Location.parse(str(task.scratch / "run")))
    resources = Resources(num_workers=1, micro_batch_size=task.batch_size)
    shard = GlobalBatches(spec, resources).configure({DATASET: RemainingPlan(run, spec)()}, 1, None, None)[0][DATASET]
    return shard, spec, spec.cut(1, resources)


def _tensors(micro: Any) -> Batch:
    return {name: torch.from_numpy(getattr(micro, name)) for name in ("input_ids", "labels", "pixels")}


def import_for(contestant: str) -> None:
    """Import what a contestant needs: a training worker has imported it before it asks for its first batch."""
    if contestant == "mosaic":
        import_streaming()
    else:
        importlib.import_module(
            {"torch": "boto3", "webdataset": "webdataset"}.get(contestant, "warren.cluster.train.run_dataset")
        )
    s3()


def prepare(contestant: str, task: Task) -> None:
    """Do what another process does before a training worker starts."""
    if contestant.startswith("warren"):
        _warrens_plan(task)


def begins_early(contestant: str) -> bool:
    """Tell whether the loader is asked before the model is loaded: Warren's training worker does so."""
    return contestant == "warren"


CONTESTANTS: dict[str, Callable[[Task], Iterator[Batch]]] = {
    "torch": torch_files,
    "webdataset": webdataset,
    "mosaic": mosaic,
    "warren": warren,
    "warren-cold": warren,
}


@lru_cache(maxsize=1)
def _s3(_process: int) -> Any:
    import boto3

    return boto3.client("s3")


def s3() -> Any:
    """Return this process's client: one that is forked with its connections is of no use."""
    return _s3(os.getpid())


def import_streaming() -> Any:
    """Import mosaicml-streaming without its samples for vision and text, which need torchvision."""
    for name in ("vision", "text", "multimodal"):
        sys.modules[f"streaming.{name}"] = types.ModuleType(f"streaming.{name}")
    import streaming

    return streaming
