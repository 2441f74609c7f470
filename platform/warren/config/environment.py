"""The environment: where storage is. Endpoints, regions and credentials are `AWS_*` variables, never in recipes."""

import os

from warren.errors import ConfigError

STORAGE_VARIABLE = "WARREN_STORAGE"
STORAGE_DEADLINE_VARIABLE = "WARREN_STORAGE_DEADLINE_S"
CACHE_VARIABLE = "WARREN_CACHE"
CACHE_BYTES_VARIABLE = "WARREN_CACHE_BYTES"
_DEFAULT_DEADLINE_S = 120.0
_DEFAULT_CACHE_BYTES = 16 << 30


def storage_root() -> str:
    """Return the URI or folder below which datasets, runs and releases live.

    Raises:
        ConfigError: `WARREN_STORAGE` is not set, or is a relative path. It has no default and must mean the same
            wherever a process runs: Ray deletes a job's working directory after the job.
    """
    root = os.environ.get(STORAGE_VARIABLE, "").strip()
    if not root:
        raise ConfigError(
            f"{STORAGE_VARIABLE} is not set: give the bucket or folder that holds datasets, runs and releases, "
            f"for example {STORAGE_VARIABLE}=s3://my-bucket/warren or {STORAGE_VARIABLE}=/data/warren"
        )
    path = root.removeprefix("file://")
    if "://" not in path and not os.path.expanduser(path).startswith("/"):
        raise ConfigError(
            f"{STORAGE_VARIABLE}={root!r} is a relative path: a job runs in a directory of its own, which Ray deletes "
            f"afterwards; give an absolute path, for example {STORAGE_VARIABLE}={os.path.abspath(path)}"
        )
    return root


def storage_deadline_s() -> float:
    """Return how long an operation waits for storage that is away, in seconds.

    Raises:
        ConfigError: `WARREN_STORAGE_DEADLINE_S` is not a number of seconds.
    """
    text = os.environ.get(STORAGE_DEADLINE_VARIABLE, "").strip()
    if not text:
        return _DEFAULT_DEADLINE_S
    try:
        deadline_s = float(text)
    except ValueError:
        deadline_s = -1.0
    if not 0 <= deadline_s < float("inf"):
        raise ConfigError(f"{STORAGE_DEADLINE_VARIABLE}={text!r}: expected seconds, for example 120")
    return deadline_s


def cache_folder() -> str | None:
    """Return the folder of this machine's cache of models; None is one below the folder for temporary files."""
    return os.environ.get(CACHE_VARIABLE, "").strip() or None


def cache_bytes() -> int:
    """Return how large this machine's cache of models may grow; 0 caches nothing.

    Raises:
        ConfigError: `WARREN_CACHE_BYTES` is not a number of bytes.
    """
    text = os.environ.get(CACHE_BYTES_VARIABLE, "").strip()
    if not text:
        return _DEFAULT_CACHE_BYTES
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{CACHE_BYTES_VARIABLE}={text!r}: expected a number of bytes, for example 16000000000")
    return int(text)
