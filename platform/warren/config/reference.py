"""The reference page of recipes and resources, generated from their schemas: `python -m warren.config.reference`.

The meaning of a key is its entry in the `Attributes` of the class's docstring, or the comment behind the field.
"""

import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from warren.config.recipe import Recipe
from warren.config.resources import Resources

_PATH = Path(__file__).parents[3] / "docs" / "reference" / "recipe.md"
_HEAD = """# Keys of recipes and resources

`jobs/recipes/*.yaml` are recipes, `jobs/resources/*.yaml` are resources. Any key can be set on the command line:
`--set finetune.seed=7`, `--set resources.num_workers=4`. Unknown keys and wrong types are refused.
`python -m warren.config.reference` writes this page from the schemas in `platform/warren/config/`.
"""
_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.M)


def reference() -> str:
    """Return the page in Markdown: one table for each section of a recipe, and one for the resources."""
    tables = [_table("recipe", Recipe), *_nested("", Recipe, {Recipe}), _table("resources", Resources)]
    return "\n".join([_HEAD, *tables])


def _nested(prefix: str, schema: type[BaseModel], shown: set[type]) -> Iterator[str]:
    """Yield the tables of a schema's sections; a class that several keys share has one table, under the first key."""
    for name, field in schema.model_fields.items():
        for section in _models_of(field.annotation):
            if section not in shown:
                shown.add(section)
                step = section.model_fields.get("step")  # of several kinds in one list
                kind = f": {get_args(step.annotation)[0]}" if step else ""
                yield _table(f"{prefix}{name}{kind}", section)
                yield from _nested(f"{prefix}{name}.", section, shown)


def _table(title: str, schema: type[BaseModel]) -> str:
    meanings = _meanings(schema)
    rows = [_row(name, field, meanings.get(name, "")) for name, field in schema.model_fields.items()]
    summary = inspect.getdoc(schema) or ""
    head = [f"## `{title}`", "", " ".join(summary.partition("\n\nAttributes:")[0].split()), ""]
    return "\n".join([*head, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo, meaning: str) -> str:
    cells = (f"`{name}`", _type(field.annotation), _default(field), re.sub(r"\bNone\b", "null", meaning))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _meanings(schema: type[BaseModel]) -> dict[str, str]:
    """Return the meaning of each field of a class."""
    source = inspect.getsource(schema)
    lines = source.splitlines()
    meanings = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (field := re.match(r"    (\w+):", lines[token.start[0] - 1])):
            meanings[field[1]] = token.string.lstrip("# ")
    attributes = (inspect.getdoc(schema) or "").partition("Attributes:\n")[2]
    return meanings | {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(attributes)}


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_of(inner)


def _type(annotation: Any) -> str:
    """Return a type in the words of YAML."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "NoneType": "null"}
    if isinstance(annotation, type) and not get_args(annotation):
        return names.get(annotation.__name__, annotation.__name__)
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    text = str(annotation)
    inner = [_type(each) for each in get_args(annotation) if isinstance(each, type) or get_origin(each)]
    if "Literal" in text.split("[")[0]:
        return " or ".join(f"`{json.dumps(each)}`" for each in get_args(annotation))
    if text.startswith(("tuple", "list")):
        return f"list of {' or '.join(dict.fromkeys(inner))}"
    if text.startswith(("dict", "collections.abc.Mapping")):
        return "mapping"
    return " or ".join(dict.fromkeys(inner)) if inner else text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see its table"
    return f"`{json.dumps(value, default=str)}`"


if __name__ == "__main__":
    _PATH.parent.mkdir(exist_ok=True)
    _PATH.write_text(reference())
