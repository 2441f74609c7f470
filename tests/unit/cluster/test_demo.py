"""What the demo prints for people, and the port of the endpoint."""

import json
import runpy
import socket
from pathlib import Path

import pytest

from factories import colour_sample, tiny_recipe, write_dataset
from warren.cluster.serve import endpoint
from warren.errors import ServiceError
from warren.storage import Location
from warren.testbed import RayHead
from warren.testbed.demo import Demo
from warren_serve.protocol import parse_chat_request


def test_a_kept_endpoint_comes_with_a_request_that_it_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("warren.testbed.demo.time.sleep", interrupt)
    root = Location.parse(str(tmp_path / "store"))
    write_dataset(root, "test", [colour_sample(i) for i in range(20)])
    head = RayHead(tmp_path / "ray", 2, {}, token="secret-token")
    Demo(tiny_recipe(), [], tmp_path, keep=True)._wait(root, head, 8123)

    printed = capsys.readouterr().out
    assert (
        f"curl http://127.0.0.1:8123/v1/chat/completions -H 'Content-Type: application/json' -d @{tmp_path}" in printed
    )
    assert f"dashboard: {head.dashboard_url} (token: secret-token)" in printed
    assert f". {tmp_path / 'env.sh'}" in printed
    assert f"export RAY_ADDRESS={head.dashboard_url}\n" in (tmp_path / "env.sh").read_text()
    request = parse_chat_request((tmp_path / "request.json").read_bytes())
    assert request.model == "tiny"
    assert json.loads((tmp_path / "request.json").read_text())["messages"][0]["content"][1]["text"].startswith("what")


def test_a_recipe_in_a_file_is_found_by_every_job(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs run in a copy of the working directory, in which a relative path may lead elsewhere."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ray"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/submitted\n')
    program.chmod(0o755)
    monkeypatch.setattr("warren.testbed.demo.sys.executable", str(program))
    monkeypatch.syspath_prepend(str(repository / "jobs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: demo\nname: other\n")
    walked: list[Demo] = []
    monkeypatch.setattr(Demo, "run", lambda demo: walked.append(demo))
    job = runpy.run_path(str(repository / "jobs" / "demo.py"), run_name="job")
    job["run"](job["parser"]().parse_args(["--recipe", "mine.yaml"]))
    job["run"](job["parser"]().parse_args([]))
    job["run"](job["parser"]().parse_args(["--set", "endpoint.settings.num_slots=2", "--set", "finetune.seed=3"]))
    for demo in walked:
        demo._submit("ingest", {})
    walked[2]._submit("release", {}, "--endpoint", "demo")
    ways = [line.partition(" --recipe ")[2] for line in (tmp_path / "submitted").read_text().splitlines()]
    seeded = "--set finetune.seed=3"
    assert ways[:3] == [str(tmp_path / "mine.yaml"), "demo", f"demo {seeded}"]
    assert ways[3] == f"demo --endpoint demo --set endpoint.settings.num_slots=2 {seeded}"
    assert walked[0].recipe.name == "other"


def test_a_port_in_use_is_said_before_anything_is_deployed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} on 127\.0\.0\.1 is in use.*WARREN_SERVE_PORT"):
            endpoint._check_port("127.0.0.1", port)
