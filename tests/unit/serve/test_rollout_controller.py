"""The rollout controller over real storage, with engines that only pretend: what it does and what it writes."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from warren.config import RolloutPolicy
from warren.release import Lineage, move_alias, publish, read_alias, read_deployment
from warren.rollout.answer_checks import Reply, SanityQuestion
from warren.rollout.state_machine import EngineView
from warren.rollout.state_store import RolloutFiles, SupersededError
from warren.rollout.traffic_analysis import AnswerRecord
from warren.storage import FileEntry, Location, StoredFiles, digest_file
from warren_serve.release_checks import verify
from warren_serve.rollout_controller import RolloutController
from warren_serve.routing import IngressReport, RoutingTable

NAME, ENDPOINT = "tiny", "chat"
POLICY = RolloutPolicy(steps=(0.5, 1.0), step_s=1.0, max_step_s=60.0, min_requests=5, drain_s=1.0, poll_s=0.1)


class PretendedEngines:
    """Engines that are ready, or gone, at the next look."""

    def __init__(self) -> None:
        self.running: dict[str, EngineView] = {}
        self.fails: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.started: list[tuple[str, str | None, float]] = []

    def views(self) -> dict[str, EngineView]:
        return dict(self.running)

    def start(self, version: str, beside: str | None, fraction: float) -> None:
        self.started.append((version, beside, fraction))
        self.running[version] = (
            EngineView("failed", self.fails[version]) if version in self.fails else EngineView("ready")
        )

    def delete(self, version: str) -> None:
        self.running.pop(version, None)

    def ask(self, version: str, questions: Sequence[SanityQuestion]) -> list[Reply]:
        return [Reply(self.texts.get(version, "a fine answer")) for _ in questions]

    def application(self, version: str) -> str:
        return f"{ENDPOINT}-engine-{version}"


class Bench:
    """A controller, its storage, its clock, and one ingress replica."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, Location.parse(str(folder / "store"))
        self.engines, self.now_s = PretendedEngines(), 0.0
        self.files = RolloutFiles(self.root, NAME, ENDPOINT)
        self.failures: dict[str, str] = {}
        self.bad: set[str] = set()
        self.table = RoutingTable()
        self.controller = self.another("first")

    def another(self, owner: str) -> RolloutController:
        return RolloutController(self.root, NAME, ENDPOINT, POLICY, self.engines, owner, lambda: self.now_s)

    def publish(self, version: str) -> Location:
        path = self.folder / "model" / "weights.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
        files = StoredFiles(Location.parse(str(path.parent)), (FileEntry(path.name, *digest_file(path)),))
        return publish(self.root, NAME, version, files, Lineage(), {})

    def name(self, version: str, alias: Any = "candidate") -> None:
        self.publish(version)
        move_alias(self.root, NAME, alias, version, read_alias(self.root, NAME, alias))

    def turn(self, num_turns: int = 1) -> None:
        """Let time pass, with a few requests for every release that has traffic."""
        for _ in range(num_turns):
            self.now_s += 0.5
            table = self.controller.exchange(IngressReport("one", frozenset(), self.failures)) or self.table
            self.table = table
            records = [
                AnswerRecord(version, first_token_s=0.1, num_chars=9, is_empty=version in self.bad)
                for version in table.weights
                for _ in range(5)
            ]
            loaded = frozenset(table.applications) - self.failures.keys()
            self.controller.exchange(IngressReport("one", loaded, self.failures, tuple(records), table.name))
            self.controller.tick()
            asking = self.controller._asking
            if asking and asking.thread:
                asking.thread.join()

    def settle(self) -> None:
        self.turn(3)
        for _ in range(60):
            if self.controller.state.phase == "idle" and set(self.engines.running) <= {self.controller.state.stable}:
                return
            self.turn()
        raise AssertionError(self.controller.status())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.name("v1")
    bench.settle()
    assert bench.controller.status()["weights"] == {"v1": 1.0}
    return bench


def test_a_good_release_rolls_in_step_by_step(bench: Bench) -> None:
    assert read_alias(bench.root, NAME, "stable") == "v1"
    bench.name("v2")
    seen = set()
    while bench.controller.state.stable != "v2":
        bench.turn()
        seen.add(tuple(sorted(bench.controller.status()["weights"].items())))
    bench.settle()
    assert seen == {(("v1", 1.0),), (("v1", 0.5), ("v2", 0.5)), (("v2", 1.0),)}
    assert (read_alias(bench.root, NAME, "stable"), set(bench.engines.running)) == ("v2", {"v2"})
    assert ("v2", "v1", 0.5) in bench.engines.started, "it starts with the replicas that half of the traffic needs"
    events = [event["phase"] for event in bench.files.read().events if event["version"] == "v2"]
    assert events == ["verifying", "starting", "shifting", "shifting", "finishing", "finishing", "idle"]


def test_every_kind_of_bad_release_is_undone_with_its_reason(bench: Bench) -> None:
    engines = bench.engines
    engines.fails["broken"] = "weights.bin differs from what was published"
    engines.texts["garbage"] = "la " * 40
    bench.bad.add("silent")
    bench.failures["odd"] = "its tokenizer is none"
    expected = {
        "broken": "weights.bin differs from what was published",
        "garbage": "4 of 4 answers are empty or repeat themselves (0 of the serving release's)",
        "silent": "answers were empty",
        "odd": "an ingress replica cannot load it: its tokenizer is none",
    }
    for version, reason in expected.items():
        bench.name(version)
        bench.settle()
        assert reason in bench.controller.state.refused[version]
        assert (bench.controller.state.stable, read_alias(bench.root, NAME, "stable")) == ("v1", "v1")
        assert set(engines.running) == {"v1"}
    engines.texts.clear()
    bench.name("garbage")
    bench.settle()
    assert bench.controller.state.stable == "v1", "it is not tried again"
    bench.files.send("retry", "garbage")
    bench.settle()
    assert bench.controller.state.stable == "garbage"


def test_a_release_whose_files_changed_is_not_even_started(bench: Bench) -> None:
    folder = bench.publish("v2")
    weights = Path((folder / "weights.bin").key)
    weights.write_bytes(b"other weights")
    assert "has 13 bytes, the manifest says 7" in verify(bench.root, NAME, "v2").reason
    bench.engines.started.clear()
    move_alias(bench.root, NAME, "candidate", "v2", "v1")
    bench.settle()
    assert "has 13 bytes" in bench.controller.state.refused["v2"]
    weights.unlink()
    assert "is missing" in verify(bench.root, NAME, "v2").reason
    (folder / "release.json").put_bytes(b"{}")
    assert not verify(bench.root, NAME, "v2").is_good
    assert bench.engines.started == []


def test_a_release_that_the_gate_refused_is_not_taken_unless_somebody_said_so(bench: Bench) -> None:
    folder = bench.publish("v2")
    checks = [{"name": "min_score", "passed": False, "reason": "0.1 is too little"}]
    (folder / "verdict.json").put_json({"passed": False, "checks": checks, "override": None})
    move_alias(bench.root, NAME, "candidate", "v2", "v1")
    bench.turn(10)
    assert bench.controller.state.phase == "idle"
    assert bench.controller.status()["gate_refusal"] == "the gate refused v2: 0.1 is too little"
    (folder / "verdict.json").put_json({"passed": False, "checks": checks, "override": {"who": "ann", "why": "so"}})
    bench.settle()
    assert bench.controller.state.stable == "v2"


def test_another_controller_goes_on_where_the_first_one_was_and_the_first_one_stops(bench: Bench) -> None:
    bench.name("v2")
    while bench.controller.state.phase != "shifting":
        bench.turn()
    first, bench.controller = bench.controller, bench.another("second")
    assert bench.controller.state.phase == "shifting"
    assert bench.controller.exchange(IngressReport("one")) is None, "it has not looked yet, so the weights stay"
    bench.now_s += 1
    with pytest.raises(SupersededError, match=r"'second' .* has taken over"):
        first.tick()
    bench.settle()
    assert (bench.controller.state.stable, bench.files.read().epoch) == ("v2", 2)


def test_the_releases_that_an_endpoint_runs_are_named_before_they_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked, start = [], bench.engines.start

    def observed(version: str, beside: str | None, fraction: float) -> None:
        marked.append(read_deployment(bench.root, NAME, ENDPOINT))
        start(version, beside, fraction)

    monkeypatch.setattr(bench.engines, "start", observed)
    assert read_deployment(bench.root, NAME, ENDPOINT) == ("v1",)
    bench.name("v2")
    bench.settle()
    bench.turn(4)
    assert marked == [("v1", "v2")]
    assert read_deployment(bench.root, NAME, ENDPOINT) == ("v2",)


def test_a_lost_cluster_starts_from_the_registry(bench: Bench) -> None:
    bench.engines.running.clear()
    bench.publish("v0")
    move_alias(bench.root, NAME, "stable", "v0", "v1")
    bench.controller = bench.another("second")
    bench.turn(2)
    assert set(bench.engines.running) == {"v0"}
    assert bench.controller.status()["weights"] == {"v0": 1.0}


def test_engines_stay_until_every_ingress_replica_has_learnt_that_they_get_nothing(bench: Bench) -> None:
    """Two ingress replicas, of which one is late: it still sends requests by the weights of the last step."""
    bench.name("v2")
    while bench.controller.state.stable != "v2":
        bench.turn()
        bench.controller.exchange(IngressReport("late", frozenset({"v1", "v2"}), table=bench.table.name))
    late_by = bench.table.name
    for _ in range(20):
        bench.turn()
        bench.controller.exchange(IngressReport("late", frozenset({"v1", "v2"}), table=late_by))
    assert set(bench.engines.running) == {"v1", "v2"}
    assert bench.controller.status()["ingress_agrees"] is False
    bench.controller.exchange(IngressReport("late", frozenset({"v1", "v2"}), table=bench.table.name))
    bench.turn(2)
    assert set(bench.engines.running) == {"v2"}
    bench.turn()
    bench.controller.exchange(IngressReport("late", frozenset({"v2"}), table=bench.table.name))
    assert bench.controller.status()["ingress_agrees"] is True


def test_an_ingress_replica_that_is_gone_holds_nothing_up(bench: Bench) -> None:
    bench.controller.exchange(IngressReport("gone", frozenset(), table="another"))
    bench.name("v2")
    bench.settle()
    assert set(bench.engines.running) == {"v2"}


def until(bench: Bench, phase: str) -> None:
    while bench.controller.state.phase != phase:
        bench.turn()


def test_files_that_change_while_a_release_rolls_in_undo_it(bench: Bench) -> None:
    for version, change, reason in (
        ("v2", lambda folder: Path((folder / "weights.bin").key).write_bytes(b"other weights"), "has 13 bytes"),
        ("v3", lambda folder: Path((folder / "weights.bin").key).unlink(), "is missing"),
        ("v4", lambda folder: (folder / "release.json").put_bytes((folder / "release.json").read_bytes() + b" "),
         "its release.json has changed since its engines started"),
    ):  # fmt: skip
        bench.name(version)
        until(bench, "shifting")
        change(bench.root / "releases" / NAME / version)
        bench.settle()
        assert reason in bench.controller.state.refused[version]
        assert (bench.controller.state.stable, read_alias(bench.root, NAME, "stable")) == ("v1", "v1")


def test_a_clock_that_jumps_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter([4e9, 0.0, 2e9, 1.0] * 100)
    monkeypatch.setattr("time.time", lambda: next(jumps))
    bench.name("v2")
    bench.settle()
    assert bench.controller.state.stable == "v2"
    events = [event["phase"] for event in bench.files.read().events if event["version"] == "v2"]
    assert events == ["verifying", "starting", "shifting", "shifting", "finishing", "finishing", "idle"]


def test_of_two_live_controllers_the_older_one_stops_by_itself_and_says_so(bench: Bench) -> None:
    first = bench.controller
    thread = threading.Thread(target=first.run)
    thread.start()
    bench.controller = bench.another("second")
    bench.now_s += 10
    thread.join(20)
    assert not thread.is_alive()
    assert "the controller 'second' (epoch 2) has taken over this endpoint" in first.status()["superseded"]
    table = first.exchange(IngressReport("one"))
    assert table is not None
    assert table.weights == {"v1": 1.0}, "its ingress goes on as before"
    bench.name("v2")
    bench.settle()
    assert first.state.stable == "v1"
    assert bench.controller.state.stable == "v2"
