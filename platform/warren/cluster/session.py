"""Connecting to Ray: the running cluster if there is one, a local one otherwise."""

import logging
import os
from pathlib import Path
from typing import Any

import ray

import warren
from warren.compat.environment_variables import ONE_HEAP, QUIET_LIBRARIES
from warren.compat.ray_core import job_keys_may_repeat, submitted_runtime_env
from warren.config.environment import (
    CACHE_BYTES_VARIABLE,
    CACHE_VARIABLE,
    STORAGE_DEADLINE_VARIABLE,
    STORAGE_VARIABLE,
)
from warren.config.json_logs import LOG_FORMAT_VARIABLE
from warren.errors import ServiceError

_JOBS_VARIABLES = (
    STORAGE_VARIABLE,
    STORAGE_DEADLINE_VARIABLE,
    CACHE_VARIABLE,
    CACHE_BYTES_VARIABLE,
    LOG_FORMAT_VARIABLE,
)


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
    runtime_env = _runtime_env(submitted_runtime_env())
    try:
        with job_keys_may_repeat():
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
    return dict(submitted_runtime_env().get("env_vars") or {})


def _runtime_env(job: dict[str, Any]) -> dict[str, Any]:
    """Add to a job's runtime environment what Warren needs; what the job was given stays as it is."""
    storage = {name: os.environ[name] for name in _JOBS_VARIABLES if name in os.environ}
    variables = {**QUIET_LIBRARIES, **ONE_HEAP, **storage, **(job.get("env_vars") or {})}
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if packages := source_packages():
        runtime_env["py_modules"] = [*(job.get("py_modules") or []), *packages]
    return runtime_env


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
    from warren.compat.ray_data import quieten_data  # late: Ray Data takes a second

    quieten_data()
    for name in ("ray", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
