"""The reference page of the jobs' command lines, made of their `--help`: `python -m warren.cli.reference`."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_REPOSITORY = Path(__file__).parents[3]
_PATH = _REPOSITORY / "docs" / "reference" / "cli.md"
_HEAD = """# Commands

Each job is a script in `jobs/`. Where Warren is installed, `warren pretrain --recipe demo` is the same as
`python jobs/pretrain.py --recipe demo`.
`python -m warren.cli.reference` writes this page from their `--help`.
"""


def reference() -> str:
    """Return the page in Markdown: one section for each job."""
    jobs = sorted((_REPOSITORY / "jobs").glob("[a-z]*.py"))
    with ThreadPoolExecutor(2) as pool:
        helps = list(pool.map(_help, jobs))
    return _HEAD + "".join(f"\n## `{job.name}`\n\n```text\n{text}```\n" for job, text in zip(jobs, helps, strict=True))


def _help(job: Path) -> str:
    """Return what `--help` prints at a width of 100 columns."""
    command = [sys.executable, f"jobs/{job.name}", "--help"]
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run(command, cwd=_REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"


if __name__ == "__main__":
    _PATH.write_text(reference())
