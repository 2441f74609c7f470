"""The `warren` command."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from warren.cli import job as cli
from warren.cluster.session import _runtime_env, job_environment
from warren.errors import DataError


def test_a_job_is_run_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["warren", "ingest", "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "jobs/ingest.py" in capsys.readouterr().out


def test_an_unknown_job_lists_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["warren", "pretrian"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "pretrain" in capsys.readouterr().err


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handler")
def test_a_known_error_is_one_line_however_deep_it_lies(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        try:
            raise DataError("the table\nis empty")
        except DataError as error:
            raise RuntimeError("a task failed\nwith a long trace") from error

    assert cli.exit_code(work) == 1
    assert capsys.readouterr().err == "error: the table is empty\n"


@pytest.mark.usefixtures("handler")
def test_signals_end_a_command_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert cli.exit_code(interrupted) == 130

    def terminated() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        cli.exit_code(terminated)
    assert ended.value.code == 143
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--recip", "demo"], ["--set"], ["--dry-run=x"], ["more"]])
def test_a_wrong_command_line_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.job_parser("", dry_run=True).parse_args(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith("--help\n")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("handler")
def test_a_job_says_which_section_it_needs_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WARREN_STORAGE", str(tmp_path))
    (tmp_path / "own.yaml").write_text("ingest: {source: easy-vqa}\n")
    done: list[str] = []

    def main(job: cli.Job) -> None:
        done.append(job.recipe.name)

    arguments = ["--recipe", str(tmp_path / "own.yaml")]
    assert cli.run_job(main, "", arguments, cluster=False, needs=["ingest"]) == 0
    assert done == ["own"]
    assert cli.run_job(main, "", arguments, cluster=False, needs=["model", "pretrain"]) == 1
    assert "recipe 'own' has no section 'model': add one" in capsys.readouterr().err
    assert done == ["own"]


def test_what_a_job_was_given_wins_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_STORAGE", "/of/the/shell")
    given = {
        "env_vars": {"WARREN_STORAGE": "/given", "AWS_REGION": "x"},
        "py_modules": ["gcs://mine.zip"],
        "pip": ["a"],
    }
    made = _runtime_env(given)
    assert made["env_vars"]["WARREN_STORAGE"] == "/given"
    assert made["env_vars"]["MALLOC_ARENA_MAX"] == "1"
    assert made["py_modules"][0] == "gcs://mine.zip"
    assert set(made) == {"env_vars", "py_modules"}
    assert _runtime_env({})["env_vars"]["WARREN_STORAGE"] == "/of/the/shell"
    assert job_environment() == {}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": given}))
    assert job_environment() == given["env_vars"]
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": None}))
    assert job_environment() == {}
