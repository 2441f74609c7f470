"""The reference of settings and endpoint files, made of their schemas: `python -m warren_serve.settings_reference`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from warren.config import RolloutPolicy
from warren_serve.endpoint_file import EndpointFile, HttpOptions, LoggingOptions, ServeOptions
from warren_serve.settings import EndpointSettings

_PATH = Path(__file__).parents[2] / "docs" / "reference" / "endpoint.md"
_HEAD = """# Settings of the endpoint

An endpoint file (`jobs/endpoints/*.yaml`, [releases.md](../releases.md)) has these settings under `settings`. Unknown
names and wrong types are refused. `python -m warren_serve.settings_reference` writes this page from the schemas in
[`serve/warren_serve/settings.py`](../../serve/warren_serve/settings.py) and `endpoint_file.py`.

A Serve configuration that deploys `warren_serve.front:build` by hand has them as the application's `args`, beside
`release` (required: the release's name below `WARREN_STORAGE`, or the URI of its folder, without a version), `rollout`
(the table below) and `endpoint` (name or path of an endpoint file; what the args say goes over it).
"""
_FILE_HEAD = """
# Keys of endpoint files

Any key can be set on the command line of `jobs/release.py`, beside `--endpoint`:
`--set endpoint.settings.max_replicas=4`.
"""
_COLUMNS = """
| {} | type | default | meaning |
|---|---|---|---|
"""
_SECTIONS: dict[str, type[BaseModel]] = {
    "endpoint": EndpointFile,
    "rollout": RolloutPolicy,
    "serve": ServeOptions,
    "serve.http": HttpOptions,
    "serve.logging": LoggingOptions,
}
_LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}"}


def reference() -> str:
    """Return the page in Markdown: one row for each field of `EndpointSettings`, then those of `EndpointFile`."""
    parts = [_HEAD, _table("setting", EndpointSettings), _FILE_HEAD]
    for title, section in _SECTIONS.items():
        parts += [f"\n## `{title}`\n", _table("key", section)]
    return "".join(parts)


def _table(head: str, section: type[BaseModel]) -> str:
    fields = section.model_json_schema()["properties"].items()
    rows = [_row(name, field) for name, field in sorted(fields, key=lambda item: "default" in item[1])]
    return _COLUMNS.format(head) + "\n".join(rows) + "\n"  # what is required comes first


def _row(name: str, field: Mapping[str, Any]) -> str:
    default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
    if "$ref" in field:
        default = "see its table"
    cells = (f"`{name}`", " or ".join(_types(field)), default, field["description"])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _types(field: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types that a field allows, each with its limits."""
    for kind in field.get("anyOf", [field]):
        if "$ref" in kind:
            yield "section"
            continue
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
