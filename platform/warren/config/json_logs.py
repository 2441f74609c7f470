"""Logs as lines of JSON, for collectors of logs; on where the environment variable WARREN_LOG_FORMAT is `json`."""

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO, cast

from warren.errors import ConfigError

LOG_FORMAT_VARIABLE = "WARREN_LOG_FORMAT"
FIELDS = "fields"
"""A record's `extra` of this name is a mapping, whose entries stand in the line in place of the message."""


def logs_are_json() -> bool:
    """Return whether logs are to be JSON.

    Raises:
        ConfigError: `WARREN_LOG_FORMAT` is neither `json` nor `text`.
    """
    text = os.environ.get(LOG_FORMAT_VARIABLE, "").strip() or "text"
    if text not in ("json", "text"):
        raise ConfigError(f"{LOG_FORMAT_VARIABLE}={text!r}: expected json or text")
    return text == "json"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, and an exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, FIELDS, None)
        entry = _entry(record.created, record.levelname, record.name)
        entry |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class JsonLines(io.TextIOBase):
    """A text stream that writes each line as one of JSON, for what is printed and not logged.

    Args:
        target: Where the lines go.
        name: Their `logger`.
    """

    def __init__(self, target: TextIO, name: str) -> None:
        self._target, self._name, self._pending = target, name, ""

    def write(self, text: str) -> int:
        """Write the lines that are complete, and keep the rest."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written; an incomplete line waits for its end."""
        self._target.flush()

    def finish(self) -> None:
        """Write the last line, although it has no end."""
        self._write_line(self._pending)
        self._pending = ""
        self.flush()

    def _write_line(self, line: str) -> None:
        if not line.strip():
            return
        level, _, rest = line.partition(": ")
        is_level = level in ("error", "warning") and bool(rest)
        entry = _entry(time.time(), level.upper() if is_level else "INFO", self._name)
        self._target.write(json.dumps({**entry, "message": rest if is_level else line.rstrip("\r")}) + "\n")


def json_handler(target: TextIO | None = None) -> logging.Handler:
    """Return a handler that writes JSON to standard error, or to `target`."""
    handler = logging.StreamHandler(target or sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


@contextlib.contextmanager
def json_standard_error(name: str) -> Iterator[None]:
    """Write all that a command logs and prints on standard error as JSON, if the environment asks for it.

    Args:
        name: The command; printed lines have it as their logger.

    Raises:
        ConfigError: The variable has another value.
    """
    if not logs_are_json():
        yield
        return
    target = sys.stderr
    handler, lines = json_handler(target), JsonLines(target, name)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(cast(TextIO, lines)):
            yield
    finally:
        lines.finish()
        logging.getLogger().removeHandler(handler)


def _entry(time_s: float, level: str, name: str) -> dict[str, Any]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s)) + f".{int(time_s % 1 * 1000):03d}Z"
    return {"time": stamp, "level": level, "logger": name}
