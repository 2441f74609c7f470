"""Where named configuration files are: beside the jobs of a source tree, and in the installed package."""

from pathlib import Path

import warren


def job_folders() -> list[Path]:
    """Return the folders that may hold the jobs; the first that exists is used."""
    package = Path(warren.__file__).parent
    return [package.parent.parent / "jobs", package / "jobs"]


def config_folders(kind: str) -> list[Path]:
    """Return where the named configurations of a kind are, such as `recipes` or `endpoints`."""
    return [folder / kind for folder in job_folders()]
