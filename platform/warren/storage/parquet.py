"""Parquet files that anybody may have written, opened so that reading a value never runs code."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warren.errors import DataError

# Libraries register types of their own with pyarrow, whose values they make in Python. These are known to hold numbers.
_HARMLESS = ("ray.data.arrow_tensor", "ray.data.arrow_variable_shaped_tensor", "pandas.period", "pandas.interval")


def open_parquet(source: Any, shown: str, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file.

    Ray Data registers a type whose values are pickled Python objects, and pyarrow unpickles them wherever a value is
    read. So a file with such a type, or another one that some library registered, is refused.

    Args:
        source: As `pyarrow.parquet.ParquetFile` takes it.
        shown: What messages call the file.
        options: Those of `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: A column's type could run code.
    """
    file = pq.ParquetFile(source, **options)
    for field in file.schema_arrow:
        if name := _foreign_type(field.type):
            raise DataError(
                f"{shown}: the column {field.name!r} has the type {name}, whose values may be pickled Python objects, "
                "so reading one could run code: write the file with plain columns"
            )
    return file


def read_parquet(source: Any, shown: str, columns: list[str] | None = None, **options: Any) -> pa.Table:
    """Read a whole Parquet file.

    Raises:
        DataError: A column's type could run code.
    """
    return open_parquet(source, shown, **options).read(columns)


def _foreign_type(kind: pa.DataType) -> str:
    """Return the name of a type inside `kind` that some library makes values of; empty if there is none."""
    if isinstance(kind, pa.ExtensionType) and not kind.extension_name.startswith(_HARMLESS):
        return str(kind.extension_name)
    if isinstance(kind, pa.BaseExtensionType):
        return _foreign_type(kind.storage_type)
    if isinstance(kind, pa.DictionaryType):
        return _foreign_type(kind.value_type)
    inner = (_foreign_type(kind.field(number).type) for number in range(kind.num_fields))
    return next(filter(None, inner), "")
