"""Finds uses of other libraries' internals in source text, without importing what it reads.

Whose an object is cannot be seen in the text. So a private name counts as foreign when nothing in the repository
defines it, and a method of a class with foreign bases when one of those bases has it too.
"""

import ast
import builtins
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import packages_distributions
from pathlib import Path

OWN = {"warren", "warren_serve"}
# Of the libraries that Warren goes deepest into: what their documentation tells people to import.
PUBLIC_MODULES = {
    "ray": {
        *("ray", "ray.data", "ray.exceptions", "ray.train", "ray.train.collective", "ray.train.torch"),
        *("ray.serve", "ray.serve.config", "ray.serve.exceptions", "ray.serve.handle", "ray.serve.metrics"),
        *("ray.util", "ray.util.metrics", "ray.util.placement_group", "ray.util.scheduling_strategies"),
        *("ray.job_submission", "ray.serve.schema", "ray.util.state"),
    },
    "torch": {
        *("torch", "torch.distributed", "torch.multiprocessing", "torch.nn", "torch.nn.functional"),
        *("torch.nn.utils.rnn", "torch.utils.data", "torch.utils.flop_counter"),
    },
    "transformers": {
        *("transformers", "transformers.generation", "transformers.modeling_outputs", "transformers.utils"),
    },
    "deepspeed": {"deepspeed.accelerator"},
    "vllm": {"vllm"},
}
# Variables that users set by their libraries' documentation, and that Warren reads as they do.
PUBLIC_VARIABLES = {"RAY_ADDRESS"}
_VARIABLE = re.compile(
    r"(RAY|DS|DEEPSPEED|HF|TRANSFORMERS|TOKENIZERS|TORCH|PYTORCH|NCCL|VLLM|CUDA|OMP|MKL|KMP|MALLOC)_[A-Z0-9_]+"
)
_PYTHONS_OWN = {
    *(name for kind in vars(builtins).values() if isinstance(kind, type) for name in dir(kind)),
    *("__aenter__", "__aexit__", "__enter__", "__exit__", "__del__", "__post_init__", "__dataclass_fields__"),
    *(
        "__aiter__",
        "__anext__",
        "__all__",
        "__annotations__",
        "__file__",
        "__main__",
        "__name__",
        "__version__",
        "__path__",
        "__spec__",
    ),
    *("__array_interface__", "__getattr__", "__fspath__", "__set_name__", "__slots__", "__match_args__"),
}


@dataclass(frozen=True, order=True)
class Finding:
    """One use of an internal name, and the line it is on."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass
class Source:
    """A parsed file."""

    path: Path
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.path.read_text())

    @cached_property
    def imports(self) -> dict[str, str]:
        """What each name that an import binds stands for, for example `dist`: `torch.distributed`."""
        bound: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    bound[name] = alias.name if alias.asname else name
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return bound

    def foreign(self, node: ast.expr) -> str | None:
        """Return what of another library an expression begins with; None if it is nobody's, or Python's own."""
        target = self.imports.get(_root(node) or "")
        return target if target and _is_foreign(target) else None

    @cached_property
    def defined(self) -> set[str]:
        """The private names that this file gives to something of its own."""
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                names.add(node.attr)
        return {name for name in names if _is_private(name)}


def find(paths: list[Path], root: Path) -> list[Finding]:
    """Return every use of another library's internals in some files."""
    sources = [Source(path) for path in paths]
    own = {name for source in sources for name in source.defined}
    findings = set()
    for source in sources:
        file = str(source.path.relative_to(root))
        findings |= {Finding(file, line, what) for line, what in _uses(source, own)}
    return sorted(findings)


def find_variables(paths: list[Path], root: Path) -> list[Finding]:
    """Return every mention of an environment variable that another library reads."""
    return sorted(
        Finding(str(path.relative_to(root)), node.lineno, node.value)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _VARIABLE.fullmatch(node.value)
        and node.value not in PUBLIC_VARIABLES
    )


def _uses(source: Source, own: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"import {a.name}") for a in node.names if _is_internal_module(a.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from _imported(node)
        elif isinstance(node, ast.Attribute):
            yield from _attribute(node, source, own)
        elif isinstance(node, ast.Call):
            yield from _call(node, source, own)
        elif isinstance(node, ast.ClassDef):
            yield from _overrides(node, source)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_protocol(node.name):
            yield node.lineno, f"def {node.name}"
        elif isinstance(node, ast.Constant) and node.value == "ray.scripts.scripts":
            yield node.lineno, repr(node.value)


def _imported(node: ast.ImportFrom) -> Iterator[tuple[int, str]]:
    assert node.module
    for alias in node.names:
        deep = _is_internal_module(node.module) and not _is_public_module(f"{node.module}.{alias.name}")
        if deep or (_is_foreign(node.module) and _is_private(alias.name)):
            yield node.lineno, f"from {node.module} import {alias.name}"


def _attribute(node: ast.Attribute, source: Source, own: set[str]) -> Iterator[tuple[int, str]]:
    text = ast.unparse(node)
    target = source.foreign(node)
    if isinstance(node.ctx, ast.Store | ast.Del) and target:
        yield node.lineno, f"{text} is replaced"
    if isinstance(node.ctx, ast.Store) and node.attr == "forward":
        yield node.lineno, f"{text} is replaced"
    elsewhere = node.attr not in own and _root(node) not in source.imports  # else it is Warren's, or Python's
    if _is_protocol(node.attr) or (_is_private(node.attr) and (target or elsewhere)):
        yield node.lineno, text


def _call(node: ast.Call, source: Source, own: set[str]) -> Iterator[tuple[int, str]]:
    called = ast.unparse(node.func)
    for keyword in node.keywords:
        if keyword.arg and _is_private(keyword.arg) and keyword.arg not in own:
            yield node.lineno, f"{called}({keyword.arg}=…)"
    if called in ("setattr", "delattr") and node.args and source.foreign(node.args[0]):
        yield node.lineno, ast.unparse(node)


def _overrides(node: ast.ClassDef, source: Source) -> Iterator[tuple[int, str]]:
    """Find private methods that replace those of a foreign base."""
    bases = [base for each in node.bases if (base := _resolve(each, source)) is not None]
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and _is_private(member.name):
            for base in bases:
                if hasattr(base, member.name):
                    yield member.lineno, f"{node.name}.{member.name} overrides {base.__name__}.{member.name}"


def _resolve(base: ast.expr, source: Source) -> type | None:
    target = source.foreign(base)
    if target is None:
        return None
    try:
        value = pkgutil.resolve_name(f"{target}{ast.unparse(base).removeprefix(_root(base) or '')}")
    except (ImportError, AttributeError):  # an extra that is not installed here
        return None
    return value if isinstance(value, type) else None


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def _is_protocol(name: str) -> bool:
    """Whether a library made up a name between double underscores, which are Python's."""
    return name.startswith("__") and name.endswith("__") and name not in _PYTHONS_OWN


def _is_foreign(module: str) -> bool:
    root = module.partition(".")[0]
    return root in PUBLIC_MODULES or root in _installed()


@cache
def _installed() -> frozenset[str]:
    return frozenset(packages_distributions()) - OWN


def _is_public_module(module: str) -> bool:
    return module in PUBLIC_MODULES.get(module.partition(".")[0], set())


def _is_internal_module(module: str) -> bool:
    root, *parts = module.split(".")
    if not _is_foreign(module):
        return False
    return any(part.startswith("_") for part in parts) or (root in PUBLIC_MODULES and not _is_public_module(module))
