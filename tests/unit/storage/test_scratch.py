"""Temporary folders: gone afterwards, whatever happens, and those of killed processes gone with the next."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warren.storage.scratch import scratch_folder

_HOLD = """
import time
from warren.storage.scratch import scratch_folder
with scratch_folder("held") as folder:
    print(folder, flush=True)
    time.sleep(300)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_with_its_block_also_after_an_error(temporary: Path) -> None:
    with scratch_folder("one") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == temporary
    assert not folder.exists()
    with pytest.raises(RuntimeError), scratch_folder("two") as folder:
        raise RuntimeError
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    processes = [
        subprocess.Popen([sys.executable, "-c", _HOLD], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout]
    foreign = temporary / "warren-else"
    foreign.mkdir()
    processes[0].kill()
    processes[0].wait()
    try:
        with scratch_folder("early"):
            assert folders[0].exists(), "it is young: its owner may not have locked it yet"
        later = time.time() + 100
        monkeypatch.setattr("warren.storage.scratch.time.time", lambda: later)
        with scratch_folder("late"):
            assert not folders[0].exists()
            assert folders[1].exists(), "a process holds it"
            assert foreign.exists()
    finally:
        processes[1].kill()
        processes[1].wait()
    for process in processes:
        if process.stdout:
            process.stdout.close()
