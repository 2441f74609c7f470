"""pyarrow's S3 filesystem, for Parquet and byte ranges, with retries that last and survive pickling."""

from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow.fs

from warren.compat.pyarrow import is_transient
from warren.config.environment import storage_deadline_s
from warren.storage.retry import RetryPolicy, retrying
from warren.storage.s3_endpoint import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, endpoint, region

ResultT = TypeVar("ResultT")
# How long pyarrow's standard strategy keeps trying a server that refuses connections, measured with pyarrow 26.
_SECONDS_OF_ATTEMPTS = {3: 3.0, 5: 10.0, 8: 43.0, 10: 92.0, 15: 195.0}


class RetryingS3FileSystem(pyarrow.fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 filesystem with retries that survive pickling into Ray processes.

    pyarrow 26 drops `retry_strategy` when it is pickled; rebuilding from the environment keeps it, and keeps
    credentials out of pickles.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return filesystem, ()


def filesystem() -> RetryingS3FileSystem:
    """Build the S3 filesystem that the `AWS_*` environment describes."""
    url = endpoint()
    return RetryingS3FileSystem(
        endpoint_override=url,
        scheme="http" if url and url.startswith("http://") else "https",
        region=region(),
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_attempts(storage_deadline_s())),
    )


def read_retrying(uri: str, read: Callable[[], ResultT]) -> ResultT:
    """Run a read through pyarrow until it succeeds, fails for good, or storage was away for the deadline.

    Args:
        uri: What is read, for the error.
        read: Safe to repeat.

    Raises:
        StorageError: The deadline has passed.
    """
    return retrying(RetryPolicy(uri, endpoint() or "AWS"), read, is_transient)


def _attempts(deadline_s: float) -> int:
    return max((n for n, lasts in _SECONDS_OF_ATTEMPTS.items() if lasts <= deadline_s), default=1)
