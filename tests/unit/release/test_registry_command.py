"""`jobs/registry.py`: every command in text and JSON, errors of one line, nothing done without being asked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from releases import NAME, publish_text, registry_with
from warren.cli.registry import main
from warren.release import GateCheck, GateOverride, GateVerdict, ParentModel, Registry, write_accepted, write_deployment
from warren.storage import Location

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("WARREN_STORAGE", str(tmp_path / "store"))
    registry = registry_with(Location.parse(str(tmp_path / "store")), tmp_path, "v1", "v2")
    registry.move("stable", "v1", expected=None, who="ada", why="the first")
    return registry


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], restored_sigterm: None) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        code = main("", words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def restored_sigterm() -> Any:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_list_has_a_line_for_each_version(registry: Registry, run: Run, tmp_path: Path) -> None:
    registry.pin("v2", "an audit")
    write_deployment(registry.root, NAME, "chat", ["v1"])
    publish_text(registry.root, tmp_path, "w1", name="other")
    code, text, _ = run("list", NAME)
    head, first, second = text.splitlines()
    assert code == 0
    assert head.split() == ["release", "version", "created", "size", "scores", "aliases", "pinned", "runs", "in"]
    assert first.split()[:2] == [NAME, "v1"]
    assert first.split()[-3:] == ["stable", "-", "chat"]
    assert "test/exact_match 0.8000" in second
    assert second.split()[-3:] == ["-", "yes", "-"]
    assert len(run("list")[1].splitlines()) == 4
    rows = json.loads(run("list", NAME, "--json")[1])
    assert [(row["version"], row["aliases"], row["pinned"]) for row in rows] == [
        ("v1", ["stable"], False),
        ("v2", [], True),
    ]
    (registry.folder / "v2" / "release.json").put_bytes(b"{")
    assert "cannot be read" in run("list", NAME)[1]
    assert run("list", "nothing")[1] == "no release yet: jobs/release.py publishes one\n"


def test_one_version_is_shown_with_lineage_verdict_and_moves(registry: Registry, run: Run, tmp_path: Path) -> None:
    folder = publish_text(registry.root, tmp_path, "v3", [ParentModel("average", "one", 4, weight=0.25)])
    checks = (GateCheck("min_score", False, "exact_match is 0.4 on 9 samples, the gate asks for 0.5"),)
    write_accepted(folder, GateVerdict(checks, override=GateOverride("bob", "a demonstration")), complete=False)
    registry.move("stable", "v3", "v1", who="bob", why="overridden")
    code, text, _ = run("show", NAME, "stable")
    assert code == 0
    for expected in (
        f"{NAME} v3, published 20",
        "run run-v3 at step 3",
        "made from: average one at step 4, weight 0.25",
        "FAILED  min_score: exact_match is 0.4 on 9 samples",
        "released all the same by bob: a demonstration",
        "by bob: overridden",
    ):
        assert expected in text, text
    value = json.loads(run("show", NAME, "v3", "--json")[1])
    assert value["verdict"]["override"]["who"] == "bob"
    assert [move["to"] for move in value["moves"]["stable"]] == ["v3"]
    assert "verdict: none was recorded" in run("show", NAME, "v1")[1]


def test_aliases_move_with_a_reason_and_go_back(registry: Registry, run: Run) -> None:
    code, text, _ = run("promote", NAME, "v2", "--why", "better", "--who", "bob")
    assert (code, registry.alias("stable")) == (0, "v2")
    assert text.startswith(f"{NAME} stable: v1 → v2, 20")
    assert text.endswith("by bob: better\n")
    back = json.loads(run("rollback", NAME, "--why", "worse", "--who", "eve", "--json")[1])
    assert (back["from"], back["to"], back["who"], back["kind"]) == ("v2", "v1", "eve", "rollback")
    assert run("promote", NAME, "stable", "--alias", "candidate", "--why", "again")[0] == 0
    assert registry.aliases() == {"stable": "v1", "candidate": "v1"}
    assert [line.split()[-1] for line in run("history", NAME)[1].splitlines()] == ["why", "first", "better", "worse"]


def test_a_difference_is_a_table(registry: Registry, run: Run) -> None:
    lines = run("diff", NAME, "stable", "v2")[1].splitlines()
    assert lines[0].split() == ["what", "stable", "v2"]
    assert ["run", "run-v1", "run-v2"] in [line.split() for line in lines]
    assert run("diff", NAME, "v1", "v1")[1] == "no difference\n"
    assert {"key": "run", "first": "run-v1", "second": "run-v2"} in json.loads(
        run("diff", NAME, "v1", "v2", "--json")[1]
    )


def test_nothing_is_removed_without_yes(registry: Registry, run: Run) -> None:
    assert "young" in run("gc", NAME)[1]
    text = run("gc", NAME, "--min-age-days", "0")[1]
    assert text.splitlines()[-1] == "4 B in 1 of 2 versions would be removed; --yes removes them"
    assert registry.versions() == ["v1", "v2"]
    assert run("pin", NAME, "v2", "--why", "an audit")[0] == 0
    assert run("gc", NAME, "--min-age-days", "0", "--yes")[1].splitlines()[-1] == "removed 0 of 0"
    assert run("unpin", NAME, "v2")[0] == 0
    assert json.loads(run("gc", NAME, "--min-age-days=0", "--yes", "--json")[1])["done"] == ["v2"]
    assert registry.versions() == ["v1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", NAME, "v9"], "no release 'v9' of 'demo'; versions: v1, v2"),
        (["show", NAME, "candidate"], "no release of 'demo' was ever candidate"),
        (["show", "../x", "v1"], "is not a name"),
        (["show", NAME, "../v1"], "is not a name"),
        (["promote", NAME, "v1", "--why", "again"], "names v1 already"),
        (["promote", NAME, "v9", "--why", "x"], "no release 'v9'"),
        (["promote", NAME, "v2", "--why", "  "], "--why is empty"),
        (["rollback", NAME, "--why", "x"], "has no earlier version to go back to"),
        (["rollback", NAME, "--alias", "candidate", "--why", "x"], "has no earlier version to go back to"),
        (["unpin", NAME, "v1"], "is not pinned"),
        (["gc", NAME, "--window", "-1"], "0 or more"),
    ],
)
def test_what_cannot_be_done_is_one_line(registry: Registry, run: Run, words: list[str], message: str) -> None:
    code, text, error = run(*words)
    assert (code, text) == (1, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert registry.aliases() == {"stable": "v1"}


@pytest.mark.parametrize("words", [["promote", NAME, "v2"], ["rollback", NAME], ["show", NAME], ["promot", NAME], []])
def test_a_wrong_command_line_is_refused(registry: Registry, run: Run, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    assert registry.aliases() == {"stable": "v1"}


def test_a_mirror_without_mlflow_says_what_to_install(registry: Registry, run: Run, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, error = run("mirror", NAME, "--to", "http://127.0.0.1:1")
    assert (code, "pip install 'warren-vlm[trackers]'" in error) == (1, True)
