"""Which code runs: the git revision of the source tree and the versions of the packages."""

import importlib.metadata
import os
import subprocess
from pathlib import Path

from warren import __version__

REVISION_VARIABLE = "WARREN_GIT_REVISION"
_PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "tokenizers", "pyarrow", "numpy", "pillow")


def git_revision() -> str:
    """Return the revision of the source tree, or `unknown` in an image that was built without one."""
    if REVISION_VARIABLE in os.environ:
        return os.environ[REVISION_VARIABLE]
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = Path(__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def package_versions() -> dict[str, str]:
    """Return Warren's version and those of the packages that may change what a run computes."""
    versions = {"warren": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
