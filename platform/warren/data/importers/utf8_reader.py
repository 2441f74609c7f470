"""UTF-8 text, read on demand, with the byte position of what comes next."""

import codecs
import re
from typing import IO

from warren.data.importers.files import start_of_text
from warren.errors import DataError

_CHUNK_BYTES = 1 << 20
_MAX_AHEAD_CHARACTERS = 512 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class Utf8Reader:
    """Reads a UTF-8 file from front to back, and knows its position in bytes.

    Args:
        file: Opened at its start.
        name: For errors.

    Attributes:
        name: Of the file.
        position: Of the next character, in bytes.
        text: Characters that have been read; the next one is at `at`.
    """

    def __init__(self, file: IO[bytes], name: object) -> None:
        self._file, self.name = file, name
        self.position = self._read_bytes = start_of_text(file, name)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.at = "", 0

    def next_character(self) -> str:
        """Skip white space, and return the next character without skipping it; "" at the end."""
        while True:
            self.advance(_SPACE.match(self.text, self.at).end() - self.at)  # type: ignore[union-attr]  # matches always
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def advance(self, num_characters: int) -> None:
        """Skip characters that are in `text`."""
        end = self.at + num_characters
        self.position += len(self.text[self.at : end].encode())
        self.at = end

    def more(self) -> bool:
        """Read more, and return whether there was more. It doubles `text`, so that a long value is not scanned often.

        Raises:
            DataError: It is not UTF-8, or longer than a record can be.
        """
        ahead = len(self.text) - self.at
        if ahead > _MAX_AHEAD_CHARACTERS:
            raise self.error(f"the record has more than {_MAX_AHEAD_CHARACTERS} characters")
        chunk = self._file.read(max(_CHUNK_BYTES, ahead))
        try:
            decoded = self._decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            place = self._read_bytes + len(chunk) - len(error.object) + error.start
            raise DataError(f"{self.name}: it is not UTF-8 at byte {place}: {error.reason}; convert it") from None
        self._read_bytes += len(chunk)
        self.text, self.at = self.text[self.at :] + decoded, 0
        return bool(chunk)

    def error(self, message: str) -> DataError:
        """Return an error that names the file and the byte."""
        return DataError(f"{self.name}: byte {self.position}: {message}")
