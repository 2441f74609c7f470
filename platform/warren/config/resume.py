"""Which settings a resumed run may change. Marks on the fields of its configuration say so.

    seed: int                                      # fixed, as every field without a mark
    keep_checkpoints: Annotated[int, OnResume.FREE]

Settings that change the loss curve are fixed. A mark on a section holds for all of its fields without their own mark.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


class OnResume(Enum):
    """Whether a field may change while a run goes on."""

    FIXED = "it changes the loss curve"
    FREE = "it does not change the loss curve"
    SCHEDULE = "it may change as long as the steps already taken keep their learning rates"


@dataclass(frozen=True)
class Change:
    """A value of a configuration that differs from an earlier one.

    Attributes:
        key: Its dotted key.
        rule: Whether it may change while a run goes on.
    """

    key: str
    old: Any
    new: Any
    rule: OnResume

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} → {self.new!r}"


def changes(
    old: Any, new: Any, key: str, schema: type[BaseModel] | None = None, rule: OnResume = OnResume.FIXED
) -> list[Change]:
    """Compare two configurations, given as JSON types, value by value.

    A key that `old` lacks, because an earlier version of Warren wrote it, has the schema's default.

    Args:
        key: Dotted key of both.
        schema: The type whose fields have the marks; None: all values follow `rule`.
        rule: The rule for values without a mark.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [Change(key, old, new, rule)]
    differences: list[Change] = []
    for name in dict.fromkeys((*old, *new)):
        field = schema.model_fields.get(name) if schema else None
        before, now = (each[name] if name in each else _default(field) for each in (old, new))
        differences += changes(before, now, f"{key}.{name}", _schema(field), _rule(field) or rule)
    return differences


def _rule(field: FieldInfo | None) -> OnResume | None:
    return next((mark for mark in field.metadata if isinstance(mark, OnResume)), None) if field else None


def _default(field: FieldInfo | None) -> Any:
    if field is None or field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))


def _schema(field: FieldInfo | None) -> type[BaseModel] | None:
    """Return the section that a field holds, if it holds one."""
    if field is None:
        return None
    candidates = (field.annotation, *get_args(field.annotation))
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)
