"""The reference page of errors, made of the source: `python -m warren_serve.errors_reference`.

A job ends with one line, `error: …`; the endpoint answers with a status and a code. Codes are literals in the source,
so the page is read from it.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from warren import errors
from warren.errors import WarrenError

_FOLDER = Path(__file__).parent
_PATH = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
_HEAD = """# Errors

`python -m warren_serve.errors_reference` writes this page from the source.

## Of jobs

A job that knows what is wrong prints one line, `error: …`, and exits with 1 (a wrong command line: 2; Ctrl-C: 130;
stopped: 143). In Python every error is a `WarrenError`; catch a branch for one concern, or a leaf for one cause.

| error | is a | meaning |
|---|---|---|
"""
_CODES = """
## Of the endpoint

The body is `{"error": {"message", "type", "param", "code"}}`, as OpenAI's. 429 and 503 come with `Retry-After`. `…`
stands for values. The metric `warren_request_errors_total` counts by code.

| code | status | message |
|---|---|---|
"""
_STATUS = {"bad_request": 400, "_unauthorized": 401}
# Their codes are chosen at run time.
CHOSEN = (
    ("missing_required_parameter", "400", "A field is missing; `param` names it."),
    ("unknown_parameter", "400", "There is no such field."),
    ("unsupported_parameter", "400", "OpenAI has this field, and this endpoint does not support it."),
    ("invalid_type", "400", "A field has another type."),
    ("method_not_allowed", "405", "The route exists for another method."),
    ("http_error", "4xx", "Another error of HTTP."),
    ("client_closed_request", "499", "The client left; only logs and metrics show it."),
)
_MODULES = ("warren.inference.engine", "warren.rollout.state_store", "warren.evaluate.endpoint_client")


@dataclass(frozen=True, order=True)
class EndpointError:
    """A code that a client can get, with a message of it."""

    code: str
    status: str
    message: str


def reference() -> str:
    """Return the page in Markdown."""
    rows = [f"| `{kind.__name__}` | `{kind.__bases__[0].__name__}` | {_summary(kind)} |" for kind in _kinds()]
    codes = {(code, status): message for code, status, message in CHOSEN}
    for path in sorted(_FOLDER.glob("*.py")):
        for error in endpoint_errors(path.read_text()):
            codes.setdefault((error.code, error.status), error.message)
    coded = [f"| `{code}` | {status} | {message} |" for (code, status), message in sorted(codes.items())]
    return _HEAD + "\n".join(rows) + "\n" + _CODES + "\n".join(coded) + "\n"


def _kinds() -> list[type[WarrenError]]:
    """Return the exceptions that are not private, each behind its parent."""
    for name in _MODULES:
        importlib.import_module(name)

    def below(kind: type[WarrenError]) -> Iterator[type[WarrenError]]:
        for each in sorted(kind.__subclasses__(), key=lambda one: one.__name__):
            if each.__module__ in (errors.__name__, *_MODULES):
                yield each
                yield from below(each)

    return list(below(WarrenError))


def _summary(kind: type[WarrenError]) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def endpoint_errors(source: str) -> Iterator[EndpointError]:
    """Yield the errors that a module makes with a literal code."""
    module = ast.parse(source)
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield from _error_of(node, node.func.id, function)


def _error_of(call: ast.Call, name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[EndpointError]:
    options = {one.arg: one.value for one in call.keywords}
    if name == "ApiError" and len(call.args) == 2 and "code" in options:
        status, message, code = call.args[0], call.args[1], options["code"]
    elif name in _STATUS and len(call.args) >= 2:
        status, message, code = ast.Constant(_STATUS[name]), call.args[0], call.args[1]
    else:
        return
    if isinstance(code, ast.Constant) and isinstance(status, ast.Constant):
        text = _text(_assigned(message, function)) or (ast.get_docstring(function) or "").partition("\n")[0]
        yield EndpointError(str(code.value), str(status.value), text)


def _assigned(message: ast.expr, function: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.expr:
    """Return what a variable was set to last before it is used."""
    if not isinstance(message, ast.Name):
        return message
    value: ast.expr = message
    for node in ast.walk(function):
        is_it = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == message.id
        if is_it and isinstance(node, ast.Assign) and node.lineno <= message.lineno:
            value = node.value
    return value


def _text(node: ast.expr) -> str:
    """Return a message with `…` for what is put in; empty where it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value).replace("|", "\\|")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


if __name__ == "__main__":
    _PATH.write_text(reference())
