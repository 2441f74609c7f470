"""A storage object as a seekable file. Each read is one request for a byte range, with its own retries."""

import io
from typing import Any

from warren.storage.store import Store


class RangeFile(io.RawIOBase):
    """Reads byte ranges on demand; wrap it in a `BufferedReader`, whose buffer is the size of one request.

    Args:
        store: The store that holds the object.
        key: The object's key.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._size = store.size(key)
        self._position = 0

    def readable(self) -> bool:
        """Return True: the file is for reading."""
        return True

    def seekable(self) -> bool:
        """Return True: every position can be read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the byte position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the object goes."""
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._store.read_range(self._key, self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
