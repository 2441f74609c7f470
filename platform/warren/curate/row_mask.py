"""A set of rows, one bit for each. A row is a sample's number, counted over all parent datasets in stored order."""

from collections.abc import Iterator

import numpy as np

from warren.curate.array_files import ArrayFile, pack
from warren.storage import Location

MAX_ROWS = 2**32 - 1
_BLOCK = 1 << 23  # rows that are unpacked at a time; a multiple of 8


class RowSet:
    """Rows that are still selected.

    Args:
        num_rows: Number of rows in all, selected or not.
        bits: One bit for each row, the lowest bit of a byte first.
    """

    def __init__(self, num_rows: int, bits: np.ndarray) -> None:
        self.num_rows = num_rows
        self.bits = bits

    @classmethod
    def full(cls, num_rows: int) -> "RowSet":
        """Return the set of all rows."""
        bits = np.full(-(-num_rows // 8), 0xFF, np.uint8)
        if num_rows % 8:
            # Bits behind the last row stay zero, so that the number of bits is the number of rows.
            bits[-1] = (1 << num_rows % 8) - 1
        return cls(num_rows, bits)

    @classmethod
    def empty(cls, num_rows: int) -> "RowSet":
        """Return the set of no row."""
        return cls(num_rows, np.zeros(-(-num_rows // 8), np.uint8))

    def add(self, rows: np.ndarray) -> None:
        """Put rows into the set."""
        # `.at`, because several rows may be in one byte; plain indexing would keep only the last of them.
        np.bitwise_or.at(self.bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))

    def remove(self, rows: np.ndarray) -> None:
        """Take rows out of the set."""
        np.bitwise_and.at(self.bits, rows >> 3, ~np.left_shift(1, rows & 7).astype(np.uint8))

    def __len__(self) -> int:
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    def mask(self, start: int, stop: int) -> np.ndarray:
        """Return for each row from `start` to `stop - 1` whether it is in the set."""
        first = start // 8
        unpacked = np.unpackbits(self.bits[first : -(-stop // 8)], bitorder="little")
        return unpacked[start - first * 8 : stop - first * 8].astype(bool)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows of the set in order, some at a time."""
        for start in range(0, self.num_rows, _BLOCK):
            yield np.flatnonzero(self.mask(start, min(start + _BLOCK, self.num_rows))) + start

    def to_bytes(self) -> bytes:
        """Return the set as an object that `StoredRows` reads."""
        return pack({"bits": self.bits, "num_rows": np.array([self.num_rows])})


class StoredRows:
    """A set of rows in storage, of which tasks read the part that they need."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def load(self) -> RowSet:
        """Read the whole set."""
        file = ArrayFile(self.location)
        return RowSet(int(file.read("num_rows")[0]), file.read("bits").copy())

    def contains(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row whether it is in the set."""
        if not len(rows):
            return np.zeros(0, bool)
        first = int(rows.min()) // 8
        bits = ArrayFile(self.location).read("bits", first, int(rows.max()) // 8 + 1)
        return (bits[(rows >> 3).astype(np.int64) - first] >> (rows & 7).astype(np.uint8) & 1).astype(bool)
