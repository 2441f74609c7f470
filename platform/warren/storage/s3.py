"""`Store` on S3, and the pyarrow filesystem for streams. The only module that imports boto3.

boto3 does what pyarrow cannot: conditional puts, and uploads that never publish a truncated object (pyarrow
completes a multipart upload when its stream is dropped). pyarrow reads ranges and Parquet.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import pyarrow.fs
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as BotoConnectionError

from warren.errors import AccessDeniedError, ConflictError, NotFoundError, StorageError

_MAX_ATTEMPTS = 10
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_LOST_RACE = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "401"}
_MISSING = {"NoSuchKey", "404", "NotFound"}


class S3Store:
    """Keys are `bucket/key`. Endpoint, region and credentials come from the `AWS_*` environment."""

    def read(self, key: str) -> tuple[bytes, str]:
        with _errors(key):
            answer = _client().get_object(**_split(key))
            return answer["Body"].read(), answer["ETag"]

    def create(self, key: str, data: bytes) -> None:
        with _errors(key):
            _client().put_object(**_split(key), Body=data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, tag: str) -> None:
        with _errors(key):
            _client().put_object(**_split(key), Body=data, IfMatch=tag)

    def upload(self, source: Path, key: str) -> None:
        with _errors(key):
            _client().upload_file(str(source), *key.split("/", 1), Config=TransferConfig(max_concurrency=4))

    def download(self, key: str, target: Path) -> None:
        with _errors(key):
            _client().download_file(*key.split("/", 1), str(target), Config=TransferConfig(max_concurrency=4))

    def size(self, key: str) -> int:
        with _errors(key):
            return int(_client().head_object(**_split(key))["ContentLength"])

    def list(self, prefix: str) -> list[str]:
        bucket, _, folder = prefix.rstrip("/").partition("/")
        with _errors(prefix):
            pages = (
                _client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=bucket, Prefix=f"{folder}/" if folder else "")
            )
            # Servers differ in their order (a tree walk is not UTF-8 order), so sort here.
            keys = [f"{bucket}/{entry['Key']}" for page in pages for entry in page.get("Contents", ())]
        return sorted((k for k in keys if not k.endswith("/")), key=str.encode)

    def delete(self, key: str) -> None:
        with _errors(key):
            _client().delete_object(**_split(key))


class RetryingS3FileSystem(pyarrow.fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 filesystem with retries that survive pickling into Ray processes.

    pyarrow 26 drops `retry_strategy` when it is pickled; rebuilding from the environment keeps it, and keeps
    credentials out of pickles.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return filesystem, ()


def filesystem() -> RetryingS3FileSystem:
    """Build the S3 filesystem that the `AWS_*` environment describes."""
    endpoint = _endpoint()
    return RetryingS3FileSystem(
        endpoint_override=endpoint,
        scheme="http" if endpoint and endpoint.startswith("http://") else "https",
        region=_region(),
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_READ_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_MAX_ATTEMPTS),
    )


def ensure_bucket(bucket: str) -> None:
    """Create a bucket if it is not there (for local servers and tests; production buckets are made by people)."""
    with _errors(bucket):
        try:
            _client().create_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def round_trip(endpoint: str, access_key: str, secret_key: str) -> bool:
    """Tell whether a server takes an object and gives it back: it is ready when it does, not when its port is open."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=_region(),
        config=BotoConfig(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=5),
    )
    bucket, key = "ready-probe", "probe"
    try:
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=b"ready")
        answer: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError):
        return False
    return answer == b"ready"


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _client() -> Any:
    # Keyed by what may change between tests, so a new server is seen at once.
    return _cached_client(_endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY"))


@lru_cache(maxsize=4)
def _cached_client(endpoint: str | None, _key: str | None, _secret: str | None) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=_region(),
        config=BotoConfig(
            retries={"mode": "standard", "max_attempts": _MAX_ATTEMPTS},
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            s3={"addressing_style": "path" if endpoint else "auto"},
        ),
    )


def _split(key: str) -> dict[str, str]:
    bucket, _, name = key.partition("/")
    return {"Bucket": bucket, "Key": name}


@contextmanager
def _errors(key: str) -> Iterator[None]:
    """Translate boto3's errors to Warren's; the message says what to do."""
    where = f"s3://{key}"
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        if code == "NoSuchBucket":
            raise NotFoundError(
                f"bucket {key.split('/', 1)[0]!r} does not exist at {_endpoint() or 'AWS'}: "
                "create it, or point WARREN_STORAGE at another"
            ) from None
        if code in _MISSING:
            raise NotFoundError(f"{where}: no such object") from None
        if code in _DENIED or status in _DENIED:
            raise AccessDeniedError(
                f"{where}: access denied ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        if code in _LOST_RACE or status == "412":
            raise ConflictError(f"{where} exists already or changed since it was read") from None
        raise StorageError(f"{where}: {error}") from error
    except NoCredentialsError:
        raise AccessDeniedError(f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except BotoConnectionError as error:
        raise StorageError(
            f"{where}: no answer from {_endpoint() or 'AWS'}: check AWS_ENDPOINT_URL ({error})"
        ) from None
    except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
        _reraise_cause(where, error)


def _reraise_cause(where: str, error: Exception) -> None:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ClientError):
        with _errors(where.removeprefix("s3://")):
            raise cause
    raise StorageError(f"{where}: {error}") from error
