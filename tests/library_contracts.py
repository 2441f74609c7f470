"""What the contract tests share: a message that says what changed in a library, and what of Warren depends on it."""

import inspect
from collections.abc import Callable
from typing import Any


def changed(tie: Any, what: str) -> str:
    """Return the message of a contract that does not hold any more.

    Args:
        tie: The function or class of `warren.compat` that depends on it; its docstring says why, and what to do.
        what: What is not as it was.
    """
    return f"{what}.\n\n{tie.__module__}.{tie.__qualname__} depends on it: {inspect.getdoc(tie)}"


def parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters, without `self`."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def holds(thing: Any, text: str) -> bool:
    """Tell whether the source of a module, class or function holds a text."""
    return text in inspect.getsource(thing)
