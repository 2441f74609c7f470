"""docs/own-data.md, command by command: a folder of images and a CSV, a bucket called `my-bucket`, an answer.

The jobs run in this process, which is connected to the cluster; how `ray job submit` starts them, and what it hands on,
is the subject of `test_job_submission.py` and of the demo.
"""

import base64
import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from documented_commands import Command, commands_of, documented_commands
from factories import COLOURS, make_image
from warren.cli.job import run_job
from warren.release import read_alias
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.train.run import Run

DOCUMENT = "docs/own-data.md"
_BLOCK = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT_ANSWERS = ["--set", "endpoint.settings.max_new_tokens=4"]  # one step teaches nobody to end an answer
ONE_PROCESS_EACH = ["--set", "resources.num_workers=1", "--set", "resources.num_evaluators=1"]


def write_birds(folder: Path) -> None:
    folder.mkdir()
    names = list(COLOURS)
    for table, numbers in (("pairs", range(32)), ("test", range(32, 40))):
        rows = []
        for number in numbers:
            name = names[number % len(names)]
            (folder / f"{number}.png").write_bytes(make_image(COLOURS[name]))
            rows.append(f"{number}.png,a {name} bird\n")
        (folder / f"{table}.csv").write_text("image,caption\n" + "".join(rows))


def document(repository: Path, here: dict[str, str]) -> list[tuple[str, str]]:
    """Return the document's blocks with their kinds, with this test's places and a shorter training."""
    smaller = {"epochs: 20": "epochs: 1", "epochs: 40": "epochs: 1", "min_score: 0.5": "min_score: 0.0"}
    text = (repository / DOCUMENT).read_text()
    for old, new in {**here, **smaller}.items():
        assert old in text
        text = text.replace(old, new)
    return [(kind, block) for kind, block in _BLOCK.findall(text) if "ray start" not in block]


def run(repository: Path, job: str, arguments: list[str]) -> int:
    module = runpy.run_path(str(repository / "jobs" / f"{job}.py"), run_name="job")
    arguments = [*arguments, *ONE_PROCESS_EACH, *(SHORT_ANSWERS if job == "release" else [])]
    return run_job(module["main"], module["__doc__"], arguments, extend=module.get("options"))


def bash(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_own_images_become_an_answered_request(
    idle_cluster: Any,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ensure_bucket("my-bucket")
    write_birds(tmp_path / "birds")
    port = str(idle_cluster.serve_port)
    blocks = document(repository, {"/data/birds": str(tmp_path / "birds"), ":8000": f":{port}"})
    (tmp_path / "birds.yaml").write_text(next(block for kind, block in blocks if kind == "yaml"))
    commands = [Command(DOCUMENT, text) for kind, block in blocks if kind == "sh" for text in commands_of(block)]
    [storage] = re.findall(r"WARREN_STORAGE=(\S+)", " ".join(c.text for c in commands if c.text.startswith("export ")))
    monkeypatch.setenv("WARREN_STORAGE", storage)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(repository / "jobs"))
    for command in commands:
        if command.job is not None:
            assert run(repository, *command.job) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    for line in (
        "birds@v1: 32 samples in 1 shards",
        "birds-test@v1: 8 samples in 1 shards",
        "serving: birds birds-finetune",
    ):
        assert line in printed
    asked = bash("\n".join(c.text for c in commands if c.text.startswith(("image=", "curl "))), tmp_path)
    assert json.loads(asked)["choices"][0]["message"]["role"] == "assistant"
    assert read_alias(Location.parse("s3://my-bucket/warren"), "birds", "stable") == "birds-finetune-00000001"
    ask_as_the_readme_does(tmp_path, port)
    trained = Run(Location.parse("s3://my-bucket/warren/runs/birds-finetune")).checkpoints.read(1).run
    assert trained["datasets"]
    assert trained["origin"]
    assert (trained["stage"], list(trained["datasets"])) == ("finetune", ["birds@v1"])
    assert (trained["origin"]["run"], trained["origin_step"]) == ("birds-pretrain", 1)


def ask_as_the_readme_does(folder: Path, port: str) -> None:
    command = next(c.text for c in documented_commands() if c.document == "README.md" and c.text.startswith("curl "))
    image = base64.b64encode((folder / "birds" / "0.png").read_bytes()).decode()
    for old, new in {":8000": f":{port}", '"demo"': '"birds"', "base64,…": f"base64,{image}"}.items():
        assert old in command
        command = command.replace(old, new)
    assert "data: [DONE]" in bash(command, folder)
