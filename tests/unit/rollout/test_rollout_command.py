"""`jobs/rollout.py`: the state as text and JSON, and commands that reach the controller."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warren.cli.rollout import main
from warren.rollout.state_store import RolloutFiles
from warren.storage import Location


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutFiles:
    monkeypatch.setenv("WARREN_STORAGE", str(tmp_path))
    return RolloutFiles(Location.parse(str(tmp_path)), "demo", "chat")


def test_the_state_is_shown_and_commands_are_sent(files: RolloutFiles, capsys: Any) -> None:
    assert main("", ["status", "demo"]) == 1
    assert "no rollout controller has written for the release 'demo' and the endpoint 'chat'" in capsys.readouterr().err
    owner = files.take_over("one")
    owner.save(replace(owner.record.state, phase="shifting", stable="v1", candidate="v2", refused={"v0": "too slow"}))
    assert main("", ["status", "demo"]) == 0
    shown = capsys.readouterr().out
    for part in ("shifting, step 1", "serving:   v1", "candidate: v2", "refused:   v0: too slow"):
        assert part in shown
    assert main("", ["status", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"]["phase"] == "shifting"

    assert main("", ["abort", "demo", "--reason", "wrong language"]) == 0
    sent = files.read_command()
    assert sent
    assert (sent.action, sent.reason) == ("abort", "wrong language")
    assert main("", ["pause", "demo"]) == 1
    assert "has not been obeyed yet" in capsys.readouterr().err
    owner.save(replace(owner.record.state, handled_command=sent.number))
    assert main("", ["retry", "demo", "--version", "v0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"number": 2, "action": "retry"}


def test_waiting_ends_when_the_version_serves_or_was_undone(files: RolloutFiles, capsys: Any) -> None:
    owner = files.take_over("one")
    owner.save(replace(owner.record.state, phase="shifting", stable="v1", candidate="v2", refused={"v0": "too slow"}))
    assert main("", ["wait", "demo", "--version", "v0"]) == 1
    assert "v0 was undone, v1 serves: too slow" in capsys.readouterr().err
    assert main("", ["wait", "demo", "--version", "v2", "--timeout-s", "0"]) == 1
    assert "v2 does not serve after 0 s, v1 serves" in capsys.readouterr().err
    owner.save(replace(owner.record.state, phase="idle", stable="v2", candidate=None))
    assert main("", ["wait", "demo", "--version", "v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"serving": "v2"}
