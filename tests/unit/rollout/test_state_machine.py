"""The rules of a rollout in a simulated Serve: whatever happens, weights are safe and it ends with one version."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warren.config import RolloutPolicy
from warren.rollout.state_machine import (
    DeleteEngine,
    EngineStatus,
    EngineView,
    Judgement,
    MoveStable,
    Observation,
    RolloutAction,
    RolloutCommand,
    RolloutState,
    StartEngine,
    advance,
    plan,
    taken_over,
    weights,
)

POLICY = RolloutPolicy(
    steps=(0.1, 1.0), step_s=2, max_step_s=4, start_timeout_s=20, total_timeout_s=100, drain_s=1, unready_timeout_s=5
)
GOOD = Judgement(True)
TICK_S = 1.0
ENDS_WITHIN = 400  # ticks; the policy's limits are below that


class KilledError(Exception):
    """The controller dies here."""


@dataclass
class World:
    """A Serve instance, a registry and a store, as one controller sees them."""

    aliases: dict[str, str | None] = field(default_factory=lambda: {"stable": "v1", "candidate": "v1"})
    engines: dict[str, EngineStatus] = field(default_factory=dict)
    stored: RolloutState = field(default_factory=RolloutState)
    command: RolloutCommand | None = None
    does_not_load: set[str] = field(default_factory=set)
    answers_garbage: set[str] = field(default_factory=set)
    is_slow: set[str] = field(default_factory=set)
    kill_in: int | None = None
    now_s: float = 0.0
    began_s: float = 0.0
    ready_s: float = 0.0

    def tick(self) -> None:
        """Let Serve and then the controller do one step. A controller that was killed starts again from the store."""
        self.now_s += TICK_S
        self._serve()
        try:
            self._control()
        except KilledError:
            self.stored = taken_over(self.stored)
            self.began_s = self.ready_s = self.now_s

    def run_until(self, is_reached: Callable[["World"], bool]) -> None:
        for _ in range(ENDS_WITHIN):
            if is_reached(self):
                return
            self.tick()
        raise AssertionError(f"it stands still in {self.stored}")

    @property
    def is_settled(self) -> bool:
        state, running = self.stored, {v for v, status in self.engines.items() if status != "absent"}
        return state.phase == "idle" and running == {state.stable} and self.engines[str(state.stable)] == "ready"

    def see(self) -> Observation:
        state = self.stored
        candidate = state.candidate or ""
        if self.engines.get(candidate) == "ready":
            self.ready_s = self.now_s
        return Observation(
            since_s=self.now_s - self.began_s,
            unready_s=self.now_s - self.ready_s,
            stable_alias=self.aliases["stable"],
            candidate_alias=self.aliases["candidate"],
            engines={version: EngineView(status) for version, status in self.engines.items()},
            verification=GOOD,
            answers=Judgement(candidate not in self.answers_garbage, "garbage"),
            judgement=Judgement(candidate not in self.is_slow, "slow"),
            command=self.command,
        )

    def _serve(self) -> None:
        """Engines start, fail, and go away, one state a tick."""
        for version, status in self.engines.items():
            if status == "starting":
                self.engines[version] = "failed" if version in self.does_not_load else "ready"
            if status == "deleting":
                self.engines[version] = "absent"

    def _control(self) -> None:
        seen = self.see()
        state = advance(self.stored, seen, POLICY)
        if state != self.stored:
            if state.moment != self.stored.moment:
                self.began_s = self.now_s
            self.stored = state
            self._maybe_die()
        planned = plan(state, replace(seen, since_s=self.now_s - self.began_s), POLICY)
        self._check_weights(planned.weights)
        for action in planned.actions:
            self._do(action)
            self._maybe_die()

    def _do(self, action: RolloutAction) -> None:
        if isinstance(action, StartEngine) and self.engines.get(action.version, "absent") == "absent":
            self.engines[action.version] = "starting"
        elif isinstance(action, DeleteEngine) and action.version in self.engines:
            self.engines[action.version] = "deleting"
        elif isinstance(action, MoveStable) and self.aliases["stable"] == action.expected:
            assert self.engines[action.version] == "ready", "only what serves becomes stable"
            self.aliases["stable"] = action.version

    def _check_weights(self, found: object) -> None:
        assert isinstance(found, dict)
        assert not found or sum(found.values()) == pytest.approx(1.0)
        assert all(self.engines[version] in ("ready", "unhealthy") for version in found)
        assert not found or found.keys() <= {self.stored.stable, self.stored.candidate}

    def _maybe_die(self) -> None:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise KilledError


def serving() -> World:
    world = World()
    world.run_until(lambda one: one.is_settled)
    return world


def roll(world: World, version: str) -> None:
    world.aliases["candidate"] = version
    world.tick()
    world.run_until(lambda one: one.is_settled)


def test_a_good_release_takes_over() -> None:
    world = serving()
    roll(world, "v2")
    assert (world.stored.stable, world.aliases["stable"], world.stored.refused) == ("v2", "v2", {})


@pytest.mark.parametrize(
    ("fault", "reason"), [("does_not_load", "did not start"), ("answers_garbage", "garbage"), ("is_slow", "slow")]
)
def test_a_bad_release_is_undone_and_not_tried_again(fault: str, reason: str) -> None:
    world = serving()
    getattr(world, fault).add("v2")
    roll(world, "v2")
    assert (world.stored.stable, world.aliases["stable"]) == ("v1", "v1")
    assert reason in world.stored.refused["v2"]
    before = world.stored
    for _ in range(20):
        world.tick()
    assert world.stored == before

    getattr(world, fault).clear()
    world.command = RolloutCommand(1, "retry", "v2")
    roll(world, "v2")
    assert (world.stored.stable, dict(world.stored.refused)) == ("v2", {})


@pytest.mark.parametrize("kill_in", range(12))
@pytest.mark.parametrize("is_bad", [False, True])
def test_a_controller_killed_between_any_two_actions_ends_the_same(kill_in: int, is_bad: bool) -> None:
    world = serving()
    if is_bad:
        world.is_slow.add("v2")
    world.kill_in = kill_in
    roll(world, "v2")
    assert world.stored.stable == world.aliases["stable"] == ("v1" if is_bad else "v2")


def test_the_first_release_is_taken_without_anything_to_compare_it_with_but_not_if_it_is_bad() -> None:
    world = World(aliases={"stable": None, "candidate": "v1"}, answers_garbage={"v1"})
    world.run_until(lambda one: "v1" in one.stored.refused)
    assert not world.see().engine("v1").is_up
    assert world.stored.stable is None
    roll(world, "v2")
    assert world.stored.stable == world.aliases["stable"] == "v2"


def test_a_pause_holds_and_an_abort_undoes() -> None:
    world = serving()
    world.aliases["candidate"] = "v2"
    world.run_until(lambda one: one.stored.phase == "shifting")
    world.command = RolloutCommand(1, "pause")
    for _ in range(300):  # longer than the whole rollout may take
        world.tick()
    assert (world.stored.phase, world.stored.step, world.stored.is_paused) == ("shifting", 0, True)
    world.command = RolloutCommand(2, "abort", by="ann", reason="not today")
    world.run_until(lambda one: one.is_settled)
    assert world.stored.refused == {"v2": "aborted by ann: not today"}
    world.command = RolloutCommand(3, "resume")
    world.tick()
    roll(world, "v3")
    assert world.stored.stable == "v3"


def test_an_alias_that_somebody_else_moves_goes_before() -> None:
    world = serving()
    world.aliases["candidate"] = "v2"
    world.run_until(lambda one: one.stored.phase == "shifting")
    world.aliases["stable"] = "v9"
    world.run_until(lambda one: one.is_settled and one.stored.stable == "v9")
    assert world.stored.refused == {"v2": "somebody else moved the alias 'stable' to v9"}
    assert world.aliases["stable"] == "v9"


def test_a_candidate_whose_engines_go_away_gets_no_traffic_and_is_undone_if_they_stay_away() -> None:
    world = serving()
    world.aliases["candidate"] = "v2"
    world.run_until(lambda one: one.stored.phase == "shifting")
    world.engines["v2"] = "unhealthy"
    assert weights(world.stored, world.see(), POLICY) == {"v1": 1.0}
    world.run_until(lambda one: one.is_settled)
    assert "away too long" in world.stored.refused["v2"]


def test_a_candidate_whose_engine_dies_once_goes_on_and_one_whose_engines_die_again_and_again_is_undone() -> None:
    for num_deaths in (1, 2, 3):
        world = serving()
        world.aliases["candidate"] = "v2"
        world.run_until(lambda one: one.stored.phase == "shifting")
        world.command = RolloutCommand(1, "pause")  # so that the steps wait for the deaths
        world.tick()
        for number in range(num_deaths):
            world.engines["v2"] = "unhealthy"
            world.kill_in = 1 if number == 1 else None  # it is counted, also if another controller goes on
            world.tick()
            world.engines["v2"] = "ready"
            world.tick()
        world.command = RolloutCommand(2, "resume")
        world.run_until(lambda one: one.is_settled)
        assert world.stored.stable == ("v2" if num_deaths <= POLICY.max_engine_losses else "v1")
    assert world.stored.refused["v2"] == "its engines died 3 times"


def test_a_candidate_whose_engines_are_gone_does_not_become_stable() -> None:
    state = RolloutState("finishing", stable="v1", candidate="v2", expected_alias="v1")
    for status, phase in (("ready", "finishing"), ("unhealthy", "finishing"), ("absent", "starting")):
        engines = {"v1": EngineView("ready"), "v2": EngineView(status)}  # type: ignore[arg-type]
        seen = Observation(stable_alias="v1", engines=engines)
        moves = [action for action in plan(state, seen, POLICY).actions if isinstance(action, MoveStable)]
        assert moves == ([MoveStable("v2", "v1")] if status == "ready" else [])
        assert advance(state, seen, POLICY).phase == phase
        assert weights(state, seen, POLICY) == ({"v2": 1.0} if status == "ready" else {"v1": 1.0})
    away = replace(seen, unready_s=POLICY.unready_timeout_s + 1)
    assert advance(state, away, POLICY).reason.startswith("its engines were away too long")


def test_too_little_traffic_ends_a_step_in_the_end() -> None:
    state = RolloutState("shifting", stable="v1", candidate="v2", expected_alias="v1")
    seen = Observation(since_s=POLICY.step_s, stable_alias="v1", engines={"v2": EngineView("ready")})
    assert advance(state, seen, POLICY) == state
    later = advance(state, replace(seen, since_s=POLICY.max_step_s), POLICY)
    assert (later.phase, later.step, later.spent_s) == ("shifting", 1, POLICY.max_step_s)


def test_a_controller_that_starts_again_and_again_and_a_rollout_that_lasts_too_long_are_undone() -> None:
    state = RolloutState("shifting", stable="v1", candidate="v2", expected_alias="v1")
    seen = Observation(stable_alias="v1", engines={"v2": EngineView("ready")})
    for _ in range(POLICY.max_restarts):
        state = taken_over(state)
    assert advance(state, seen, POLICY).phase == "shifting"
    assert "in the middle" in advance(taken_over(state), seen, POLICY).reason
    old = replace(state, restarts=0, spent_s=POLICY.total_timeout_s)
    assert "took more than" in advance(old, replace(seen, since_s=1.0), POLICY).reason


EVENTS = st.sampled_from(
    ["tick", "tick", "tick", "kill", "kill later", "v2", "v3", "move", "fail", "unhealthy", "lose", "crash",
     "pause", "resume", "abort", "retry", "slow", "garbage", "broken"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_it_ends_idle_with_one_version_that_serves(events: list[str]) -> None:
    world = serving()
    for number, event in enumerate(events, start=1):
        disturb(world, event, number)
        world.tick()
    # From here on nothing else happens, and Serve has replaced the unhealthy replicas of the release that serves.
    world.kill_in = None
    if world.engines.get(str(world.stored.stable)) == "unhealthy":
        world.engines[str(world.stored.stable)] = "ready"
    world.command = RolloutCommand(len(events) + 1, "resume")
    world.does_not_load.discard(str(world.stored.stable))
    world.does_not_load.discard(str(world.aliases["stable"]))
    world.tick()
    world.run_until(lambda one: one.is_settled)
    for _ in range(60):
        world.tick()
    world.run_until(lambda one: one.is_settled)
    stable = world.stored.stable
    assert world.aliases["stable"] == stable or world.aliases["stable"] in world.stored.refused
    assert world.aliases["candidate"] == stable or world.aliases["candidate"] in world.stored.refused


def disturb(world: World, event: str, number: int) -> None:
    candidate = world.stored.candidate or "v2"
    if event in ("v2", "v3"):
        world.aliases["candidate"] = event
    elif event in ("pause", "resume", "abort", "retry"):
        world.command = RolloutCommand(number, event)  # type: ignore[arg-type]
    elif event in ("kill", "kill later"):
        world.kill_in = 0 if event == "kill" else 2
    elif event == "move":
        world.aliases["stable"] = "v4"
    elif event in ("fail", "unhealthy") and world.engines.get(candidate) == "ready":
        world.engines[candidate] = "failed" if event == "fail" else "unhealthy"
    elif event == "crash" and world.engines.get(str(world.stored.stable)) == "ready":
        world.engines[str(world.stored.stable)] = "failed"
    elif event == "lose":  # the whole cluster
        world.engines = {}
    elif event in ("slow", "garbage", "broken"):
        {"slow": world.is_slow, "garbage": world.answers_garbage, "broken": world.does_not_load}[event].add("v3")
