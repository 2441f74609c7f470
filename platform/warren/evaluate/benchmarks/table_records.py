"""Published tables as records: Parquet with images inside, JSON lines beside images, TSV with Base64 images."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from warren.errors import DataError
from warren.evaluate.benchmarks.question import ImageBase64, ImageCell, QuestionImage
from warren.evaluate.benchmarks.reference_files import read_json_lines
from warren.storage import Location
from warren.storage.parquet import open_parquet

_MAX_FIELD_CHARS = 1 << 30  # a field holds a whole image
_MAX_REFERENCE_CHARS = 64  # an image column may hold the index of the row whose image it shares


@dataclass(frozen=True)
class Record:
    """One row of a table.

    Attributes:
        values: Everything but images.
        images: The images by column; a column without an image in this row is absent.
        where: File and row, for messages.
    """

    values: Mapping[str, Any]
    where: str
    images: Mapping[str, tuple[QuestionImage, ...]] = field(default_factory=dict)

    def __getitem__(self, column: str) -> Any:
        try:
            return self.values[column]
        except KeyError:
            columns = ", ".join(self.values)
            raise DataError(f"{self.where}: no column {column!r}; found {columns}") from None

    def get(self, column: str) -> Any:
        """Return a value, or None where the table has no such column."""
        return self.values.get(column)

    def image(self, column: str) -> tuple[QuestionImage, ...]:
        """Return the images of a column, none where the row has none."""
        return self.images.get(column, ())


def find_tables(folder: Location, split: str, ending: str = ".parquet") -> list[Location]:
    """Return the files of a split: those whose name begins with it, or the file itself.

    Raises:
        DataError: There are none.
    """
    below = folder.list()
    if not below:
        return [folder]
    tables = [file for file in below if file.name.startswith(split) and file.name.endswith(ending)]
    if not tables:
        names = ", ".join(sorted({file.name for file in below if file.name.endswith(ending)})[:5]) or "none"
        raise DataError(f"{folder}: no file {split}*{ending}; files with this ending: {names}")
    return tables


def read_records(file: Location) -> Iterator[Record]:
    """Read a table, whatever its format.

    Raises:
        DataError: It is not Parquet, TSV or JSON lines, or is damaged.
    """
    if file.name.endswith(".parquet"):
        return _parquet(file)
    if file.name.endswith(".tsv"):
        return _tsv(file)
    if file.name.endswith((".jsonl", ".json")):
        return _json(file)
    raise DataError(f"{file}: expected a table that ends in .parquet, .tsv, .jsonl or .json")


def _parquet(file: Location) -> Iterator[Record]:
    with file.open() as opened:
        try:
            table = open_parquet(opened, str(file))
            images = [entry.name for entry in table.schema_arrow if _holds_images(entry.type)]
            others = [name for name in table.schema_arrow.names if name not in images]
            number = 0
            for group in range(table.num_row_groups):
                for row, values in enumerate(_rows(table, group, others, images)):
                    number += 1
                    counts = {name: values.pop(name) for name in images}
                    yield Record(values, f"{file}: row {number}", _cells(file, group, row, counts))
        except pa.ArrowException as error:
            raise DataError(f"{file}: not a readable Parquet file: {error}") from None


def _rows(table: Any, group: int, others: Sequence[str], images: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a group, with the number of images in place of the images."""
    columns = {name: table.read_row_group(group, columns=[name]).column(name) for name in others}
    for name in images:
        cells = table.read_row_group(group, columns=[_without_bytes(table, name)]).column(name)
        columns[name] = pa.array([_num_images(cell) for cell in cells], pa.int64())
    return pa.table(columns).to_pylist()  # type: ignore[no-any-return]


def _without_bytes(table: Any, column: str) -> str:
    """Return the part of an image column that says which rows have images, without reading them, if there is one."""
    paths = [table.schema.column(number).path for number in range(len(table.schema))]
    return next((path for path in paths if path.startswith(f"{column}.") and path.endswith(".path")), column)


def _num_images(cell: Any) -> int:
    if not cell.is_valid:
        return 0
    return len(cell) if pa.types.is_list(cell.type) or pa.types.is_large_list(cell.type) else 1


def _cells(file: Location, group: int, row: int, counts: Mapping[str, int]) -> dict[str, tuple[QuestionImage, ...]]:
    return {
        name: tuple(ImageCell(file, group, row, name, item) for item in range(count))
        for name, count in counts.items()
        if count
    }


def _holds_images(kind: Any) -> bool:
    """Tell whether a column holds encoded images: a struct with bytes, bytes, or a list of either."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _tsv(file: Location) -> Iterator[Record]:
    """Read a table as MMBench publishes it; empty fields are None, and rotated questions share an image by index."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
    shared: dict[str, str] = {}
    try:
        text = file.read_bytes().decode()
        for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter="\t"), 1):
            values: dict[str, Any] = {name: value or None for name, value in row.items() if name is not None}
            encoded = values.pop("image", None) or ""
            if len(encoded) <= _MAX_REFERENCE_CHARS and encoded in shared:
                encoded = shared[encoded]
            elif values.get("index"):
                shared[str(values["index"])] = encoded
            images = {"image": (ImageBase64(encoded),)} if encoded else {}
            yield Record(values, f"{file}: row {number}", images)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a readable TSV file: {error}") from None


def _json(file: Location) -> Iterator[Record]:
    rows = _json_rows(file)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file}: row {number} is a {type(row).__name__}; expected an object")
        yield Record(row, f"{file}: row {number}")


def _json_rows(file: Location) -> list[Any]:
    """Return the rows of JSON lines, of a list, or of an object's `data`."""
    if file.name.endswith(".jsonl"):
        return read_json_lines(file)
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return read_json_lines(file)  # POPE calls its JSON lines .json
    rows = value.get("data", value) if isinstance(value, dict) else value
    return rows if isinstance(rows, list) else [rows]
