"""Processes that write to the registry at once, on a real S3 server and on files: nothing is lost or half done."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import registry_writer
from releases import NAME, publish_text, registry_with
from warren.release import fetch_release
from warren.storage import Location
from warren.testbed import S3Server

NUM_WRITERS = 4
Writer = subprocess.Popen[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def writers(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Writer]]:
    """Processes that race in every test: starting them takes longer than all races."""
    cache = str(tmp_path_factory.mktemp("cache"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WARREN_CACHE": cache}
    commands = [[sys.executable, str(registry_writer.__file__), str(number)] for number in range(NUM_WRITERS)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for command in commands]
    yield started
    for writer in started:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in started] == [0] * NUM_WRITERS


def race(writers: list[Writer], root: Location, what: str, *arguments: str) -> list[Any]:
    """Let the processes do something at once, and return what each of them printed."""
    for writer in writers:
        tell(writer, json.dumps([root.uri, what, *arguments]))
    assert [answer(writer) for writer in writers] == ["ready"] * NUM_WRITERS
    for writer in writers:
        tell(writer, "go")
    return [json.loads(answer(writer)) for writer in writers]


def tell(writer: Writer, line: str) -> None:
    assert writer.stdin is not None
    writer.stdin.write(f"{line}\n")
    writer.stdin.flush()


def answer(writer: Writer) -> str:
    assert writer.stdout is not None
    return writer.stdout.readline().strip()


def test_writers_at_once_lose_nothing(writers: list[Writer], root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    moved = race(writers, root, "move")
    history = registry.history("stable")
    assert sorted(move.why for move in history) == sorted(why for done in moved for why in done)
    assert [move.number for move in history] == list(range(1, NUM_WRITERS * registry_writer.MOVES + 1))
    assert [move.before for move in history] == [None, *(move.after for move in history[:-1])], "each from where it was"
    assert registry.alias("stable") == history[-1].after

    published = race(writers, root, "publish", str(tmp_path))
    [winner] = {text for outcome, text in published if outcome == "published"}
    assert sorted(outcome for outcome, _ in published) == ["published"] * 2 + ["refused"] * 2
    assert all("with other files" in text for outcome, text in published if outcome == "refused")
    fetch_release(f"{registry.folder}/contested", tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.safetensors").read_text() == winner


def test_a_collection_never_takes_what_an_alias_moves_to(writers: list[Writer], root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    registry.move("stable", "v1", expected=None)
    outcomes = race(writers, root, "collect")
    stable = registry.alias("stable")
    assert stable in registry.versions(), outcomes
    fetch_release(f"{registry.folder}/{stable}", tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.safetensors").read_text() == stable
    if ["moved"] in outcomes and stable == "v2":
        assert [move.after for move in registry.history("stable")][:2] == ["v1", "v2"]
    publish_text(root, tmp_path, "v3")
    assert "v3" in registry.versions()
    assert registry.name == NAME
