"""Storage on a real S3 server: the same contract as files, and errors that say what to do."""

import uuid
from collections.abc import Callable

import pytest

from store_contract import StoreContract
from warren.errors import AccessDeniedError, BucketNotFoundError, NotFoundError, StorageError
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.testbed import S3Server


class TestS3(StoreContract):
    @pytest.fixture
    def folder(self, s3_server: S3Server) -> Location:
        return Location.parse(f"s3://tests/contract-{uuid.uuid4().hex[:8]}")


def test_a_missing_bucket_is_named(s3_server: S3Server) -> None:
    with pytest.raises(BucketNotFoundError, match=r"bucket 'nowhere' does not exist at http://127\.0\.0\.1"):
        Location.parse("s3://nowhere/x").read_bytes()
    acts: list[Callable[[Location], object]] = [lambda x: x.create_bytes(b"1"), lambda x: x.open(), lambda x: x.list()]
    for act in acts:
        with pytest.raises(BucketNotFoundError, match="bucket 'nowhere'"):
            act(Location.parse("s3://nowhere/x"))


def test_an_object_that_is_missing_is_no_missing_bucket_whatever_its_name(s3_server: S3Server) -> None:
    ensure_bucket("my-bucket")
    missing = Location.parse("s3://my-bucket/bucket/no-such-bucket.json")
    for read in (missing.read_bytes, missing.open, lambda: missing.store.stamp(missing.key)):
        with pytest.raises(NotFoundError, match=r"no-such-bucket\.json"):
            read()


def test_wrong_credentials_say_what_to_check(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessDeniedError, match="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Location.parse("s3://tests/x").create_bytes(b"1")


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WARREN_STORAGE_DEADLINE_S", "0")
    with pytest.raises(StorageError, match=r"s3://tests/x: no answer from http://127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
        Location.parse("s3://tests/x").read_bytes()
