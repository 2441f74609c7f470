"""The reference of the endpoint's settings, made of their schema: `python -m warren_serve.settings_reference`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warren_serve.settings import ServeSettings

_PATH = Path(__file__).parents[2] / "docs" / "reference" / "endpoint.md"
_HEAD = """# Settings of the endpoint

Settings are passed as the `args` of the Serve application. A release is required; everything else has a default.
Unknown names and wrong types are refused. `python -m warren_serve.settings_reference` writes this page from the schema
in [`serve/warren_serve/settings.py`](../../serve/warren_serve/settings.py).

| setting | type | default | meaning |
|---|---|---|---|
"""
_LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}"}


def reference() -> str:
    """Return the page in Markdown: one row for each field of `ServeSettings`."""
    schema = ServeSettings.model_json_schema()
    rows = [_row(name, field) for name, field in schema["properties"].items()]
    return _HEAD + "\n".join(rows) + "\n"


def _row(name: str, field: Mapping[str, Any]) -> str:
    default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
    cells = (f"`{name}`", " or ".join(_types(field)), default, field["description"])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _types(field: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types that a field allows, each with its limits."""
    for kind in field.get("anyOf", [field]):
        if "enum" in kind:
            yield " or ".join(f"`{value}`" for value in kind["enum"])
            continue
        items = kind.get("items")
        name = f"list of {items['type']}s" if items else kind["type"]
        limits = [text.format(kind[limit]) for limit, text in _LIMITS.items() if limit in kind]
        yield f"{name} ({', '.join(limits)})" if limits else name


if __name__ == "__main__":
    _PATH.parent.mkdir(exist_ok=True)
    _PATH.write_text(reference())
