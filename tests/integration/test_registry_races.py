"""Processes that write to the registry at once, on a real S3 server and on files: nothing is lost or half done."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import registry_writer
from releases import NAME, publish_text, registry_with
from warren.release import fetch_release
from warren.storage import Location

NUM_WRITERS = 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_CACHE", str(tmp_path / "cache"))


def race(root: Location, what: str, *arguments: str) -> list[Any]:
    """Let processes do something at once, and return what each of them printed."""
    script = str(Path(registry_writer.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen(
            [sys.executable, script, root.uri, str(number), what, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(NUM_WRITERS)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    answers = [writer.communicate(timeout=120)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * NUM_WRITERS
    return [json.loads(answer) for answer in answers]


def test_writers_at_once_lose_nothing(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    moved = race(root, "move")
    history = registry.history("stable")
    assert sorted(move.why for move in history) == sorted(why for done in moved for why in done)
    assert [move.number for move in history] == list(range(1, NUM_WRITERS * registry_writer.MOVES + 1))
    assert [move.before for move in history] == [None, *(move.after for move in history[:-1])], "each from where it was"
    assert registry.alias("stable") == history[-1].after

    published = race(root, "publish", str(tmp_path))
    [winner] = {text for outcome, text in published if outcome == "published"}
    assert sorted(outcome for outcome, _ in published) == ["published"] * 2 + ["refused"] * 2
    assert all("with other files" in text for outcome, text in published if outcome == "refused")
    fetch_release(f"{registry.folder}/contested", tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.safetensors").read_text() == winner


def test_a_collection_never_takes_what_an_alias_moves_to(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    registry.move("stable", "v1", expected=None)
    outcomes = race(root, "collect")
    stable = registry.alias("stable")
    assert stable in registry.versions(), outcomes
    fetch_release(f"{registry.folder}/{stable}", tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.safetensors").read_text() == stable
    if ["moved"] in outcomes and stable == "v2":
        assert [move.after for move in registry.history("stable")][:2] == ["v1", "v2"]
    publish_text(root, tmp_path, "v3")
    assert "v3" in registry.versions()
    assert registry.name == NAME
