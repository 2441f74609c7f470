"""An endpoint is deployed once and waits for releases; settings that do not come up are undone, word for word.

Ray Serve is played by its REST API: what it is given it keeps, and the args decide what becomes of it. The endpoint's
controller is played by writing its stored state.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from releases import registry_with
from warren.cluster import capacity
from warren.cluster.serve import endpoint as serving
from warren.cluster.serve.endpoint_config import FRONT_IMPORT_PATH, EndpointSpec
from warren.cluster.serve.publish_and_deploy import Released, roll_out
from warren.config import Resources
from warren.errors import ReleaseError, ServiceError
from warren.rollout import waiting
from warren.rollout.state_store import RolloutFiles
from warren.storage import Location
from warren.testbed import free_port

RESOURCES = Resources(num_workers=1)
FAILING = 13  # the number of slots with which no endpoint comes up
OTHER = {"name": "other", "route_prefix": "/other", "import_path": "theirs:app"}


class Serve:
    """Keeps what it is given.

    Attributes:
        while_it_starts: Called with each configuration.
        fate_of_failing: What becomes of an endpoint with `FAILING` slots: its status, or `refused`.
        starting: Applications of engines that start.
        given: The applications of every configuration it was sent, also of those it refused.
    """

    def __init__(self, *applications: dict[str, Any]) -> None:
        self.applications = list(applications)
        self.fate_of_failing = "DEPLOY_FAILED"
        self.given: list[list[dict[str, Any]]] = []
        self.starting: list[str] = []
        self.while_it_starts: Callable[[], object] = lambda: None

    def apply(self, config: dict[str, Any]) -> bool:
        self.given.append(config["applications"])
        self.while_it_starts()
        if any(self.fate(each) == "refused" for each in config["applications"]):
            return False
        self.applications = config["applications"]
        return True

    def fate(self, application: dict[str, Any]) -> str:
        return self.fate_of_failing if application.get("args", {}).get("num_slots") == FAILING else "RUNNING"

    def details(self) -> dict[str, Any]:
        applications = {
            each["name"]: {
                "status": self.fate(each),
                "message": "Traceback\nwarren.errors.ConfigError: no such file of keys",
                "source": "declarative",
                "deployed_app_config": each,
            }
            for each in self.applications
        }
        applications |= {name: {"status": "DEPLOYING", "source": "imperative"} for name in self.starting}
        options = {"host": "127.0.0.1", "port": 9000}
        return {"proxy_location": "HeadOnly", "http_options": options, "proxies": {}, "applications": applications}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve with the application `other`, behind the dashboard that `ensure_endpoint` looks for."""
    serve = Serve(OTHER)

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
        monkeypatch.setattr(waiting, "_POLL_S", 0.01)
        monkeypatch.setenv(serving.PORT_VARIABLE, str(free_port()))
        yield serve
        server.shutdown()


@pytest.fixture
def root(tmp_path: Path) -> Location:
    root = Location.parse(str(tmp_path / "store"))
    registry_with(root, tmp_path, "v1", "v2").move("candidate", "v1", None)
    return root


def settle(root: Location, stable: str | None, **refused: str) -> None:
    """Store what the endpoint's controller would."""
    owner = RolloutFiles(root, "demo", "chat").take_over("one")
    owner.save(replace(owner.record.state, stable=stable, refused=refused))


def rolled(
    root: Location, version: str = "v1", keeps_settings: bool = False, timeout_s: float = 5.0, **args: Any
) -> str:
    """Have a version rolled in; return the error, if it fails."""
    unmeasured: dict[str, Any] = {"evaluation": None, "verdict": None}
    released = Released(f"{root}/releases/demo/{version}", "demo", version, **unmeasured)
    try:
        roll_out(RESOURCES, root, released, EndpointSpec(args=args), keeps_settings, timeout_s)
    except (ServiceError, ReleaseError) as error:
        return str(error)
    return ""


def test_an_endpoint_is_deployed_once_and_a_repeat_changes_nothing(serve: Serve, root: Location) -> None:
    serve.while_it_starts = lambda: settle(root, "v1")
    assert rolled(root) == ""
    [[other, chat]] = serve.given
    assert (other, chat["import_path"], chat["args"]["release"]) == (OTHER, FRONT_IMPORT_PATH, f"{root}/releases/demo")
    assert rolled(root) == ""
    assert len(serve.given) == 1
    assert rolled(root, keeps_settings=True, web_page=True) == ""
    assert len(serve.given) == 1, "without an endpoint file, what runs is kept"
    assert rolled(root, web_page=True) == ""
    assert serve.given[1][1]["args"] == {**chat["args"], "web_page": True}


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        (
            "DEPLOY_FAILED",
            "the endpoint did not come up (DEPLOY_FAILED): warren.errors.ConfigError: no such file of keys",
        ),
        ("UNHEALTHY", "the endpoint did not come up (UNHEALTHY): warren.errors.ConfigError: no such file of keys"),
    ],
)
def test_settings_that_do_not_come_up_are_undone(serve: Serve, root: Location, fate: str, reason: str) -> None:
    settle(root, "v1")
    serve.fate_of_failing = fate
    assert rolled(root, num_slots=FAILING) == f"{reason}; there was none before, so it was removed"
    assert serve.applications == [OTHER]
    assert rolled(root) == ""
    former = serve.applications
    assert rolled(root, num_slots=FAILING) == f"{reason}; it was undone, and the endpoint keeps its former settings"
    assert serve.applications == former


def test_a_configuration_that_serve_refuses_changes_nothing(serve: Serve, root: Location) -> None:
    serve.fate_of_failing = "refused"
    assert "Ray Serve refused the configuration" in rolled(root, num_slots=FAILING)
    assert serve.applications == [OTHER]


def test_a_release_that_was_undone_fails_with_the_reason_and_the_endpoint_stays(serve: Serve, root: Location) -> None:
    serve.while_it_starts = lambda: settle(root, None, v1="its weights are not weights")
    error = rolled(root)
    assert error.startswith("v1 was undone, nothing serves yet: its weights are not weights")
    assert "python jobs/rollout.py retry demo --endpoint chat --version v1" in error
    assert [each["name"] for each in serve.applications] == ["other", "chat"], "it waits for the next release"


def test_waiting_ends_when_another_release_became_the_candidate(serve: Serve, root: Location) -> None:
    settle(root, "v0")
    assert rolled(root, "v2") == "v2 will not serve: another job made v1 the candidate"
    settle(root, "v0")
    assert "v1 does not serve after 0.05 s, v0 serves; the endpoint goes on with it" in rolled(root, timeout_s=0.05)


def test_a_candidate_that_does_not_fit_says_what_it_waits_for(
    serve: Serve, root: Location, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settle(root, "v0")
    serve.starting = ["chat-engine-v1"]
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(capacity.ray, "available_resources", lambda: {"CPU": 3.0})
    assert "v1 does not serve after 0.1 s, v0 serves" in rolled(root, timeout_s=0.1, num_gpus=1.0)
    line = (
        "rollout: v1 is waiting for 1 engine replicas of 1 CPUs and 1 GPUs; "
        "the cluster has 4 CPUs (3 of them free) and 1 GPUs (0 of them free)"
    )
    assert capsys.readouterr().err.splitlines().count(line) == 1, "once"
    assert rolled(root, timeout_s=0.1, num_cpus=2.0) != ""
    assert "waiting for" not in capsys.readouterr().err


def test_what_cannot_be_put_back_is_said(serve: Serve, root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(root, "v1")
    assert rolled(root) == ""
    serve.applications[1]["args"]["num_slots"] = FAILING  # it fails by now, whatever its settings are
    error = rolled(root, num_slots=FAILING, web_page=True)
    assert "what ran before could not be put back (chat did not come up (DEPLOY_FAILED)" in error
    assert error.endswith("look at it with `serve status`")
