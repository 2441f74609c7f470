"""Precomputed embeddings: Parquet files, or folders as clip-retrieval writes them. They are read in checked pieces."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from warren.config.curate import EmbeddingsConfig
from warren.data.importers.files import find_files
from warren.errors import ConfigError, DataError
from warren.storage import Location
from warren.storage.parquet import open_parquet

_NUMBER = re.compile(r"(\d+)(?=\.\w+$)")


@dataclass(frozen=True)
class Embeddings:
    """Some samples' embeddings, as they are stored.

    Attributes:
        keys: The samples' keys.
        image: (n, width), float16 or float32.
        text: Text embeddings of the same shape; None if there are none.
        cluster: (n,), assigned clusters; None if there are none.
    """

    keys: list[str]
    image: np.ndarray
    text: np.ndarray | None
    cluster: np.ndarray | None


@dataclass(frozen=True)
class EmbeddingPiece:
    """Rows of one file of embeddings, read by one task.

    Attributes:
        first: The number of its first row among all embeddings.
        start: First row in its file.
        stop: The row after its last.
        files: The Parquet file; of clip-retrieval the files of metadata, image and text embeddings.
    """

    kind: Literal["parquet", "npy"]
    files: tuple[Location, ...]
    start: int
    stop: int
    first: int
    columns: EmbeddingsConfig

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def read(self) -> Embeddings:
        """Read the embeddings.

        Raises:
            DataError: Rows of different lengths, or files that do not belong together.
        """
        return _read_parquet(self) if self.kind == "parquet" else _read_npy(self)

    def keys(self) -> list[str]:
        """Read the keys alone."""
        return _keys(_table(self, [self.columns.key_column]), self)


def pieces(config: EmbeddingsConfig, rows_per_piece: int) -> list[EmbeddingPiece]:
    """Cut a source of embeddings into pieces.

    Raises:
        ConfigError: There are no files, or they lack a column.
        DataError: Files that describe the same samples have different lengths.
    """
    if config.path is None:
        raise ConfigError("embeddings.path is not set: it names the files of the embeddings")
    folder = Location.parse(config.path)
    images = [file for file in (folder / "img_emb").list() if file.name.endswith(".npy")]
    if images:
        sets = [("npy", _files_of(folder, image, config)) for image in sorted(images, key=_order)]
    else:
        sets = [("parquet", (file,)) for file in find_files(config.path, (".parquet",))]
    made: list[EmbeddingPiece] = []
    first = 0
    for kind, files in sets:
        total = _num_rows(files, config)
        for start in range(0, total, rows_per_piece):
            stop = min(start + rows_per_piece, total)
            made.append(EmbeddingPiece(kind, files, start, stop, first, config))  # type: ignore[arg-type]
            first += stop - start
    if not made:
        raise ConfigError(f"embeddings.path {config.path!r}: its files hold no embeddings")
    return made


def width(source: Sequence[EmbeddingPiece]) -> tuple[int, int]:
    """Return length and bytes of one image embedding."""
    piece = source[0]
    first = EmbeddingPiece(piece.kind, piece.files, piece.start, piece.start + 1, 0, piece.columns).read().image
    return first.shape[1], first.shape[1] * first.dtype.itemsize


def _order(file: Location) -> tuple[int, str]:
    number = _NUMBER.search(file.name)
    return (int(number[1]) if number else 0, file.name)


def _files_of(folder: Location, image: Location, config: EmbeddingsConfig) -> tuple[Location, ...]:
    """Return the files of `img_emb/img_emb_N.npy`: `metadata/metadata_N.parquet`, itself, `text_emb/text_emb_N.npy`."""
    name = image.name.removesuffix(".npy").replace("img_emb", "{}")
    files = [folder / "metadata" / f"{name.format('metadata')}.parquet", image]
    if config.text_column is not None:
        files.append(folder / "text_emb" / f"{name.format('text_emb')}.npy")
    known = {file.uri for file in folder.list()}
    for file in files:
        if file.uri not in known:
            raise ConfigError(
                f"{file} is not there; it belongs to {image.name} (no texts: embeddings.text_column: null)"
            )
    return tuple(files)


def _num_rows(files: tuple[Location, ...], config: EmbeddingsConfig) -> int:
    parquet = _open(files[0])
    names = parquet.schema_arrow.names
    columns = [config.key_column, config.cluster_column]
    columns += [config.image_column, config.text_column] if len(files) == 1 else []
    missing = [name for name in columns if name is not None and name not in names]
    if missing:
        raise ConfigError(f"{files[0]} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}")
    counts = [parquet.metadata.num_rows, *(_npy_shape(file)[0] for file in files[1:])]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{file.name}: {n}" for file, n in zip(files, counts, strict=True))
        raise DataError(f"embeddings of unequal length ({listed}): each row of these files must be one sample")
    return int(counts[0])


def _open(file: Location) -> pq.ParquetFile:
    return open_parquet(file.key, str(file), filesystem=file.filesystem)


def _table(piece: EmbeddingPiece, columns: list[str]) -> pa.Table:
    """Read a piece's rows of a Parquet file, and no row group that holds none of them."""
    file = _open(piece.files[0])
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first = int(np.searchsorted(ends, piece.start, side="right"))
    last = int(np.searchsorted(ends, piece.stop, side="left"))
    table = file.read_row_groups(list(range(first, min(last + 1, len(sizes)))), columns=columns)
    return table.slice(piece.start - int(ends[first] - sizes[first]), piece.count)


def _read_parquet(piece: EmbeddingPiece) -> Embeddings:
    columns = piece.columns
    names = [columns.key_column, columns.image_column, columns.text_column, columns.cluster_column]
    table = _table(piece, [name for name in names if name is not None])
    image, text = (None if n is None else _matrix(table, n, piece.files[0]) for n in names[1:3])
    assert image is not None
    return _checked(piece, _keys(table, piece), image, text, table)


def _read_npy(piece: EmbeddingPiece) -> Embeddings:
    columns = piece.columns
    table = _table(piece, [name for name in (columns.key_column, columns.cluster_column) if name is not None])
    image, text = [*(_npy_rows(file, piece.start, piece.stop) for file in piece.files[1:]), None][:2]
    assert image is not None
    return _checked(piece, _keys(table, piece), image, text, table)


def _checked(
    piece: EmbeddingPiece, keys: list[str], image: np.ndarray, text: np.ndarray | None, table: pa.Table
) -> Embeddings:
    if text is not None and text.shape != image.shape:
        raise DataError(
            f"{piece.files[-1]}: image embeddings have {image.shape[1]} numbers and text embeddings {text.shape[1]}: "
            "they must come from one model, or set embeddings.text_column to null"
        )
    name = piece.columns.cluster_column
    cluster = None if name is None else _column(table, name, piece.files[0]).to_numpy().astype(np.int64)
    return Embeddings(keys, image, text, cluster)


def _column(table: pa.Table, name: str, file: Location) -> pa.ChunkedArray:
    column = table[name]
    if column.null_count:
        raise DataError(f"{file}: {column.null_count} of {len(column)} values of {name!r} are missing")
    return column


def _keys(table: pa.Table, piece: EmbeddingPiece) -> list[str]:
    """Return keys as text; clip-retrieval has numbers in some versions."""
    keys: list[str] = _column(table, piece.columns.key_column, piece.files[0]).cast(pa.string()).to_pylist()
    return keys


def _matrix(table: pa.Table, name: str, file: Location) -> np.ndarray:
    """Return a column of lists of numbers as a matrix."""
    column = _column(table, name, file).combine_chunks()
    # Some types stay chunked (`combine_chunks` of several chunks of lists).
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_fixed(column.type)):
        raise DataError(f"{file}: column {name!r} holds {column.type}; expected a list of float16 or float32 a row")
    if not pa.types.is_floating(column.type.value_type):
        raise DataError(f"{file}: column {name!r} holds {column.type}; expected a list of float16 or float32 a row")
    flat = column.flatten()
    if flat.null_count:
        raise DataError(f"{file}: {flat.null_count} numbers of {name!r} are missing")
    if not _is_fixed(column.type):
        lengths = np.asarray(column.value_lengths())
        usual = int(np.median(lengths)) if len(lengths) else 0
        odd = int((lengths != usual).sum())
        if odd:
            raise DataError(f"{file}: {odd} of {len(lengths)} embeddings of {name!r} do not have {usual} numbers")
    values = flat.to_numpy(zero_copy_only=False)
    # float16 stays as it is until it is computed with: embeddings are the largest data here.
    values = np.asarray(values, np.float32 if values.dtype == np.float64 else None)
    return values.reshape(len(column), -1)


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _npy_shape(file: Location) -> tuple[int, int, np.dtype, int]:
    """Return rows, width and type of a matrix in a .npy file, and where its data begin."""
    with file.open() as opened:
        try:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(opened)
        except ValueError as error:
            raise DataError(f"{file} is no .npy file: {error}") from None
        # Rows must be contiguous, because tasks read ranges of rows.
        if len(shape) != 2 or by_column or dtype.kind != "f" or dtype.itemsize > 4:
            raise DataError(f"{file} holds {dtype} {shape}; expected float16 or float32 in rows, one a sample")
        return shape[0], shape[1], dtype, opened.tell()


def _npy_rows(file: Location, start: int, stop: int) -> np.ndarray:
    _, columns, dtype, begin = _npy_shape(file)
    row_bytes = columns * dtype.itemsize
    data = file.read_range(begin + start * row_bytes, begin + stop * row_bytes)
    if len(data) != (stop - start) * row_bytes:
        raise DataError(f"{file} ends early: {len(data)} bytes of {(stop - start) * row_bytes}; copy it again")
    return np.frombuffer(data, dtype).reshape(-1, columns)
