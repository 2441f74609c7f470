"""`Store` on S3. The only module that imports boto3.

boto3 does what pyarrow cannot: conditional puts, and uploads that never publish a truncated object (pyarrow
completes a multipart upload when its stream is dropped). pyarrow reads ranges and Parquet (`arrow_s3`).

Every operation is retried while the server is away, answers 5xx or breaks connections, until the deadline of
`RetryPolicy`. A read continues at the byte where it broke. boto3's own retries end sooner and do not cover the body of
a response.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from warren.errors import AccessDeniedError, BucketNotFoundError, ConflictError, NotFoundError, StorageError
from warren.storage.retry import RetryPolicy, retrying
from warren.storage.s3_endpoint import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, endpoint, region

ResultT = TypeVar("ResultT")
_UPLOAD_ATTEMPTS = 10  # of one part, so that a broken connection does not restart the upload of a large file
_CHUNK_BYTES = 1 << 20
_PART_BYTES = 16 << 20
_PARALLEL_PARTS = 4
_BROKEN_BODY = {"IncompleteBody", "RequestTimeout", "BadDigest", "SlowDown", "TooManyRequests"}  # not all are 5xx
_LOST_RACE = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "401"}
_MISSING = {"NoSuchKey", "404", "NotFound", "KeyTooLongError", "InvalidURI", "InvalidObjectName"}


class S3Store:
    """Keys are `bucket/key`. Endpoint, region and credentials come from the `AWS_*` environment."""

    def read(self, key: str) -> tuple[bytes, str]:
        data = bytearray()
        tag = _fetch(key, lambda chunk, _: data.extend(chunk))
        return bytes(data), tag

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        data = bytearray()
        _fetch(key, lambda chunk, _: data.extend(chunk), start, stop)
        return bytes(data)

    def create(self, key: str, data: bytes) -> None:
        self._put(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, tag: str) -> None:
        self._put(key, data, IfMatch=tag)

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        policy = _retry_policy(key)
        try:
            _persist(key, lambda: _client().put_object(**_split(key), Body=data, **condition), policy)
        except ConflictError:
            # An attempt whose response was lost may have written the object: then our own bytes are the conflict.
            if not (policy.was_tried and self.read(key)[0] == data):
                raise

    def upload(self, source: Path, key: str) -> None:
        bucket, name = key.split("/", 1)
        config = TransferConfig(max_concurrency=_PARALLEL_PARTS)
        _persist(key, lambda: _client(_UPLOAD_ATTEMPTS).upload_file(str(source), bucket, name, Config=config))

    def download(self, key: str, target: Path) -> None:
        size = self.size(key)
        with target.open("wb") as file, ThreadPoolExecutor(_PARALLEL_PARTS) as pool:
            parts = (
                pool.submit(
                    _fetch, key, lambda chunk, at: os.pwrite(file.fileno(), chunk, at), start, start + _PART_BYTES
                )
                for start in range(0, size, _PART_BYTES)
            )
            tags = {part.result() for part in list(parts)}
        if len(tags) > 1:
            raise ConflictError(f"s3://{key} changed while it was read; read it again")

    def copy(self, source: str, target: str) -> None:
        bucket, name = target.split("/", 1)
        config = TransferConfig(max_concurrency=_PARALLEL_PARTS)
        # The server copies: in one request, or one for each part. With a stored checksum, `sha256` need not read.
        extra = {"ChecksumAlgorithm": "SHA256"}
        self._head(source)  # its error names what is missing; the copy's does not
        _persist(
            source,
            lambda: _client(_UPLOAD_ATTEMPTS).copy(_split(source), bucket, name, ExtraArgs=extra, Config=config),
        )

    def sha256(self, key: str) -> str:
        facts = self._head(key, ChecksumMode="ENABLED")
        checksum = facts.get("ChecksumSHA256", "")
        if checksum and facts.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" and "-" not in checksum:
            return base64.b64decode(checksum).hex()
        digest = hashlib.sha256()
        _fetch(key, lambda chunk, _: digest.update(chunk))
        return digest.hexdigest()

    def size(self, key: str) -> int:
        return int(self._head(key)["ContentLength"])

    def stamp(self, key: str) -> tuple[int, str]:
        facts = self._head(key)
        return int(facts["ContentLength"]), str(facts["ETag"])

    def _head(self, key: str, **options: str) -> dict[str, Any]:
        try:
            return _persist(key, lambda: _client().head_object(**_split(key), **options))
        except NotFoundError:
            bucket = _split(key)["Bucket"]  # HEAD has no body to say what is missing; listing fails without a bucket
            _persist(key, lambda: _client().list_objects_v2(Bucket=bucket, MaxKeys=1))
            raise

    def list(self, prefix: str) -> list[str]:
        bucket, _, folder = prefix.rstrip("/").partition("/")

        def keys() -> list[str]:
            paginator = _client().get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=bucket, Prefix=f"{folder}/" if folder else "")
            return [f"{bucket}/{entry['Key']}" for page in pages for entry in page.get("Contents", ())]

        # Servers differ in their order (a tree walk is not UTF-8 order), so sort here.
        return sorted((k for k in _persist(prefix, keys) if not k.endswith("/")), key=str.encode)

    def delete(self, key: str) -> None:
        _persist(key, lambda: _client().delete_object(**_split(key)))


def _fetch(key: str, sink: Callable[[bytes, int], object], start: int = 0, stop: int | None = None) -> str:
    """Pass bytes `start` … `stop - 1` of an object to `sink(chunk, position)`, each once, and return its tag."""
    policy = _retry_policy(key)
    position, tag = start, ""

    def rest() -> None:
        nonlocal position, tag
        # A retry asks for the version that it began with: bytes of two versions must not be joined.
        # A retry asks for the version that it began with: bytes of two versions must not be joined.
        options: dict[str, str] = {"IfMatch": tag} if tag else {}
        if position or stop is not None:
            options["Range"] = f"bytes={position}-{'' if stop is None else stop - 1}"
        response = _client().get_object(**_split(key), **options)
        tag = response["ETag"]
        for chunk in response["Body"].iter_chunks(_CHUNK_BYTES):
            sink(chunk, position)
            position += len(chunk)
            policy.progressed()

    _persist(key, rest, policy)
    return tag


def ensure_bucket(bucket: str) -> None:
    """Create a bucket unless it exists: for local servers and tests. Production buckets are created by people."""
    with _errors(bucket):
        try:
            _client(_UPLOAD_ATTEMPTS).create_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def round_trip(endpoint: str, access_key: str, secret_key: str) -> bool:
    """Return whether a server stores and returns an object; an open port does not mean that it is ready."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region(),
        config=BotoConfig(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=5),
    )
    bucket, key = "ready-probe", "probe"
    try:
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=b"ready")
        data: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError):
        return False
    return data == b"ready"


def _client(attempts: int = 1) -> Any:
    # What tests change is in the cache's key, so that they reach a new server at once.
    keys = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    return _cached_client(endpoint(), *keys, attempts)


@lru_cache(maxsize=8)
def _cached_client(endpoint: str | None, _key: str | None, _secret: str | None, attempts: int) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region(),
        config=BotoConfig(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            s3={"addressing_style": "path" if endpoint else "auto"},
        ),
    )


def _retry_policy(key: str) -> RetryPolicy:
    return RetryPolicy(f"s3://{key}", endpoint() or "AWS")


def _persist(key: str, action: Callable[[], ResultT], policy: RetryPolicy | None = None) -> ResultT:
    with _errors(key):
        return retrying(policy or _retry_policy(key), action, _is_transient)


def _is_transient(error: Exception) -> bool:
    """Return whether an error means that the server is away or overloaded, or that a connection broke."""
    if isinstance(error, boto3.exceptions.Boto3Error):
        cause = error.__cause__ or error.__context__
        return isinstance(cause, Exception) and _is_transient(cause)
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error.response.get("Error", {}).get("Code") in _BROKEN_BODY
    if isinstance(error, SSLError):
        return False
    return isinstance(error, BotoConnectionError | HTTPClientError | IncompleteReadError)


def _split(key: str) -> dict[str, str]:
    bucket, _, name = key.partition("/")
    return {"Bucket": bucket, "Key": name}


def _is_odd(key: str) -> bool:
    """Return whether a server that stores objects as files may refuse a key."""
    return "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/"))


@contextmanager
def _errors(key: str) -> Iterator[None]:
    """Translate boto3's errors to Warren's; the message says what to do."""
    where = f"s3://{key}"
    try:
        key.encode()
        yield
    except UnicodeEncodeError:
        raise NotFoundError(f"{where!a}: no object can have this name") from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        if code == "NoSuchBucket":
            raise BucketNotFoundError(
                f"bucket {key.split('/', 1)[0]!r} does not exist at {endpoint() or 'AWS'}: "
                "create it, or point WARREN_STORAGE at another"
            ) from None
        if code in _MISSING or (code == "InvalidRequest" and _is_odd(key)):
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
    except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
        _reraise_cause(where, error)


def _reraise_cause(where: str, error: Exception) -> None:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ClientError):
        with _errors(where.removeprefix("s3://")):
            raise cause
    raise StorageError(f"{where}: {error}") from error
