"""A file of named arrays: written as a whole, read as a whole or by ranges of rows. Equal arrays give equal bytes."""

import json
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from warren.errors import CorruptDataError
from warren.storage import Location

Arrays = Mapping[str, np.ndarray]
_MAGIC = b"WARRENA1"
_START = struct.Struct("<8sQ")  # magic, bytes of the JSON header behind it
_ALIGNMENT = 64


def pack(arrays: Arrays) -> bytes:
    """Return the bytes of an array file."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = json.dumps(entries).encode()
    # Padded, so that arrays begin at multiples of 64 bytes and can be mapped or read as they are.
    header += b" " * (-(len(header) + _START.size) % _ALIGNMENT)
    parts = [_START.pack(_MAGIC, len(header)), header]
    for array in arrays.values():
        parts += [np.ascontiguousarray(array).tobytes(), b"\0" * (-array.nbytes % _ALIGNMENT)]
    return b"".join(parts)


class ArrayFile:
    """An array file in storage; its header is read once."""

    def __init__(self, location: Location) -> None:
        self.location = location

    @cached_property
    def _header(self) -> tuple[dict[str, Any], int]:
        magic, length = _START.unpack(self.location.read_range(0, _START.size))
        if magic != _MAGIC:
            raise CorruptDataError(f"{self.location} is not an array file: delete it and run the job again")
        data = self.location.read_range(_START.size, _START.size + length)
        return json.loads(data), _START.size + length

    def __contains__(self, name: str) -> bool:
        return name in self._header[0]

    def rows(self, name: str) -> int:
        """Return an array's length along its first axis."""
        return int(self._header[0][name]["shape"][0])

    def width(self, name: str) -> int:
        """Return the length of an array's rows, in values."""
        return int(np.prod(self._header[0][name]["shape"][1:]))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows `start` to `stop - 1` of an array."""
        entries, base = self._header
        entry = entries[name]
        dtype = np.dtype(entry["dtype"])
        rows, *inner = entry["shape"]
        stop = rows if stop is None else min(stop, rows)
        if stop <= start:
            return np.empty((0, *inner), dtype)
        row_bytes = dtype.itemsize * int(np.prod(inner))
        first = base + entry["offset"]
        data = self.location.read_range(first + start * row_bytes, first + stop * row_bytes)
        # A store returns fewer bytes where an object ends, without an error.
        if len(data) != (stop - start) * row_bytes:
            raise CorruptDataError(f"{self.location} ends early: delete it and run the job again")
        return np.frombuffer(data, dtype).reshape(stop - start, *inner)
