"""Reading the small JSON objects beside the releases (pins, marks, verdicts, history); an error names the file."""

from collections.abc import Callable
from typing import Any, TypeVar

from warren.errors import ReleaseError
from warren.storage import Location

RecordT = TypeVar("RecordT")


def read_record(location: Location, parse: Callable[[Any], RecordT]) -> RecordT:
    """Read a JSON object and make a value of it.

    Raises:
        NotFoundError: There is no such object.
        ReleaseError: It does not hold what it should.
    """
    return parse_record(location, location.read_json, parse)


def parse_record(location: Location, load: Callable[[], Any], parse: Callable[[Any], RecordT]) -> RecordT:
    """Make a value of what `load` returns, as `read_record` does."""
    try:
        return parse(load())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ReleaseError(f"{location} is damaged ({error!r}): restore it from a copy") from None
