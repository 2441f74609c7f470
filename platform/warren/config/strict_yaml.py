"""YAML for configurations: the types of JSON and nothing else, no key twice, errors of one line."""

import json
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from warren.errors import ConfigError

Tree = dict[str, Any]

_INTEGER = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_MAX_INTEGER = 2**63 - 1
_QUOTES = "; text with ':', '[', '{', '#' or '@' goes in quotes, as in \"COCO: 2017\""
_MAX_VALUES = 100_000  # nested aliases can expand to any number of values


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, and dates, `12:30` and `=` are text (PyYAML follows YAML 1.1)."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as PyYAML declares it

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a duplicate key; PyYAML would take the last one."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: Any) -> int:
        """Read decimal digits; PyYAML would read `010` as eight."""
        return int(self.construct_scalar(node).replace("_", ""))


def _resolve(tag: str, pattern: str | re.Pattern[str], first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("null", r"^(~|null|Null|NULL|)$", "~nN")
# PyYAML looks resolvers up by a value's first character: this one is for an empty value.
_Loader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile("^$"))]
_resolve("bool", r"^(?i:yes|no|true|false|on|off)$", "yYnNtTfFoO")
_resolve("int", _INTEGER, "-+0123456789")
_resolve("float", _FLOAT, "-+0123456789.")
_resolve("merge", r"^<<$", "<")
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def read_document(path: Path, shown: str) -> Tree:
    """Read a YAML file that holds a mapping.

    Args:
        shown: What messages call the file.

    Raises:
        ConfigError: It cannot be read, is not valid YAML, or holds something else.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    tree = parse(data, shown)
    if not isinstance(tree, dict):
        kind = "an empty file" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{shown}: a mapping of keys is expected, not {kind}")
    return tree


def parse(text: str | bytes, shown: str) -> Any:
    """Parse YAML into what JSON can hold.

    Raises:
        ConfigError: It is not valid YAML, or holds a value that JSON cannot. The message is one line.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        _check(value, "", [0])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        is_syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        problem = _one_line(" ".join(filter(None, (error.context, error.problem))))
        problem = f"not valid YAML: {problem}" if is_syntax else problem
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{shown}: {problem}{where}{_QUOTES if is_syntax else ''}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{shown}: {_one_line(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{shown}: not valid YAML: it is nested too deeply, or an anchor holds itself") from None
    return json.loads(json.dumps(value))  # copies: in YAML an alias and its anchor are the same object


def _check(value: Any, where: str, count: list[int]) -> None:
    """Refuse what JSON cannot hold.

    Raises:
        ValueError: The message names the key.
    """
    count[0] += 1
    if count[0] > _MAX_VALUES:
        raise ValueError(f"it holds more than {_MAX_VALUES:,} values")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r}{_at(where)} is not text: put it in quotes")
            _check(key, where, count)
            _check(item, f"{where}.{key}".lstrip("."), count)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, f"{where}.{number}".lstrip("."), count)
    else:
        _check_scalar(value, where)


def _check_scalar(value: Any, where: str) -> None:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"the text{_at(where)} holds half a surrogate pair, which is no character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value}{_at(where)} is not a finite number")
    elif isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise ValueError(f"the integer{_at(where)} does not fit into 64 bits")
    elif value is not None:
        raise ValueError(
            f"a {type(value).__name__}{_at(where)}: allowed are text, numbers, true, false, null, lists, maps"
        )


def _at(where: str) -> str:
    return f" at {where}" if where else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
