"""A process that stands still says where, in its log and in storage, and ends so that it is started again."""

import subprocess
import sys
from pathlib import Path

import pytest

from warren.storage import Location
from warren.train.watchdog import EXIT_CODE

PROGRAM = """
import sys, threading, time
from warren.storage import Location
from warren.train import watchdog

def stand_still():
    threading.Event().wait(60)

def work(dog):
    for number in range(8):
        dog.alive(f"step {number}")
        time.sleep(0.1)

class Away(Location):
    def create_bytes(self, data):
        threading.Event().wait(60)

target = sys.argv[2]
watchdog._UPLOAD_TIMEOUT_S = 0.2
with watchdog.Watchdog(0.4, Away(target) if sys.argv[1] == "away" else Location(target)) as dog:
    work(dog)
    if sys.argv[1] != "work":
        dog.alive("waiting for others")
        stand_still()
time.sleep(0.6)  # longer than the timeout, and not watched any more
print("ended by itself")
"""


def watched(kind: str, target: Location) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, target.uri], env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_process_that_gives_signs_of_life_is_left_alone(tmp_path: Path) -> None:
    ended = watched("work", Location(str(tmp_path / "stacks.txt")))
    assert (ended.returncode, ended.stdout.strip()) == (0, "ended by itself")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["there", "full", "away"])
def test_a_process_that_stands_still_says_where_and_ends_whatever_storage_does(tmp_path: Path, storage: str) -> None:
    target = Location(str(tmp_path / "stacks.txt"))
    if storage == "full":
        target = target / "below-a-file.txt"
        (tmp_path / "stacks.txt").write_text("")
    ended = watched(storage, target)
    assert ended.returncode == EXIT_CODE
    assert "ended by itself" not in ended.stdout
    assert "(resources.hang_timeout_s=0.4) while waiting for others; every thread of process" in ended.stderr
    assert "in stand_still" in ended.stderr
    if storage == "there":
        assert target.read_bytes().decode() in ended.stderr
