"""What every store must do; run on files in the unit tests and on a real S3 server in the integration tests."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from warren.errors import ConflictError, CorruptDataError, NotFoundError, UnsafePathError
from warren.storage import (
    FileEntry,
    Location,
    StoredFiles,
    digest_bytes,
    download_tree,
    read_verified,
    upload_verified,
)


class StoreContract:
    """Subclasses give a `folder` fixture."""

    def test_create_refuses_an_existing_object(self, folder: Location) -> None:
        target = folder / "once.json"
        target.create_json({"a": 1})
        with pytest.raises(ConflictError, match=r"once\.json"):
            target.create_json({"a": 2})
        assert target.read_json() == {"a": 1}

    def test_only_one_of_many_creators_wins(self, folder: Location) -> None:
        target = folder / "race.json"

        def attempt(number: int) -> bool:
            try:
                target.create_json(number)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1

    def test_replace_needs_the_tag_that_was_read(self, folder: Location) -> None:
        target = folder / "alias.json"
        target.create_bytes(b"one")
        _, tag = target.store.read(target.key)
        target.store.replace(target.key, b"two", tag)
        with pytest.raises(ConflictError):
            target.store.replace(target.key, b"three", tag)
        assert target.read_bytes() == b"two"

    def test_only_one_of_many_replacers_wins(self, folder: Location) -> None:
        target = folder / "swap.json"
        target.create_bytes(b"start")
        _, tag = target.store.read(target.key)

        def attempt(number: int) -> bool:
            try:
                target.store.replace(target.key, str(number).encode(), tag)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1

    def test_listing_is_sorted_by_bytes_at_any_depth(self, folder: Location) -> None:
        names = ["a/b", "a-b", "a.b", "a/c/d", "é", "z"]
        for name in names:
            (folder / name).create_bytes(b"x")
        found = [location.uri.removeprefix(f"{folder.uri}/") for location in folder.list()]
        assert found == sorted(names, key=str.encode)

    def test_a_missing_object_says_so(self, folder: Location) -> None:
        missing = folder / "missing"
        with pytest.raises(NotFoundError):
            missing.read_bytes()
        with pytest.raises(NotFoundError):
            missing.store.size(missing.key)
        assert (folder / "nothing-here").list() == []
        missing.store.delete(missing.key)

    def test_uploads_are_verified_and_come_back_whole(self, folder: Location, tmp_path: Path) -> None:
        source = tmp_path / "big.bin"
        source.write_bytes(bytes(range(256)) * 50_000)  # 12.8 MB: more than one part
        entry = upload_verified(source, folder, "deep/er/big.bin")
        assert entry == FileEntry("deep/er/big.bin", 12_800_000, digest_bytes(source.read_bytes()))
        download_tree(folder, [entry], tmp_path / "back")
        assert (tmp_path / "back/deep/er/big.bin").read_bytes() == source.read_bytes()

    def test_damage_is_found(self, folder: Location, tmp_path: Path) -> None:
        source = tmp_path / "file"
        source.write_bytes(b"right")
        entry = upload_verified(source, folder, "file")
        target = folder / "file"
        target.store.delete(target.key)
        target.create_bytes(b"wrong")
        with pytest.raises(CorruptDataError, match="damaged"):
            download_tree(folder, [entry], tmp_path / "back")
        with pytest.raises(CorruptDataError, match="damaged"):
            read_verified(folder, entry)

    def test_the_store_copies_files_itself_and_every_byte_of_a_copy_is_checked(
        self, folder: Location, tmp_path: Path
    ) -> None:
        data = {"model.bin": bytes(range(256)) * 50_000, "deep/er/config.json": b"{}"}  # the first: more than one part
        entries = []
        for name, content in data.items():
            (tmp_path / "local").write_bytes(content)
            entries.append(upload_verified(tmp_path / "local", folder / "from", name))
        stored = StoredFiles(folder / "from", tuple(entries))
        assert stored.copy(folder / "to") == stored.files
        for name, content in data.items():
            source, copied = folder / "from" / name, folder / "to" / name
            source.store.delete(source.key)
            assert copied.read_bytes() == content
            assert copied.store.sha256(copied.key) == digest_bytes(content)
        assert StoredFiles(folder / "to", stored.files).fetch(tmp_path / "back") == tmp_path / "back"
        with pytest.raises(NotFoundError):
            stored.copy(folder / "again")
        for entry, wrong in ((entries[1], b"[]"), (entries[0], data["model.bin"][:-1] + b"?"), (entries[1], b"longer")):
            target = folder / "to" / entry.path
            target.put_bytes(wrong)
            with pytest.raises(CorruptDataError, match=f"to/{entry.path}.*damaged"):
                StoredFiles(folder / "to", (entry,)).copy(folder / "again")

    @pytest.mark.parametrize(
        "path", ["../x", "/tmp/x", "a/../../x", "", ".", "a//b", "a/./b", "a\\..\\x", "a\0b", "..", None, ["x"]]
    )
    def test_a_manifest_names_files_inside_its_folder(self, folder: Location, path: object) -> None:
        with pytest.raises(UnsafePathError, match="inside its own folder"):
            FileEntry.from_json({"path": path, "bytes": 1, "sha256": "0" * 64})

    @pytest.mark.parametrize("entry", [None, "x", {}, {"path": "x"}, 7])
    def test_an_entry_that_is_none_is_refused(self, folder: Location, entry: object) -> None:
        with pytest.raises(CorruptDataError, match="no entry of a manifest"):
            FileEntry.from_json(entry)  # type: ignore[arg-type]

    def test_a_download_does_not_follow_links_out_of_its_target(self, folder: Location, tmp_path: Path) -> None:
        source = tmp_path / "file"
        source.write_bytes(b"right")
        entries = [upload_verified(source, folder, name) for name in ("deep/file", "linked")]
        outside, target = tmp_path / "outside", tmp_path / "target"
        outside.mkdir()
        target.mkdir()
        (target / "deep").symlink_to(outside)
        (target / "linked").symlink_to(outside / "victim")
        for entry in entries:
            with pytest.raises(UnsafePathError, match="symbolic link"):
                download_tree(folder, [entry], target)
        assert list(outside.iterdir()) == []

    def test_a_stamp_changes_with_the_bytes(self, folder: Location) -> None:
        target = folder / "source.json"
        target.create_bytes(b"one")
        before = target.store.stamp(target.key)
        assert before == target.store.stamp(target.key)
        target.put_bytes(b"longer")
        after = target.store.stamp(target.key)
        assert (before[0], after[0]) == (3, 6)
        assert before[1] != after[1]
        with pytest.raises(NotFoundError):
            target.store.stamp((folder / "missing").key)

    @pytest.mark.parametrize(
        "name", ["no bucket here", "bucket/file/below", "file/below-a-file", "nul\0", "\ud83d", "x" * 2000]
    )
    def test_a_name_that_nothing_can_have_is_not_found(self, folder: Location, name: str) -> None:
        (folder / "file").create_bytes(b"x")
        (folder / "bucket/file").create_bytes(b"x")
        with pytest.raises(NotFoundError):
            (folder / name).read_bytes()

    def test_ranges_and_files_read_what_is_there(self, folder: Location) -> None:
        data = bytes(range(256)) * 40_000  # 10 MB: more than one request
        target = folder / "ranges"
        target.create_bytes(data)
        assert target.read_range(5, 12) == data[5:12]
        with target.open() as file:
            assert file.read(5_000_000) == data[:5_000_000]
            file.seek(-3, 2)
            assert file.read() == data[-3:]

    def test_pyarrow_reads_the_same_object(self, folder: Location) -> None:
        target = folder / "stream"
        target.create_bytes(b"0123456789")
        with target.filesystem.open_input_file(target.key) as file:
            file.seek(4)
            assert file.read(3) == b"456"
