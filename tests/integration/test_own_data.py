"""docs/own-data.md, typed as it stands: a folder of images and a CSV, a bucket called `my-bucket`, an answer."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from documented_commands import documented_commands
from factories import COLOURS, make_image
from warren.release import read_alias
from warren.storage import Location
from warren.storage.s3 import ensure_bucket

_BLOCK = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)


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


def clone(repository: Path, target: Path) -> None:
    """Copy what a job is made of; nothing that a working tree has besides."""
    for name in ("jobs", "platform", "serve"):
        shutil.copytree(repository / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def bash(script: str, folder: Path, cluster: Any) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, **cluster.env, "PATH": path}
    env.pop("WARREN_STORAGE", None)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=1150
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_own_images_become_an_answered_request(idle_cluster: Any, repository: Path, tmp_path: Path) -> None:
    ensure_bucket("my-bucket")
    write_birds(tmp_path / "birds")
    clone(repository, tmp_path / "clone")
    port = str(idle_cluster.serve_port)
    here = {
        "/data/birds": str(tmp_path / "birds"),
        "http://127.0.0.1:8265": idle_cluster.dashboard_url,
        ":8000": f":{port}",
    }
    smaller = {"epochs: 20": "epochs: 1", "epochs: 40": "epochs: 1", "min_score: 0.5": "min_score: 0.0"}
    text = (repository / "docs" / "own-data.md").read_text()
    for old, new in {**here, **smaller}.items():
        assert old in text
        text = text.replace(old, new)
    blocks = [(kind, block) for kind, block in _BLOCK.findall(text) if "ray start" not in block]
    (tmp_path / "clone" / "birds.yaml").write_text(next(block for kind, block in blocks if kind == "yaml"))
    script = "".join(block for kind, block in blocks if kind == "sh")
    found = bash(script, tmp_path / "clone", idle_cluster)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    for line in (
        "birds@v1: 32 samples in 1 shards",
        "birds-test@v1: 8 samples in 1 shards",
        "serving: birds birds-finetune",
    ):
        assert line in found.stdout
    answer = json.loads(found.stdout[found.stdout.rindex('{"id"') :])
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert read_alias(Location.parse("s3://my-bucket/warren"), "birds", "stable") == "birds-finetune-00000001"
    ask_as_the_readme_does(tmp_path, port, idle_cluster)


def ask_as_the_readme_does(folder: Path, port: str, cluster: Any) -> None:
    command = next(c.text for c in documented_commands() if c.document == "README.md" and c.text.startswith("curl "))
    image = base64.b64encode((folder / "birds" / "0.png").read_bytes()).decode()
    for old, new in {":8000": f":{port}", '"demo"': '"birds"', "base64,…": f"base64,{image}"}.items():
        assert old in command
        command = command.replace(old, new)
    found = bash(command, folder, cluster)
    assert "data: [DONE]" in found.stdout, found.stdout + found.stderr
