"""A rollout that fails is undone: what Serve ran before is applied again, word for word.

Ray Serve is played by its REST API: what it is given it keeps, and the release decides what becomes of it.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from releases import registry_with
from warren.cluster.serve import endpoint as serving
from warren.cluster.serve.endpoint import roll_in
from warren.cluster.serve.endpoint_config import IMPORT_PATH, EndpointSpec
from warren.cluster.serve.publish_and_deploy import Released, roll_out
from warren.config import Resources
from warren.errors import ServiceError
from warren.storage import Location
from warren.testbed import free_port

RESOURCES = Resources(num_workers=1)
GOOD, NEW = "s3://b/releases/demo/v1", "s3://b/releases/demo/v2"
CHAT = {
    "name": "chat",
    "route_prefix": "/",
    "import_path": IMPORT_PATH,
    "args": {"release": GOOD, "model_name": "demo", "api_keys_file": "/etc/keys"},
}
OTHER = {"name": "other", "route_prefix": "/other", "import_path": "theirs:app"}


class Serve:
    """Keeps what it is given.

    Attributes:
        while_it_starts: Called with each configuration.
        fates: What becomes of a release: its application's status, or `refused`; others run.
        given: The applications of every configuration it was sent, also of those it refused.
    """

    def __init__(self, *applications: dict[str, Any]) -> None:
        self.applications = list(applications)
        self.fates: dict[str, str] = {}
        self.given: list[list[dict[str, Any]]] = []
        self.while_it_starts: Callable[[], object] = lambda: None

    def apply(self, config: dict[str, Any]) -> bool:
        self.given.append(config["applications"])
        self.while_it_starts()
        if any(self.fate(each) == "refused" for each in config["applications"]):
            return False
        self.applications = config["applications"]
        return True

    def fate(self, application: dict[str, Any]) -> str:
        return self.fates.get(application.get("args", {}).get("release"), "RUNNING")

    def details(self) -> dict[str, Any]:
        applications = {
            each["name"]: {
                "status": self.fate(each),
                "message": "Traceback\nwarren.errors.ReleaseError: the weights are damaged",
                "source": "declarative",
                "deployed_app_config": each,
            }
            for each in self.applications
        }
        options = {"host": "127.0.0.1", "port": 9000}
        return {"proxy_location": "HeadOnly", "http_options": options, "proxies": {}, "applications": applications}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve with the applications `chat` and `other`, behind the dashboard that `roll_in` looks for."""
    serve = Serve(CHAT, OTHER)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_version = self.path.endswith("/version")
            self.answer(200, {"version": "4", "ray_version": "2.60.0"} if is_version else serve.details())

        def do_PUT(self) -> None:
            config = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.answer(200 if serve.apply(config) else 400, {})

        def answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(serving, "dashboard_url", lambda: f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(serving, "shipped_packages", list)
        monkeypatch.setattr(serving, "_POLL_S", 0.01)
        monkeypatch.setenv(serving.PORT_VARIABLE, str(free_port()))
        yield serve
        server.shutdown()


def rolled(timeout_s: float = 30.0) -> str:
    """Roll the new release in; return the error, if it fails."""
    try:
        roll_in(NEW, "demo", RESOURCES, timeout_s)
    except ServiceError as error:
        return str(error)
    return ""


def test_a_release_that_comes_up_is_left_to_serve(serve: Serve) -> None:
    assert rolled() == ""
    [[chat, other]] = serve.given
    assert (chat["args"], other) == ({**CHAT["args"], "release": NEW}, OTHER)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("DEPLOY_FAILED", "the release did not come up (DEPLOY_FAILED): warren.errors.ReleaseError: the weights are"),
        ("UNHEALTHY", "the release did not come up (UNHEALTHY): warren.errors.ReleaseError: the weights are"),
        ("DEPLOYING", "the release was not serving after 0 s (status DEPLOYING): warren.errors.ReleaseError"),
        ("refused", "Ray Serve refused the configuration"),
    ],
)
def test_a_release_that_does_not_come_up_is_undone(serve: Serve, fate: str, reason: str) -> None:
    serve.fates[NEW] = fate
    error = rolled(timeout_s=0.1 if fate == "DEPLOYING" else 30.0)
    assert error.startswith(reason)
    assert error.endswith(f"; it was undone, and {GOOD} keeps serving")
    assert serve.applications == [CHAT, OTHER]
    assert len(serve.given) == 2


def test_the_first_release_that_fails_leaves_nothing_behind(serve: Serve) -> None:
    serve.applications = []
    serve.fates[NEW] = "DEPLOY_FAILED"
    assert rolled().endswith("; nothing served before, and the failed application was removed")
    assert [len(applications) for applications in serve.given] == [1, 0]


def test_what_an_endpoint_runs_is_written_before_it_starts_and_stays_what_it_was_if_it_fails(
    serve: Serve, tmp_path: Path
) -> None:
    root = Location.parse(str(tmp_path / "store"))
    registry = registry_with(root, tmp_path, "v1", "v2")
    unmeasured: dict[str, Any] = {"evaluation": None, "verdict": None}
    old, new = (Released(f"{registry.folder}/{version}", "demo", version, **unmeasured) for version in ("v1", "v2"))
    roll_out(RESOURCES, root, old, 30.0, "ada")
    assert (registry.deployments(), registry.alias("stable")) == ({"chat": ("v1",)}, "v1")
    serve.fates[new.uri] = "DEPLOY_FAILED"
    serve.while_it_starts = lambda: seen.append(registry.deployments())
    seen: list[Any] = []
    with pytest.raises(ServiceError, match="did not come up"):
        roll_out(RESOURCES, root, new, 30.0, "ada")
    assert seen[0] == {"chat": ("v1", "v2")}
    assert (registry.deployments(), registry.alias("stable")) == ({"chat": ("v1",)}, "v1")
    serve.fates.clear()
    roll_out(RESOURCES, root, new, 30.0, "ada", EndpointSpec(args={"web_page": True}))
    assert (registry.deployments(), registry.alias("stable")) == ({"chat": ("v2",)}, "v2")
    assert serve.applications[0]["args"]["web_page"] is True
    assert [(move.after, move.who) for move in registry.history("stable")] == [("v1", "ada"), ("v2", "ada")]


def test_what_cannot_be_put_back_is_said(serve: Serve) -> None:
    serve.fates |= {NEW: "DEPLOY_FAILED", GOOD: "UNHEALTHY"}
    error = rolled()
    assert "what served before could not be put back (the release did not come up (UNHEALTHY)" in error
    assert error.endswith("look at it with `serve status`")
