"""The registry's copy in MLflow, on a real MLflow server; it needs the package `mlflow`, which CI does not install."""

import importlib
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from releases import NAME, publish_text, registry_with
from warren.cli.registry import main
from warren.release import GateCheck, GateVerdict, write_accepted
from warren.storage import Location
from warren.testbed import free_port

pytest.importorskip("mlflow.server")
pytestmark = pytest.mark.filterwarnings("default")  # MLflow has warnings of its own


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "a")]
    with (tmp_path / "mlflow.log").open("wb") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log)
    try:
        patience = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (tmp_path / "mlflow.log").read_text()
            assert time.monotonic() < patience, "MLflow does not start"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_versions_and_aliases_are_copied_and_others_are_left_alone(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = Location.parse(str(tmp_path / "store"))
    monkeypatch.setenv("WARREN_STORAGE", root.uri)
    registry = registry_with(root, tmp_path, "v1", "v2")
    folder = publish_text(root, tmp_path, "v3")
    write_accepted(folder, GateVerdict((GateCheck("min_score", True, "0.8 is enough"),)), complete=False)
    registry.move("stable", "v1", expected=None)
    registry.move("candidate", "v2", expected=None)

    def mirrored() -> dict[str, Any]:
        capsys.readouterr()
        assert main("", ["mirror", NAME, "--to", server, "--json"]) == 0
        changes: dict[str, Any] = json.loads(capsys.readouterr().out)
        return changes

    assert mirrored() == {
        "added": ["v1", "v2", "v3"],
        "removed": [],
        "aliases": [["candidate", "v2"], ["stable", "v1"]],
    }
    assert mirrored() == {"added": [], "removed": [], "aliases": []}, "it is all there"
    client = importlib.import_module("mlflow").MlflowClient(server, server)
    stable = client.get_model_version_by_alias(NAME, "stable")
    assert stable.tags["warren.version"] == "v1"
    assert (stable.source, stable.tags["warren.folder"]) == (f"warren://{NAME}/v1", f"{registry.folder}/v1")
    assert stable.tags["warren.run"] == "run-v1"
    assert stable.tags["warren.score.test.exact_match"] == "0.8"
    by_name = {each.tags["warren.version"]: each for each in client.search_model_versions(f"name = '{NAME}'")}
    assert "0.8 is enough" in by_name["v3"].tags["warren.verdict"]

    theirs = client.create_model_version(NAME, "s3://elsewhere/model")
    client.set_registered_model_alias(NAME, "theirs", theirs.version)
    registry.move("stable", "v3", expected="v1")
    shutil.rmtree(Path((registry.folder / "v1").uri.removeprefix("file://")))
    assert mirrored() == {"added": [], "removed": ["v1"], "aliases": [["stable", "v3"]]}
    assert client.get_model_version_by_alias(NAME, "theirs").version == theirs.version

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main("", ["mirror", NAME, "--to", "http://127.0.0.1:1"]) == 1
    assert "did not take" in capsys.readouterr().err
