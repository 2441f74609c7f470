"""Connecting to Ray: the running cluster if there is one, a local one otherwise."""

import logging
import os
from pathlib import Path
from typing import Any

import ray

import warren
from warren.config.environment import STORAGE_VARIABLE
from warren.errors import ServiceError

_QUIET_VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# A worker trains in a thread that Ray starts. glibc gives each such thread a heap of its own, which cost 0.2 GiB.
_FRUGAL_VARIABLES = {"MALLOC_ARENA_MAX": "1"}


def connect(verbose: bool = False) -> None:
    """Join the cluster that `RAY_ADDRESS` names or that runs on this machine, or start one.

    Where Warren runs from its source tree, the packages travel along: nodes need no installation of it. Where it is
    installed (as in the image), nothing is uploaded.

    Args:
        verbose: Show what every process of the cluster prints; errors are shown either way.

    Raises:
        ServiceError: The cluster does not answer.
    """
    if ray.is_initialized():
        return
    storage = {name: os.environ[name] for name in (STORAGE_VARIABLE,) if name in os.environ}
    runtime_env: dict[str, Any] = {"env_vars": {**_QUIET_VARIABLES, **_FRUGAL_VARIABLES, **storage}}
    packages = source_packages()
    if packages:
        runtime_env["py_modules"] = packages
    try:
        ray.init(runtime_env=runtime_env, log_to_driver=verbose, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        where = os.environ.get("RAY_ADDRESS", "a local cluster")
        raise ServiceError(f"Ray at {where} does not answer: {error}") from None
    quieten()


def source_packages() -> list[str]:
    """Return the package folders to ship to the nodes: those of a source tree, none when installed."""
    package = Path(warren.__file__).parent
    tree = package.parent.parent
    if package.parent.name != "platform" or not (tree / "serve" / "warren_serve").is_dir():
        return []
    return [str(package), str(tree / "serve" / "warren_serve")]


def shipped_packages() -> list[str]:
    """Return where the cluster stored the shipped packages; what outlives this job runs from there."""
    runtime_env = ray.get_runtime_context().runtime_env
    return list(runtime_env.get("py_modules", []))


def quieten() -> None:
    """Leave warnings and errors of Ray's libraries; drop their progress reports."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs every exception that it also raises
