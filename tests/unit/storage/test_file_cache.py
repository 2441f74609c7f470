"""A machine's cache of models: one download for all processes, bounded, and whole whoever is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from warren.config.environment import cache_bytes
from warren.errors import ConfigError, CorruptDataError, NotFoundError
from warren.storage import Location, StoredFiles, upload_verified
from warren.storage.file_cache import FileCache, local_copy

SIZE = 1000


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", max_bytes=3 * SIZE)


def model(tmp_path: Path, name: str, size: int = SIZE) -> StoredFiles:
    """Store a model of two files."""
    folder, local = Location.parse(str(tmp_path / "store" / name)), tmp_path / "local"
    entries = []
    for path, content in (("deep/config.json", b"{}"), ("weights", name.encode().ljust(size - 2, b"."))):
        local.write_bytes(content)
        entries.append(upload_verified(local, folder, path))
    return StoredFiles(folder, tuple(entries))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def taken(cache: FileCache) -> int:
    """Bytes of models on disk, whatever the cache thinks."""
    return sum(
        p.stat().st_size
        for p in cache.folder.rglob("*")
        if p.parent != cache.folder and p.name != "bytes" and p.is_file()
    )


def lose(files: StoredFiles) -> None:
    """Delete what is stored, so that only the cache has it."""
    for entry in files.files:
        Path(files.folder.uri, entry.path).unlink()


def test_the_second_time_nothing_is_downloaded_wherever_the_files_are_stored(cache: FileCache, tmp_path: Path) -> None:
    files = model(tmp_path, "a")
    with cache.held(files) as folder:
        before = content(folder)
    assert before["weights"].startswith(b"a.")
    lose(files)
    elsewhere = StoredFiles(Location.parse(str(tmp_path / "elsewhere")), files.files)
    for same in (files, elsewhere):
        with cache.held(same) as folder:
            assert content(folder) == before


def test_the_least_recently_used_is_removed_and_the_bound_holds(cache: FileCache, tmp_path: Path) -> None:
    models = {name: model(tmp_path, name) for name in "abcd"}
    for name in "abcad":  # "b" was used least recently when "d" comes
        with cache.held(models[name]):
            pass
        assert taken(cache) <= cache.max_bytes
    for files in models.values():
        lose(files)
    for name in "acd":
        with cache.held(models[name]) as folder:
            assert content(folder)["weights"].startswith(name.encode())
    with pytest.raises(NotFoundError), cache.held(models["b"]):
        pass


def test_what_is_in_use_is_never_removed_and_what_does_not_fit_is_not_kept(cache: FileCache, tmp_path: Path) -> None:
    one, two, large = model(tmp_path, "a"), model(tmp_path, "b", 2 * SIZE), model(tmp_path, "c", 2 * SIZE)
    with cache.held(one) as first, cache.held(two) as second:
        with cache.held(large) as folder:
            assert cache.folder not in folder.parents
            assert content(folder)["weights"].startswith(b"c.")
        assert not folder.exists()
        assert content(first)["weights"][:2] + content(second)["weights"][:2] == b"a.b."
    with cache.held(model(tmp_path, "d", 4 * SIZE)) as folder:
        assert cache.folder not in folder.parents
    assert taken(cache) == 3 * SIZE


def test_damage_in_the_cache_is_mended_and_damage_in_storage_is_an_error(cache: FileCache, tmp_path: Path) -> None:
    files = model(tmp_path, "a")
    with cache.held(files) as folder:
        (folder / "weights").write_bytes(b"x" * (SIZE - 2))
    with cache.held(files) as folder:
        assert content(folder)["weights"].startswith(b"a.")
        (folder / "weights").unlink()
    Path(files.folder.uri, "weights").write_bytes(b"x" * (SIZE - 2))
    for _ in range(2):
        with pytest.raises(CorruptDataError, match="damaged"), cache.held(files):
            pass


def test_many_threads_and_processes_download_once(cache: FileCache, tmp_path: Path) -> None:
    files = model(tmp_path, "a")
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        results = [pool.apply_async(held_files, (cache, files)) for _ in range(4)]
        mine = [threads.submit(held_files, cache, files) for _ in range(4)]
        found = [result.get(60) for result in results] + [each.result(60) for each in mine]
    assert {inode for inode, _ in found} == {found[0][0]}  # one file, never replaced
    assert {text for _, text in found} == {b"a."}


def held_files(cache: FileCache, files: StoredFiles) -> tuple[int, bytes]:
    with cache.held(files) as folder:
        return (folder / "weights").stat().st_ino, (folder / "weights").read_bytes()[:2]


SLOW = """
    import os, signal, sys
    from pathlib import Path
    from warren.storage import StoredFiles, Location, FileEntry, transfer
    from warren.storage import file_cache
    from warren.storage.file_cache import FileCache
    when, folder, source, *entries = sys.argv[1:]
    files = StoredFiles(Location(source), tuple(FileEntry(p, int(s), d) for p, s, d in zip(*[iter(entries)] * 3)))

    def end(*_):
        print("there", flush=True)
        signal.pause()

    if when == "filling":
        file_cache.StoredFiles.fetch = lambda self, target: ((target / "weights").write_bytes(b"half"), end())
    if when == "removing":
        file_cache.shutil.rmtree = lambda entry, **_: ((entry / "bytes").unlink(), end())
    with FileCache(Path(folder), 3000).held(files):
        end()
"""


@pytest.mark.parametrize("when", ["filling", "removing", "using"])
def test_a_process_that_is_killed_leaves_nothing_that_stays_or_is_believed(
    cache: FileCache, tmp_path: Path, when: str
) -> None:
    a, b, c = model(tmp_path, "a"), model(tmp_path, "b", 2 * SIZE), model(tmp_path, "c")
    if when == "removing":
        with cache.held(b), cache.held(c):
            pass  # full: "a" needs the room of one
    arguments = [part for entry in a.files for part in (entry.path, str(entry.bytes), entry.sha256)]
    command = [sys.executable, "-c", textwrap.dedent(SLOW), when, str(cache.folder), a.folder.uri, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        child.send_signal(signal.SIGKILL)
    with cache.held(a) as folder:
        assert content(folder)["weights"].startswith(b"a.")
        assert taken(cache) <= cache.max_bytes
    for files in (b, c, a):
        with cache.held(files) as folder:
            assert cache.folder in folder.parents
            assert content(folder)["weights"][:1] == content(Path(files.folder.uri))["weights"][:1]
        assert taken(cache) <= cache.max_bytes


def test_a_folder_that_cannot_be_used_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    with FileCache(tmp_path / "file", 10**6).held(model(tmp_path, "a")) as folder:
        assert content(folder)["weights"].startswith(b"a.")
    assert "cannot be used" in caplog.text
    assert "WARREN_CACHE" in caplog.text


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_CACHE", str(tmp_path / "here"))
    with local_copy(model(tmp_path, "a")) as folder:
        assert tmp_path / "here" in folder.parents
    monkeypatch.setenv("WARREN_CACHE_BYTES", "0")
    with local_copy(model(tmp_path, "a")) as folder:
        assert tmp_path / "here" not in folder.parents
    monkeypatch.setenv("WARREN_CACHE_BYTES", "12 GB")
    with pytest.raises(ConfigError, match="WARREN_CACHE_BYTES='12 GB': expected a number of bytes"):
        cache_bytes()
