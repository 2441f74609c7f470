"""Loading configurations from YAML: `extends`, `--set a.b=c`, and errors that name the nearest valid key."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from warren.config.layered_config import SET, Config, Layers, node_type
from warren.config.strict_yaml import Tree, read_document
from warren.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(schema: type[ConfigT], name: str, folders: Sequence[Path], overrides: Sequence[str] = ()) -> ConfigT:
    """Read one YAML configuration, follow its `extends`, apply `a.b=c` overrides and validate it.

    Args:
        schema: The type of the configuration.
        name: A path to a YAML file, or the name of one in `folders` (without its ending).
        folders: Where named files are searched for; the first match counts.
        overrides: `dotted.key=value` pairs; values are YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not fit the schema. One line.
    """
    layers = Layers(schema)
    for source, tree in _read(schema, name, folders, seen=()):
        layers.add(source, tree)
    layers.add_overrides(overrides)
    if "name" in schema.model_fields:  # a file that holds one section need not be named inside
        layers.values.setdefault("name", Path(name).stem)
    try:
        # Validated as JSON, because pydantic's strict mode then accepts a list for a tuple, but still not "3" for 3.
        return schema.model_validate_json(json.dumps(layers.settle()))
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(_explain(layers, e) for e in error.errors())) from None


def fingerprint(config: BaseModel) -> str:
    """Return 16 hex digits that change whenever anything in the configuration does."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def available(folders: Sequence[Path]) -> list[str]:
    """List the names that `load_config` finds in `folders`."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _read(
    schema: type[BaseModel], name: str, folders: Sequence[Path], seen: tuple[Path, ...]
) -> list[tuple[str, Tree]]:
    """Return a file and those it extends, the lowest first."""
    path = _find(schema, name, folders)
    if path.absolute() in seen:
        raise ConfigError(f"{name}: extends itself ({' → '.join([*(known.name for known in seen), path.name])})")
    tree = read_document(path, name)
    base = tree.pop("extends", None)
    if base is None:
        return [(name, tree)]
    if not isinstance(base, str) or not base:
        shown = json.dumps(base)[:80]
        raise ConfigError(f"{name}: extends: expected the name or the file of one to extend, not {shown}")
    return [*_read(schema, base, [path.parent, *folders], (*seen, path.absolute())), (name, tree)]


def _find(schema: type[BaseModel], name: str, folders: Sequence[Path]) -> Path:
    """Return the file of a name, or a file by its path: beside the file that extends it, or from here."""
    if Path(name).suffix in (".yaml", ".yml"):
        return next((folder / name for folder in folders if (folder / name).is_file()), Path(name))
    path = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    if path is None:
        noun = getattr(schema, "noun", "") or schema.__name__.lower()
        raise ConfigError(f"no {noun} named {name!r}{_nearest(name, available(folders))}")
    return path


def _explain(layers: Layers, error: Any) -> str:
    """Turn one pydantic error into `key: what is wrong, what is allowed`."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, unknown = error["loc"]
        return f"unknown key {where!r}{_nearest(str(unknown), _fields(layers.schema, parents))}"
    if error["type"] == "missing":
        return f"{where}: is required"
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    text = repr(value)
    if isinstance(value, dict | list) or (isinstance(value, str) and text in message):
        shown = ""
    else:
        shown = f" (given: {text if len(text) <= 120 else text[:117] + '…'})"
    if error["type"] == "string_type" and value is not None:
        key = error["loc"][-1]
        shown += f'; text that looks like something else goes in quotes, as in {key}: "…" or {SET} \'{where}="…"\''
    if not where:  # of several sections together: the message names their keys
        return f"{message}{shown}"
    return f"{where}: {message}{shown}{layers.inherited(tuple(str(part) for part in error['loc']), message)}"


def _fields(schema: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    node = schema
    for part in path:
        node = (node_type(node, part) if isinstance(part, str) else None) or node
    return list(node.model_fields)


def _nearest(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(sorted(valid))}" if valid else ""
