"""Results of the GPU lane: a JSON file for each kind of GPU, and the tables that docs/benchmarks.md makes of them.

`python -m benchmarks.gpu.results` writes the tables anew.
"""

import json
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from warren.train.flops import peak_tflops

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "results"
PAGE = REPOSITORY / "docs" / "benchmarks.md"
NO_GPU = "no NVIDIA GPU is visible to torch here: run this on a machine with one (make install TORCH=torch)"
NOTHING_YET = "No result yet: nobody has run the two commands on a GPU."
_BEGIN, _END = "<!-- GPU results: made by benchmarks/gpu/results.py -->", "<!-- end of the GPU results -->"
_PACKAGES = ("warren-vlm", "torch", "transformers", "deepspeed", "ray")

Numbers = Mapping[str, float | str | None]


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the machine's architecture for `cpu`."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}"


def add(device: str, section: str, values: Mapping[str, Numbers], folder: Path = FOLDER) -> Path:
    """Add results to the file of a device; those of the same name are replaced.

    Args:
        device: `cuda` or `cpu`.
        section: `checks`, `training` or `engines`.
        values: Numbers by name of the check or case.
        folder: Where the files are.

    Returns:
        The file.
    """
    name = device_name(device)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    stored |= {
        "device": name,
        "peak_tflops": peak_tflops(torch.device(device), None),
        "measured": datetime.now(UTC).date().isoformat(),
        "versions": {package: version(package) for package in _PACKAGES} | {"cuda": torch.version.cuda},
        section: {**stored.get(section, {}), **values},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    return file


def tables(folder: Path = FOLDER) -> str:
    """Return the results of all devices as Markdown."""
    files = sorted(folder.glob("*.json"))
    return "\n\n".join(_device(json.loads(file.read_text())) for file in files) if files else NOTHING_YET


def with_tables(page: str, folder: Path = FOLDER) -> str:
    """Return a page's text with the tables between its two marks."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n\n{tables(folder)}\n\n{_END}{after}"


def _device(stored: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(stored["versions"].items()))
    peak = stored["peak_tflops"]
    sheet = f"{peak:g} TFLOP/s in bf16 by its data sheet" if peak else "its peak is not in the table of data sheets"
    blocks = [f"**{stored['device']}** ({sheet}), {stored['measured']}, with {versions}."]
    return "\n\n".join(
        [*blocks, *(_table(name, stored[name]) for name in ("training", "engines", "checks") if name in stored)]
    )


def _table(title: str, rows: Mapping[str, Numbers]) -> str:
    columns = sorted({column for values in rows.values() for column in values})
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, values in sorted(rows.items()):
        lines.append(f"| {name} | {' | '.join(_shown(values.get(column)) for column in columns)} |")
    return "\n".join(lines)


def _shown(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
