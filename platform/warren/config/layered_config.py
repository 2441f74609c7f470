"""Layered configurations: a file over the file that it extends, `--set` over both, and the layer of each value.

Mappings of a layer are merged into those of the layers below. Some keys exclude each other and must not be merged:
`Config.replaces` lists the inherited keys that a key replaces.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict

from warren.config.strict_yaml import Tree, parse
from warren.errors import ConfigError

_log = logging.getLogger(__name__)
Path = tuple[str, ...]
Replaces = Mapping[str, tuple[str, ...]]
SET = "--set"
_UNSET: tuple[Any, ...] = (None, [], {})


class Config(BaseModel):
    """Base of every configuration node: frozen, no unknown keys, no silent conversions.

    Attributes:
        replaces: For a key, the keys of lower layers that are removed when a layer changes its value. Keys of nested
            sections are dotted.
        noun: What messages call a file of it; empty: the class' name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    replaces: ClassVar[Replaces] = {}
    noun: ClassVar[str] = ""


def alternatives(*keys: str) -> Replaces:
    """Return `replaces` for keys of which each replaces all others."""
    return {key: tuple(other for other in keys if other != key) for key in keys}


@dataclass
class Layers:
    """The layers of a configuration so far, merged.

    Attributes:
        schema: The type of the whole tree.
        values: The merged tree.
        names: The layers, lowest first.
    """

    schema: type[BaseModel]
    values: Tree = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    _origins: dict[Path, str] = field(default_factory=dict)

    def add(self, name: str, tree: Tree) -> None:
        """Add a file as the highest layer."""
        self.names.append(name)
        self._drop_replaced(self.schema, (), tree)
        self._merge((), tree)

    def add_overrides(self, overrides: Sequence[str]) -> None:
        """Add `a.b=c` overrides as the highest layer; each replaces the whole value of its key.

        Raises:
            ConfigError: One is not of that form.
        """
        if not overrides:
            return
        self.names.append(SET)
        together: Tree = {}
        parsed = [_parse(override) for override in overrides]
        for override, (path, value) in zip(overrides, parsed, strict=True):
            _assign(together, path, value, override)
        self._drop_replaced(self.schema, (), together)
        for override, (path, value) in zip(overrides, parsed, strict=True):
            _assign(self.values, path, value, override)
            self._forget(path)
            self._origins[path] = SET

    def settle(self) -> Tree:
        """Return the merged tree. A null that the schema does not allow unsets an inherited value, for the default."""
        return _without_nulls(self.schema, self.values)

    def origin(self, path: Path) -> str | None:
        """Return the layer that a value is from, or None for a default."""
        while path:
            if path in self._origins:
                return self._origins[path]
            path = path[:-1]
        return None

    def inherited(self, node: Path, message: str) -> str:
        """Return a hint for an error message: which of its keys are inherited, and how to unset them."""
        value = _get(self.values, node)
        if isinstance(value, dict):
            words = set(re.findall(r"\w+", message))
            paths = [(*node, key) for key in value if key in words]
        else:
            paths = [node] if node else []
        notes = []
        for path in paths:
            origin = self.origin(path)
            if origin in (None, self.names[-1]) or _get(self.values, path) in _UNSET:
                continue
            key = ".".join(path)
            unset = (
                f"--set {key}=null" if self.names[-1] == SET else f"'{path[-1]}: null' under {key.rpartition('.')[0]!r}"
            )
            notes.append(f"; {key} is inherited from {origin}, {unset} unsets it")
        return "".join(notes)

    def _merge(self, at: Path, over: Tree) -> None:
        target = _get(self.values, at)
        for key, value in over.items():
            path = (*at, key)
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                self._merge(path, value)
                continue
            target[key] = value
            self._forget(path)
            self._origins[path] = self.names[-1]

    def _drop_replaced(self, schema: type[BaseModel], at: Path, over: Tree) -> None:
        """Remove the inherited keys that the next layer's keys replace, before its own values are merged."""
        below = _get(self.values, at)
        for key, others in getattr(schema, "replaces", {}).items():
            new_value = _get(over, tuple(key.split(".")))
            if new_value in _UNSET or new_value == _get(below, tuple(key.split("."))):
                continue
            for other in (tuple(name.split(".")) for name in others):
                if _get(below, other) not in _UNSET:
                    self._remove((*at, *other), ".".join((*at, key)), is_explicit=_sets(over, other))
        for key, value in over.items():
            child = node_type(schema, key)
            if child is not None and isinstance(value, dict) and isinstance(below.get(key), dict):
                self._drop_replaced(child, (*at, key), value)

    def _remove(self, path: Path, by: str, is_explicit: bool) -> None:
        if not is_explicit:
            _log.warning("%s replaces %s, inherited from %s", by, ".".join(path), self.origin(path))
        del _get(self.values, path[:-1])[path[-1]]
        self._forget(path)

    def _forget(self, path: Path) -> None:
        for known in [known for known in self._origins if known[: len(path)] == path]:
            del self._origins[known]


def node_type(schema: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the type of the node below a key, if it is one."""
    if key not in schema.model_fields:
        return None
    annotation = schema.model_fields[key].annotation
    candidates = [annotation, *get_args(annotation)]
    candidates += [inner for candidate in candidates for inner in get_args(candidate)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _without_nulls(schema: type[BaseModel], tree: Tree) -> Tree:
    settled = {}
    for key, value in tree.items():
        field_of = schema.model_fields.get(key)
        if value is None and field_of is not None and type(None) not in get_args(field_of.annotation):
            continue
        child = node_type(schema, key)
        settled[key] = _without_nulls(child, value) if child is not None and isinstance(value, dict) else value
    return settled


def _sets(tree: Any, path: Path) -> bool:
    """Return whether a layer sets a key, also to null."""
    node = _get(tree, path[:-1])
    return isinstance(node, dict) and path[-1] in node


def _get(tree: Any, path: Path) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _parse(override: str) -> tuple[Path, Any]:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    shown = f"--set {override[:120]!r}"
    if not equals or not all(path):
        raise ConfigError(f"{shown}: expected key=value, for example pretrain.seed=7")
    return path, parse(text, shown)


def _assign(tree: Tree, path: Path, value: Any, override: str) -> None:
    *parents, leaf = path
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, it has no keys of its own")
    tree[leaf] = value
