"""What the demo prints for people, and the port of the endpoint."""

import json
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


def test_a_port_in_use_is_said_before_anything_is_deployed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} on 127\.0\.0\.1 is in use.*WARREN_SERVE_PORT"):
            endpoint._check_port("127.0.0.1", port)
