"""The `warren` command."""

import sys

import pytest

from warren.cluster import cli


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
