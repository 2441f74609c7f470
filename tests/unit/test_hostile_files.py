"""No file from storage, or from somebody else, runs code when it is read: each is tried, and the source is searched."""

import ast
import contextlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  registers the type whose values are pickles, as every process of a Ray Data job does
import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from factories import colour_sample, write_dataset
from warren.config import IngestConfig
from warren.config.curate import EmbeddingsConfig
from warren.config.ingest import ColumnsConfig
from warren.config.strict_yaml import parse
from warren.curate.embeddings import pieces
from warren.curate.filters import _keys, image_size
from warren.data.image_rules import ImageRules
from warren.data.images import decode_image
from warren.data.importers import importers
from warren.data.stream import iter_samples
from warren.errors import BadSampleError, CheckpointError, ConfigError, DataError, ModelError
from warren.evaluate.answer_file import read_stored
from warren.evaluate.benchmarks.table_records import read_records
from warren.models.tensors import read_file
from warren.storage import Location
from warren.storage.parquet import read_parquet
from warren.train.checkpoint_loader import read_random_state, seed_everything, write_random_state


class Payload:
    """What an attacker writes into a file: unpickling it creates `target`."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self._target,)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that is there if an attacker's code ran."""
    return tmp_path / "the-code-ran"


def write_pickles(file: Path, ran: Path, columns: tuple[str, ...], nested: bool = False) -> Location:
    """Write a Parquet file whose columns hold pickled objects."""
    marks = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    field = pa.field("item", pa.large_binary(), metadata=marks)
    value: Any = pickle.dumps(Payload(ran))
    types = [pa.list_(field) if nested else field.with_name(name) for name in columns]
    fields = [
        kind if isinstance(kind, pa.Field) else pa.field(name, kind) for name, kind in zip(columns, types, strict=True)
    ]
    schema = pa.schema(fields)
    arrays = [pa.array([[value] if nested else value], each.type) for each in schema]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), file)
    return Location.parse(str(file))


def read_shard(folder: Path, ran: Path) -> None:
    root = Location.parse(str(folder))
    manifest = write_dataset(root, "d", [colour_sample(0)])
    shard = next(folder.rglob("*.parquet"))
    write_pickles(shard, ran, tuple(pq.ParquetFile(shard).schema_arrow.names))
    list(iter_samples(Location.parse(str(shard.parent)), manifest))


def ingest(folder: Path, ran: Path) -> None:
    write_pickles(folder / "raw" / "0.parquet", ran, ("image", "caption"))
    columns = ColumnsConfig(image="image", caption="caption")
    config = IngestConfig(source="parquet", name="d", path=str(folder / "raw"), columns=columns)
    importer = importers(config)[0]
    for piece in importer.pieces(10):
        for raw in importer.read(piece):
            raw.load()


def read_embeddings(folder: Path, ran: Path) -> None:
    write_pickles(folder / "embeddings" / "0.parquet", ran, ("key", "image_embedding"))
    config = EmbeddingsConfig(path=str(folder / "embeddings"), text_column=None)
    [piece.read() for piece in pieces(config, 10)]


def read_npy(folder: Path, ran: Path) -> None:
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", np.array([[Payload(ran)]], dtype=object), allow_pickle=True)
    pq.write_table(pa.table({"key": ["a"]}), folder / "metadata" / "metadata_0.parquet")
    config = EmbeddingsConfig(path=str(folder), text_column=None)
    [piece.read() for piece in pieces(config, 10)]


def read_benchmark(folder: Path, ran: Path) -> None:
    [record.values for record in read_records(write_pickles(folder / "b.parquet", ran, ("question", "answer")))]


def read_answers(folder: Path, ran: Path) -> None:
    read_stored(write_pickles(folder / "a.parquet", ran, ("key", "question", "answer", "error")))


def read_keys(folder: Path, ran: Path) -> None:
    _keys(str(write_pickles(folder / "keys.parquet", ran, ("key",))))


def read_nested(folder: Path, ran: Path) -> None:
    read_parquet(write_pickles(folder / "n.parquet", ran, ("key",), nested=True).key, "n").to_pylist()


def read_weights(folder: Path, ran: Path) -> None:
    torch.save({"weight": Payload(ran)}, folder / "pytorch_model.bin")
    [read() for read in read_file(folder / "pytorch_model.bin").values()]


def read_checkpoint(folder: Path, ran: Path) -> None:
    torch.save({"python": Payload(ran)}, folder / "random-00000.pt")
    read_random_state(folder / "random-00000.pt")


def read_recipe(folder: Path, ran: Path) -> None:
    parse(f"name: !!python/object/apply:pathlib.Path.touch [{ran}]", "recipe.yaml")


READERS: list[Callable[[Path, Path], None]] = [
    read_shard, ingest, read_embeddings, read_npy, read_benchmark, read_answers, read_keys, read_nested, read_weights,
    read_checkpoint, read_recipe,
]  # fmt: skip


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_malicious_file_is_refused_and_runs_nothing(
    read: Callable[[Path, Path], None], tmp_path: Path, ran: Path
) -> None:
    with pytest.raises((DataError, ModelError, CheckpointError, ConfigError)) as refused:
        read(tmp_path, ran)
    assert not ran.exists()
    assert "\n" not in str(refused.value)


def test_the_attack_works_on_who_does_not_look(tmp_path: Path, ran: Path) -> None:
    pq.read_table(write_pickles(tmp_path / "a.parquet", ran, ("key",)).key).to_pylist()
    assert ran.exists()


def test_random_states_come_back_also_those_of_earlier_versions(tmp_path: Path) -> None:
    seed_everything(5)
    write_random_state(tmp_path / "new.pt")
    torch.save({**torch.load(tmp_path / "new.pt"), "numpy": np.random.get_state()}, tmp_path / "old.pt")
    expected = np.random.rand(3).tolist()
    for name in ("new.pt", "old.pt"):
        seed_everything(6)
        read_random_state(tmp_path / name)
        assert np.random.rand(3).tolist() == expected


def test_no_image_is_handed_to_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript run PostScript where it is installed; here a program of that name leaves a mark."""
    program, ran = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with contextlib.suppress(OSError):  # its result is no image
        Image.open(io.BytesIO(postscript)).load()
    assert ran.exists(), "Pillow runs nothing any more, so this test shows nothing"
    ran.unlink()
    readers: list[Callable[[bytes], object]] = [decode_image, image_size, ImageRules(alpha="white").rewritten]
    for read in readers:
        with pytest.raises((BadSampleError, UnidentifiedImageError)):
            read(postscript)
    assert not ran.exists()


FORBIDDEN_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "cPickle"}
FORBIDDEN_NAMES = {"unsafe_load", "full_load", "unsafe_load_all", "read_pickle", "Unpickler", "load_pickle"}
# What comes from Ray's object store was written by the same job; a job may run code anyway.
OWN_PICKLES = {"platform/warren/cluster/batch/benchmark.py"}
# DeepSpeed's loads unpickle, unless they are inside `only_tensors` as here.
DEEPSPEED = "platform/warren/train/engine.py"
IMAGES = {"platform/warren/data/image_formats.py", "serve/warren_serve/image_checks.py"}
PARQUET = "platform/warren/storage/parquet.py"


def faults(name: str, text: str) -> list[str]:
    """Return the lines of a module that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        line = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            found += [f"{line} imports {module}" for module in modules & FORBIDDEN_MODULES]
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NAMES:
            found.append(f"{line} uses {node.attr}")
        if not isinstance(node, ast.Call):
            continue
        options = {one.arg: ast.unparse(one.value) for one in node.keywords}
        called = ast.unparse(node.func)
        is_wrong = (
            (called in ("pickle.load", "pickle.loads") and name not in OWN_PICKLES)
            or (called == "torch.load" and options.get("weights_only") != "True")
            or (called in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
            or (called == "yaml.load" and "Loader" not in options)
            or (called in ("pq.ParquetFile", "pq.read_table", "pq.ParquetDataset") and name != PARQUET)
            or (called == "Image.open" and name not in IMAGES)
            or (called.endswith(".load_checkpoint") and name != DEEPSPEED)
            or called in ("eval", "exec", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter")
            or options.get("trust_remote_code") == "True"
        )
        if is_wrong:
            found.append(f"{line} calls {called}")
    return found


def test_the_source_has_no_reader_that_could_run_code(repository: Path) -> None:
    found = []
    for root in ("platform/warren", "serve/warren_serve", "jobs"):
        for path in (repository / root).rglob("*.py"):
            found += faults(str(path.relative_to(repository)), path.read_text())
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["import joblib", "from dill import loads", "torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(f)",
     "np.load(p, allow_pickle=True)", "yaml.load(t)", "yaml.unsafe_load(t)", "pd.read_pickle(p)", "pq.read_table(p)",
     "AutoModel.from_pretrained(p, trust_remote_code=True)", "eval(text)", "Image.open(f)",
     "engine.load_checkpoint(p)", "torch.jit.load(p)", "torch.hub.load(p, 'm')"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert faults("a.py", text)
