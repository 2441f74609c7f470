"""Logs as lines of JSON: what is logged, what is printed, and what a command says when it ends."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from warren.cli.job import exit_code
from warren.config.json_logs import LOG_FORMAT_VARIABLE, JsonFormatter
from warren.errors import DataError


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_a_command_is_an_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        print("step 1", file=sys.stderr)
        print("half a line, ", end="", file=sys.stderr)
        print("and the rest\n", file=sys.stderr)
        logging.getLogger("warren.data").warning("a %s", "record")
        print("the result")
        raise DataError("no such\ndataset")

    monkeypatch.setenv(LOG_FORMAT_VARIABLE, "json")
    monkeypatch.setattr(sys, "argv", ["jobs/pretrain.py"])
    assert exit_code(work) == 1
    written = capsys.readouterr()
    assert written.out == "the result\n", "what a command returns stays as it is"
    shown = [(each["level"], each["logger"], each["message"]) for each in lines(written.err)]
    assert shown == [
        ("INFO", "pretrain", "step 1"),
        ("INFO", "pretrain", "half a line, and the rest"),
        ("WARNING", "warren.data", "a record"),
        ("ERROR", "pretrain", "no such dataset"),
    ]


def test_text_is_the_default_and_another_format_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(LOG_FORMAT_VARIABLE, raising=False)
    assert exit_code(lambda: print("plain", file=sys.stderr)) == 0
    monkeypatch.setenv(LOG_FORMAT_VARIABLE, "xml")
    assert exit_code(lambda: None) == 1
    assert capsys.readouterr().err == "plain\nerror: WARREN_LOG_FORMAT='xml': expected json or text\n"


def test_a_record_has_its_fields_and_its_traceback() -> None:
    formatter = JsonFormatter()
    record = logging.makeLogRecord({"name": "warren_serve.access", "msg": "{}", "fields": {"status": 200}})
    entry = json.loads(formatter.format(record))
    assert (entry["status"], entry["logger"]) == (200, "warren_serve.access")
    assert "message" not in entry
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    entry = json.loads(formatter.format(record))
    assert entry["message"] == "failed"
    assert "ValueError: why" in entry["exception"]
    assert "\n" not in formatter.format(record)


def test_a_real_command_writes_json(repository: Path) -> None:
    command = [sys.executable, "jobs/registry.py", "list"]
    environment = {LOG_FORMAT_VARIABLE: "json", "WARREN_STORAGE": "relative/path", "PATH": ""}
    ended = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    [entry] = lines(ended.stderr)
    assert (entry["level"], entry["logger"]) == ("ERROR", "registry")
    assert "relative path" in entry["message"]
