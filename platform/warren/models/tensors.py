"""Tensors on disk, read one at a time and written shard by shard: memory stays near one shard, whatever the model.

A model on its way from one folder to another is a `LazyTensors`: names and functions that read (and change) one tensor
each. Converting, merging and averaging are functions from such a dictionary to another; nothing is read before
`write_tensors` asks for it.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Set
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from warren.errors import ModelError
from warren.storage import check_relative

LazyTensors = dict[str, Callable[[], Tensor]]

MAX_SHARD_BYTES = 4 * 1024**3
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_BINARY, _BINARY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WEIGHTS = (WEIGHTS_FILE, INDEX_FILE, _BINARY, _BINARY_INDEX)  # in the order in which transformers looks for them


def read_folder(folder: Path) -> LazyTensors:
    """Return the tensors of a model folder: one weights file, or shards with an index.

    Raises:
        ModelError: There are no weights, the index names a file that is missing, or a file is damaged.
    """
    for file in (folder / name for name in _WEIGHTS):
        if file.is_file():
            return _read_index(file) if file.suffix == ".json" else read_file(file)
    raise ModelError(f"{folder} has no weights; expected one of {', '.join(_WEIGHTS)}")


def has_weights(folder: Path) -> bool:
    """Tell whether a folder has a model's weights."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def read_either(folder: Path, stem: str) -> LazyTensors:
    """Return the tensors of `stem.safetensors` or, where there is none, of `stem.bin`.

    Raises:
        ModelError: There is neither, or it is damaged.
    """
    for file in (folder / f"{stem}.safetensors", folder / f"{stem}.bin"):
        if file.is_file():
            return read_file(file)
    raise ModelError(f"{folder} has neither {stem}.safetensors nor {stem}.bin")


def read_file(file: Path) -> LazyTensors:
    """Return the tensors of one safetensors file, or of a pickle that holds tensors and nothing else.

    Raises:
        ModelError: The file is damaged, or a pickle that wants to run code.
    """
    if file.suffix != ".safetensors":
        return {name: partial(_from_pickle, file, name) for name in _load_pickle(file)}
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged or cut short: {error}") from None
    return {name: partial(_from_safetensors, file, name) for name in names}


def write_tensors(
    tensors: LazyTensors,
    folder: Path,
    dtype: torch.dtype | None = None,
    expected: Mapping[str, torch.Size] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors as safetensors shards, with an index where there is more than one.

    Args:
        tensors: Read one after the other; at most a shard of them is held.
        folder: An existing local folder.
        dtype: Convert floating-point tensors to it; None keeps theirs.
        expected: The names and shapes the model needs; anything else is an error.
        max_shard_bytes: A shard is closed before it grows beyond this.

    Raises:
        ModelError: Names or shapes are not those expected.
    """
    if expected is not None:
        _check_names(tensors.keys(), expected.keys())
    written: dict[str, str] = {}
    shards: list[Path] = []
    total = 0
    for shard in _packed(tensors, dtype, expected, max_shard_bytes):
        shards.append(folder / f"shard-{len(shards)}.partial")
        save_file(shard, shards[-1], metadata={"format": "pt"})
        written.update(dict.fromkeys(shard, shards[-1].name))
        total += sum(tensor.nbytes for tensor in shard.values())
    _name_shards(folder, shards, written, total)


def _packed(
    tensors: LazyTensors, dtype: torch.dtype | None, expected: Mapping[str, torch.Size] | None, max_shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    """Read tensors into dictionaries of at most `max_shard_bytes`; a larger tensor gets one of its own."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, read in tensors.items():
        tensor = read().detach().cpu()
        if expected is not None and tensor.shape != expected[name]:
            raise ModelError(f"{name} has shape {list(tensor.shape)}, the model needs {list(expected[name])}")
        tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    yield shard


def _name_shards(folder: Path, shards: list[Path], written: dict[str, str], total_bytes: int) -> None:
    if len(shards) == 1:
        shards[0].rename(folder / WEIGHTS_FILE)
        return
    names = {s.name: f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n, s in enumerate(shards, start=1)}
    for shard in shards:
        shard.rename(folder / names[shard.name])
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: names[shard] for name, shard in sorted(written.items())},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _check_names(actual: Set[str], expected: Set[str]) -> None:
    missing, unexpected = sorted(expected - actual), sorted(actual - expected)
    if missing or unexpected:
        parts = [
            f"{len(names)} {what}: {', '.join(names[:4])}"
            for what, names in (("missing", missing), ("not of this model", unexpected))
            if names
        ]
        raise ModelError(f"the tensors are not those of the model ({'; '.join(parts)})")


def _read_index(index: Path) -> LazyTensors:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} is no index of weights: {error!r}") from None
    read = cache(lambda name: read_file(index.parent / name))
    tensors: LazyTensors = {}
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        check_relative(place)
        if not (index.parent / place).is_file():
            raise ModelError(f"{index.name} names {place}, which is missing in {index.parent}")
        if name not in read(place):
            raise ModelError(f"{index.name} places {name} in {place}, which does not hold it")
        tensors[name] = read(place)[name]
    return tensors


def _from_safetensors(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
        return tensor


def _from_pickle(file: Path, name: str) -> Tensor:
    return _load_pickle(file)[name]


@lru_cache(maxsize=2)  # two, because a merge and an average read from two files in turn
def _load_pickle(file: Path) -> dict[str, Tensor]:
    """Load a pickle of tensors: memory-mapped, so that unused ones take no memory, but for torch's oldest format."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{file} is refused: it holds more than tensors, or is damaged ({reason})") from None
    except Exception as error:  # what a damaged pickle raises depends on where it is damaged
        raise ModelError(f"{file} is damaged or cut short: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{file} holds {type(loaded).__name__}, not a dictionary of tensors")
    return loaded
