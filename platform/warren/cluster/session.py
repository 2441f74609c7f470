"""Connecting to Ray: the running cluster if there is one, a local one otherwise."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import warren
from warren.config.environment import (
    CACHE_BYTES_VARIABLE,
    CACHE_VARIABLE,
    STORAGE_DEADLINE_VARIABLE,
    STORAGE_VARIABLE,
)
from warren.errors import ServiceError

_QUIET_VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# A worker trains in a thread that Ray starts. glibc gives each such thread a heap of its own, which cost 0.2 GiB.
_FRUGAL_VARIABLES = {"MALLOC_ARENA_MAX": "1"}
_STORAGE_VARIABLES = (STORAGE_VARIABLE, STORAGE_DEADLINE_VARIABLE, CACHE_VARIABLE, CACHE_BYTES_VARIABLE)
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` was given, set by Ray for the job's driver
_OVERRIDE_VARIABLE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"


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
    runtime_env = _runtime_env(_job_runtime_env())
    try:
        with _job_keys_are_merged():
            ray.init(runtime_env=runtime_env, log_to_driver=verbose, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "")
        reason = str(error)
        if address.startswith("http"):
            reason = "that is a dashboard, for `ray job submit`; unset RAY_ADDRESS, or give the head's host:port"
        raise ServiceError(f"Ray at {address or 'a local cluster'} does not answer: {reason}") from None
    quieten()


def job_environment() -> dict[str, str]:
    """Return the variables that `ray job submit --runtime-env-json` gave this job.

    Ray sets them for all processes of the job. What outlives it (Serve's replicas) has to be given them again.
    """
    return dict(_job_runtime_env().get("env_vars") or {})


def _job_runtime_env() -> dict[str, Any]:
    """Return the runtime environment this process was submitted with; empty outside a job."""
    return dict(json.loads(os.environ.get(_JOB_VARIABLE) or "{}").get("runtime_env") or {})


def _runtime_env(job: dict[str, Any]) -> dict[str, Any]:
    """Add to a job's runtime environment what Warren needs; what the job was given stays as it is."""
    storage = {name: os.environ[name] for name in _STORAGE_VARIABLES if name in os.environ}
    variables = {**_QUIET_VARIABLES, **_FRUGAL_VARIABLES, **storage, **(job.get("env_vars") or {})}
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if packages := source_packages():
        runtime_env["py_modules"] = [*(job.get("py_modules") or []), *packages]
    return runtime_env


@contextmanager
def _job_keys_are_merged() -> Iterator[None]:
    """Let `ray.init` take keys that the job has too, which hold the job's values; Ray refuses them otherwise."""
    before = os.environ.get(_OVERRIDE_VARIABLE)
    os.environ[_OVERRIDE_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_OVERRIDE_VARIABLE]
        if before is not None:
            os.environ[_OVERRIDE_VARIABLE] = before


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
    # Else what a map function raises is replaced by an error of Ray Data's own, which does not say what it was.
    context.raise_original_map_exception = True
    for name in ("ray", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs every exception that it also raises
