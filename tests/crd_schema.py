"""Strict offline validation of custom resources: what an API server says under `fieldValidation=Strict`.

A CRD carries an OpenAPI schema that is nearly JSON Schema. The differences that change the verdict:

* fields the schema does not name are an error here; a server that is not strict drops them silently;
* defaults are filled in before validation, so a required field with a default may be missing;
* a null where none is allowed is dropped before defaulting;
* `x-kubernetes-list-type` makes repeated keys an error;
* `x-kubernetes-validations` are CEL rules. They run where cel-python is installed. Rules about `oldSelf`
  judge updates, so they do not run on a new object.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import yaml

if TYPE_CHECKING:
    import celpy

Json = Any
Schema = dict[str, Any]
HAS_CEL = importlib.util.find_spec("celpy") is not None

_CHILDREN = ("items", "additionalProperties")
_INTEGER_BITS = {"int32": 31, "int64": 63}
_STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
# A CRD leaves the root metadata open because the server knows it by heart. These are the fields to write.
_OBJECT_META: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
    },
}


class CrdSchema:
    """One served version of one kind."""

    def __init__(self, openapi: Schema) -> None:
        """Take the `openAPIV3Schema` of a CRD version."""
        self._schema: Schema = {**openapi, "properties": {**openapi["properties"], "metadata": _OBJECT_META}}
        self._validator = jsonschema.Draft202012Validator(_strict(self._schema))

    def errors(self, resource: Mapping[str, Json]) -> list[str]:
        """Return why a strict API server would refuse to create `resource`; empty if it would not."""
        pruned = _without_nulls(resource, self._schema)
        errors = [f"{error.json_path}: {error.message}" for error in self._validator.iter_errors(pruned)]
        # A server runs CEL only on what the schema accepts.
        return errors or [*_repeated_keys(pruned, self._schema), *_broken_rules(pruned, self._schema)]


CrdSchemas = Mapping[tuple[str, str], CrdSchema]


def load_crd_schemas(paths: Iterable[Path]) -> CrdSchemas:
    """Read CustomResourceDefinitions, one a file; the stored versions are keyed by (apiVersion, kind)."""
    # The C loader reads KubeRay's 4 MB in 2 s, the pure one in 44 s.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    schemas = {}
    for path in paths:
        crd = yaml.load(path.read_text(), Loader=loader)
        for version in crd["spec"]["versions"]:
            if version["storage"]:
                key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
                schemas[key] = CrdSchema(version["schema"]["openAPIV3Schema"])
    return schemas


def _strict(schema: Schema) -> Schema:
    """Translate one schema node, and all below it, to JSON Schema that refuses unknown fields."""
    strict = {key: value for key, value in schema.items() if key != "description"}
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    if schema.get("nullable"):
        strict["type"] = [strict["type"], "null"]
    if bits := _INTEGER_BITS.get(schema.get("format", "")):
        strict.setdefault("minimum", -(2**bits))
        strict.setdefault("maximum", 2**bits - 1)
    properties: dict[str, Schema] = schema.get("properties", {})
    if "required" in schema:
        defaulted = {name for name, child in properties.items() if "default" in child}
        strict["required"] = [name for name in schema["required"] if name not in defaulted]
    if properties:
        strict["properties"] = {name: _strict(child) for name, child in properties.items()}
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    for key in _CHILDREN:
        if isinstance(schema.get(key), dict):
            strict[key] = _strict(schema[key])
    return strict


def _child(schema: Schema, name: str) -> Schema:
    additional = schema.get("additionalProperties")
    fallback: Schema = additional if isinstance(additional, dict) else {}
    child: Schema = schema.get("properties", {}).get(name, fallback)
    return child


def _without_nulls(value: Json, schema: Schema) -> Json:
    if isinstance(value, Mapping):
        children = ((name, child, _child(schema, name)) for name, child in value.items())
        return {
            name: _without_nulls(child, child_schema)
            for name, child, child_schema in children
            if child is not None or child_schema.get("nullable")
        }
    if isinstance(value, list):
        return [_without_nulls(item, schema.get("items", {})) for item in value]
    return value


def _descend(value: Json, schema: Schema, path: str = "$") -> Iterator[tuple[Json, Schema, str]]:
    """Yield `value` and everything below it, each with its schema and JSON path."""
    yield value, schema, path
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _descend(child, _child(schema, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _descend(item, schema.get("items", {}), f"{path}[{index}]")


def _repeated_keys(value: Json, schema: Schema) -> Iterator[str]:
    for node, node_schema, path in _descend(value, schema):
        if node_schema.get("x-kubernetes-list-type") in ("map", "set"):
            for key, count in Counter(_key(item, node_schema) for item in node).items():
                if count > 1:
                    yield f"{path}: {key} is given {count} times"


def _key(item: Json, list_schema: Schema) -> tuple[Json, ...]:
    """Return what must be unique about `item`: itself in a set, its key fields in a map."""
    names = list_schema.get("x-kubernetes-list-map-keys")
    if names is None:
        return (item,)
    return tuple(item.get(name, _child(list_schema["items"], name).get("default")) for name in names)


def _broken_rules(value: Json, schema: Schema) -> Iterator[str]:
    if not HAS_CEL:
        return
    for node, node_schema, path in _descend(value, schema):
        for rule in node_schema.get("x-kubernetes-validations", ()):
            if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], node):
                yield f"{path}: {rule.get('message', rule['rule'])}"


def _holds(rule: str, node: Json) -> bool:
    from celpy.adapter import json_to_cel

    return bool(_program(rule).evaluate({"self": json_to_cel(node)}))


@cache
def _program(rule: str) -> "celpy.Runner":
    import celpy

    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
