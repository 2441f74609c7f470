"""Other libraries' internals are named in `warren.compat` and nowhere else."""

import ast
import subprocess
from pathlib import Path

import pytest

import foreign_internals
from foreign_internals import find, find_variables

ROOM = "platform/warren/compat/"
PRODUCT = ("platform", "serve", "jobs")
# What looks inside on purpose, to measure or to test what a library does.
LOOKS_INSIDE = {
    "benchmarks/data/loaders.py": ["_raw_stream"],
    "tests/integration/test_loss_curve.py": ["ZeroParamStatus", "_world", "_get_backend"],
    "tests/unit/docs/test_documented_commands.py": ["submit"],
    "tests/unit/models/test_bunny_refusals.py": ["_use_new_zipfile_serialization"],
    "tests/unit/train/test_objective.py": ["_dynamo"],
}


@pytest.fixture(scope="module")
def files(repository: Path) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split()
    return [repository / name for name in listed if (repository / name).is_file() and "/compat/" not in name]


def test_only_the_room_for_it_names_other_libraries_internals(repository: Path, files: list[Path]) -> None:
    searched = [file for file in files if file.name != f"{foreign_internals.__name__}.py"]
    findings = [
        finding
        for finding in find(searched, repository)
        if not any(name in finding.what for name in LOOKS_INSIDE.get(finding.file, []))
    ]
    assert not findings, f"move these to warren.compat, as docs/compatibility.md says:\n{_listed(findings)}"


def test_only_the_room_for_it_names_variables_that_libraries_read(repository: Path, files: list[Path]) -> None:
    product = [file for file in files if file.relative_to(repository).parts[0] in PRODUCT]
    findings = find_variables(product, repository)
    assert not findings, f"move these to warren.compat, as docs/compatibility.md says:\n{_listed(findings)}"


def test_the_room_gathers_what_is_looked_for(repository: Path) -> None:
    """Were the search blind, or the room empty, the tests above would pass for nothing."""
    room = sorted((repository / ROOM).glob("*.py"))
    text = _listed(find(room, repository))
    for expected in (
        "ray._private",
        "ray.data._internal",
        "ElasticTrainer._create_default_callbacks overrides TorchTrainer._create_default_callbacks",
        "def __serve_build_asgi_app__",
        "options(_by_reference=…)",
        "'ray.scripts.scripts'",
        "ray.dashboard.modules.serve.sdk",
        "torch.ops.mkldnn._linear_pointwise",
        "distributed_c10d._set_pg_timeout",
        "transformers.masking_utils",
        "config._attn_implementation",
        "engine._zero3_consolidated_16bit_state_dict",
        "deepspeed.ops.__compatible_ops__ is replaced",
        "module.forward is replaced",
        "Image.MAX_IMAGE_PIXELS is replaced",
        "vllm.v1.engine.async_llm",
    ):
        assert expected in text, expected
    variables = _listed(find_variables(room, repository))
    for expected in ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "DS_ACCELERATOR", "OMP_WAIT_POLICY", "MALLOC_ARENA_MAX"):
        assert expected in variables, expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ray._private.state import state", "from ray._private.state import state"),
        ("import ray\nray._private.state.state", "ray._private"),
        ("from torch._dynamo import config", "from torch._dynamo import config"),
        ("import torch.nn as nn\nnn.Linear.forward = None", "nn.Linear.forward is replaced"),
        ("import torch\nsetattr(torch, 'x', 1)", "setattr(torch, 'x', 1)"),
        ("import torch\ndel torch.nn.Linear", "torch.nn.Linear is replaced"),
        ("import torch\nclass M(torch.nn.Module):\n    def _apply(self): ...", "M._apply overrides Module._apply"),
        ("engine._private_method()", "engine._private_method"),
        ("head.forward = print", "head.forward is replaced"),
        ("handle.options(_by_reference=True)", "handle.options(_by_reference=…)"),
        ("class A:\n    def __serve_build_asgi_app__(self): ...", "def __serve_build_asgi_app__"),
        ("from transformers.models.llava import modeling_llava", "transformers.models.llava"),
        ("def late():\n    from deepspeed.checkpoint import ds_to_universal", "deepspeed.checkpoint"),
        ("from vllm.sampling_params import RequestOutputKind", "vllm.sampling_params"),
    ],
)
def test_every_kind_of_tie_is_seen(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert expected in _listed(find([file], tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos._exit(1)",
        "import torch\nfrom torch import nn\nfrom torch.nn import functional\nnn.Linear(1, 1)",
        "class A:\n    def __init__(self):\n        self._b = 1\n    def c(self):\n        return other._b",
        "import torch\nclass M(torch.nn.Module):\n    def _own(self): ...\n    def forward(self): ...",
        "from ray.train import ScalingConfig\nfrom ray import serve",
        "async def f(self): ...\nclass I:\n    def __aiter__(self): ...",
    ],
)
def test_public_names_and_own_private_names_are_left_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert find([file], tmp_path) == []


def test_the_room_has_one_module_a_library_and_no_door(repository: Path) -> None:
    """`__init__` imports nothing, so that who needs one library's module imports no other library."""
    tree = ast.parse((repository / ROOM / "__init__.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]


def test_each_module_of_the_room_imports_its_own_library_only(repository: Path) -> None:
    """A module added later is not on the lists of pyproject.toml's contracts: this reads them all."""
    may_import = {"ray": "ray_", "deepspeed": "deepspeed", "vllm": "vllm", "transformers": "transformers"}
    for file in (repository / ROOM).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for root in {name.partition(".")[0] for name in names}:
                assert root not in ("boto3", "botocore"), file
                assert root not in may_import or file.stem.startswith(may_import[root]), f"{file} imports {root}"


def _listed(findings: list[foreign_internals.Finding]) -> str:
    return "\n".join(map(str, findings))
