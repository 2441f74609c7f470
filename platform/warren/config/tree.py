"""Strict configuration trees from YAML: `extends`, `--set a.b=c`, and errors that name the nearest valid key."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from warren.errors import ConfigError

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of every configuration node: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


ConfigT = TypeVar("ConfigT", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number (PyYAML follows YAML 1.1, which wants `1.0e-3`)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def load_config(schema: type[ConfigT], name: str, folders: Sequence[Path], overrides: Sequence[str] = ()) -> ConfigT:
    """Read one YAML configuration, follow its `extends`, apply `a.b=c` overrides and validate it.

    Args:
        schema: The node the file must be.
        name: A path to a YAML file, or the name of one in `folders` (without its ending).
        folders: Where named files are looked for, first match wins.
        overrides: `dotted.key=value` pairs; values are YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not fit the schema. One line.
    """
    tree = _read(name, folders, seen=())
    for override in overrides:
        _apply(tree, override)
    try:
        # Through JSON: strict mode then still takes a list for a tuple, but never "3" for 3.
        return schema.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(_explain(schema, e) for e in error.errors())) from None


def fingerprint(config: BaseModel) -> str:
    """Return 16 hex digits that change whenever anything in the configuration does."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def available(folders: Sequence[Path]) -> list[str]:
    """List the names that `load_config` finds in `folders`."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _read(name: str, folders: Sequence[Path], seen: tuple[str, ...]) -> Tree:
    if name in seen:
        raise ConfigError(f"{name}: extends itself ({' → '.join((*seen, name))})")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
        if not found:
            raise ConfigError(f"no recipe named {name!r}{_nearest(name, available(folders))}")
        path = found[0]
    try:
        tree = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: a mapping of keys is expected, not {type(tree).__name__}")
    base = tree.pop("extends", None)
    return tree if base is None else _merge(_read(base, [path.parent, *folders], (*seen, name)), tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, for example pretrain.seed=7")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, it has no keys of its own")
    tree[leaf] = yaml.load(text, Loader=_Loader)


def _explain(schema: type[BaseModel], error: Any) -> str:
    """Turn one pydantic error into `key: what is wrong, what is allowed`."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, unknown = error["loc"]
        return f"unknown key {where!r}{_nearest(str(unknown), _fields(schema, parents))}"
    if error["type"] == "missing":
        return f"{where}: is required"
    given = error.get("input")
    shown = "" if isinstance(given, dict | list) else f" (given: {given!r})"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _fields(schema: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    node: Any = schema
    for part in path:
        if isinstance(part, str) and part in getattr(node, "model_fields", {}):
            annotation = node.model_fields[part].annotation
            candidates = [annotation, *get_args(annotation)]
            node = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), node)
    return list(getattr(node, "model_fields", {}))


def _nearest(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(sorted(valid))}" if valid else ""
