"""The environment: where storage is. Endpoints, regions and credentials are `AWS_*` variables, never in recipes."""

import os

from warren.errors import ConfigError

STORAGE_VARIABLE = "WARREN_STORAGE"


def storage_root() -> str:
    """Return the URI or folder below which datasets, runs and releases live.

    Raises:
        ConfigError: `WARREN_STORAGE` is not set. It has no default: a job's working directory is deleted after it.
    """
    root = os.environ.get(STORAGE_VARIABLE, "").strip()
    if not root:
        raise ConfigError(
            f"{STORAGE_VARIABLE} is not set: give the bucket or folder that holds datasets, runs and releases, "
            f"for example {STORAGE_VARIABLE}=s3://my-bucket/warren or {STORAGE_VARIABLE}=/data/warren"
        )
    return root
