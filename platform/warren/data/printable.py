"""Values of unknown origin as short text: for messages, and for columns that must be valid UTF-8."""

MAX_SHOWN_CHARACTERS = 300


def storable(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return text that UTF-8 can encode and a person can read: half surrogate pairs escaped, the end cut off."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shown(value: object, limit: int = 120) -> str:
    """Return a value as a message shows it: text and numbers as they are, anything else by its type."""
    if isinstance(value, str | int | float | None):
        try:
            return storable(str(value), limit)
        except ValueError:  # an integer with more digits than Python prints
            return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a number"
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return storable(str(list(value)), limit)
    return f"a {type(value).__name__}"


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode a text: JSON can write half of a surrogate pair, which no file can hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
