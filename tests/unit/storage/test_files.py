"""Storage on a file system, and URIs."""

import os
import pickle
from pathlib import Path

import pytest

from store_contract import StoreContract
from warren.compat.pyarrow import is_transient
from warren.errors import AccessDeniedError, ConfigError, StorageError, UnsafePathError
from warren.storage import Location, apply_umask, path_below


class TestFiles(StoreContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Location:
        return Location.parse(str(tmp_path / "store"))

    def test_nothing_temporary_is_left_or_listed(self, folder: Location) -> None:
        target = folder / "x"
        target.create_bytes(b"1")
        _, tag = target.store.read(target.key)
        target.store.replace(target.key, b"2", tag)
        assert [found.name for found in folder.list()] == ["x"]

    def test_a_full_disk_is_a_storage_error(self, folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("warren.storage.files.os.link", full)
        with pytest.raises(StorageError, match="No space left"):
            (folder / "x").create_bytes(b"1")
        assert folder.list() == []

    def test_a_denied_write_is_access_denied(self, folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("warren.storage.files.os.link", denied)
        with pytest.raises(AccessDeniedError):
            (folder / "x").create_bytes(b"1")

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
    def test_the_umask_decides_who_reads(self, folder: Location, tmp_path: Path, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            (folder / "deep/created").create_bytes(b"1")
            (folder / "replaced").create_bytes(b"1")
            (folder / "replaced").put_bytes(b"2")
            (tmp_path / "private").touch(mode=0o600)
            (folder / "uploaded").upload(tmp_path / "private")
            (folder / "written").create_bytes(b"1")
            Path((folder / "written").uri).chmod(0o600)  # as safetensors writes
            apply_umask(Path(folder.uri))
        finally:
            os.umask(before)
        assert {Path(found.uri).stat().st_mode & 0o777 for found in folder.list()} == {mode}


@pytest.mark.parametrize(
    ("given", "uri", "key"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b", "bucket/a/b"),
        ("s3://bucket", "s3://bucket", "bucket"),
        ("file:///data/x", "/data/x", "/data/x"),
        ("/data/../x/", "/x", "/x"),
    ],
)
def test_uris_are_normalised(given: str, uri: str, key: str) -> None:
    location = Location.parse(given)
    assert (location.uri, location.key) == (uri, key)
    assert pickle.loads(pickle.dumps(location)) == location


@pytest.mark.parametrize("given", ["gs://bucket/x", "s3://", "s3:///", "", "https://host/x"])
def test_other_storage_is_refused(given: str) -> None:
    with pytest.raises(ConfigError):
        Location.parse(given)


def test_the_s3_filesystem_keeps_its_retries_when_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem = Location.parse("s3://bucket/x").filesystem
    again = pickle.loads(pickle.dumps(filesystem))
    assert type(again) is type(filesystem)
    assert b"secret" not in pickle.dumps(filesystem).lower()


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        (
            "key 'SLOW_DOWN HTTP status 503' in bucket 'b': AWS Error NO_SUCH_KEY during GetObject operation: gone",
            False,
        ),
        ("key 'x' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, away", True),
        ("key 'x' in bucket 'b': AWS Error UNKNOWN (HTTP status 503) during GetObject operation: away", True),
        ("key 'x': AWS Error ACCESS_DENIED (HTTP status 403) during GetObject operation: SLOW_DOWN", False),
    ],
)
def test_the_name_of_an_object_does_not_decide_whether_an_error_passes(text: str, passing: bool) -> None:
    assert is_transient(OSError(text)) is passing


@pytest.mark.parametrize("key", ["/etc/x", "../x", "a/../../x"])
def test_a_listed_key_is_not_written_outside_a_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsafePathError):
        path_below(tmp_path / "target", key)
    assert path_below(tmp_path / "target", "a/b") == tmp_path / "target/a/b"
