"""The rules of a rollout, as pure functions: no clock, no storage, no Ray.

    idle → verifying → starting → shifting (step 0, 1, …) → finishing → idle
              ╰──────────┴──────────────┴──────────────────────┴──────→ rolling_back → idle

`advance` says which state follows from what is seen. `plan` says what must be done in a state: which engines are to
run, where traffic goes, and whether the alias `stable` moves. What is to be done follows from the state and not from
the way there, so a controller that was killed between any two actions finds the same ones still to be done.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from warren.config.rollout import RolloutPolicy

Phase = Literal["idle", "verifying", "starting", "shifting", "finishing", "rolling_back"]
EngineStatus = Literal["absent", "starting", "ready", "unhealthy", "failed", "deleting"]
CommandAction = Literal["pause", "resume", "abort", "retry"]
_ABORTABLE: tuple[Phase, ...] = ("verifying", "starting", "shifting")
_MAX_REFUSED = 100


@dataclass(frozen=True)
class RolloutState:
    """Where a rollout stands; stored after every change.

    Attributes:
        stable: The version that serves; None before the first.
        candidate: The version that rolls in; None if none does.
        step: Index into the policy's steps, while shifting.
        reason: Why the last rollout was undone, or what the present state is about.
        expected_alias: What the alias `stable` named when the rollout began.
        is_paused: Whether a person holds it. Going back is never held.
        refused: Versions that were undone and are not tried again, with the reasons.
        handled_command: Number of the last command that was obeyed.
        spent_s: Time that the rollout has taken up to this phase or step, pauses left out.
        restarts: How often a controller took over in the middle of this rollout.
        is_away: Whether an engine of the candidate has died and was not replaced yet.
        losses: How often one died in this rollout.
    """

    phase: Phase = "idle"
    stable: str | None = None
    candidate: str | None = None
    step: int = 0
    reason: str = ""
    expected_alias: str | None = None
    is_paused: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    handled_command: int = 0
    spent_s: float = 0.0
    restarts: int = 0
    is_away: bool = False
    losses: int = 0

    @property
    def moment(self) -> tuple[Phase, int, str | None, bool]:
        """What the controller's clock counts from: it starts again when this changes."""
        return self.phase, self.step, self.candidate, self.is_paused


@dataclass(frozen=True)
class EngineView:
    """What Serve says of one version's engines."""

    status: EngineStatus = "absent"
    detail: str = ""

    @property
    def is_up(self) -> bool:
        """Whether requests can be sent there; some replicas of an unhealthy application still answer."""
        return self.status in ("ready", "unhealthy")


@dataclass(frozen=True)
class Judgement:
    """Whether a candidate is good enough, with the reason if it is not."""

    is_good: bool
    reason: str = ""


@dataclass(frozen=True)
class RolloutCommand:
    """What a person asks of the controller.

    Attributes:
        number: Ascending; a command is obeyed once.
        version: For `retry`: the version that may be tried again; None is every refused one.
    """

    number: int
    action: CommandAction
    version: str | None = None
    by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Observation:
    """What the controller sees, between two changes of the state.

    Attributes:
        since_s: Time since the state's `moment` changed, by a monotonic clock.
        unready_s: Time since the candidate's engines were last ready, by the same clock.
        stable_alias: The version that the alias `stable` names.
        candidate_alias: The version that the alias `candidate` names.
        gate_refusal: Why the stored verdict of the gate refuses that version; empty if it does not.
        engines: What Serve says, by version; versions that it does not know may be left out.
        verification: Of the candidate's manifest and files; None while it is not known.
        answers: Of the candidate's answers to the sanity questions; None while they are not known.
        judgement: Of the candidate's traffic in this step; None while there is too little.
        promotion_error: Why the alias could not be moved although nobody else moved it; empty if it could.
        command: The last command that a person gave.
        is_agreed: Whether every ingress replica follows the weights in force.
    """

    since_s: float = 0.0
    unready_s: float = 0.0
    stable_alias: str | None = None
    candidate_alias: str | None = None
    gate_refusal: str = ""
    engines: Mapping[str, EngineView] = field(default_factory=dict)
    verification: Judgement | None = None
    answers: Judgement | None = None
    judgement: Judgement | None = None
    promotion_error: str = ""
    command: RolloutCommand | None = None
    is_agreed: bool = True

    def engine(self, version: str | None) -> EngineView:
        """Return what Serve says of a version's engines."""
        return self.engines.get(version or "", EngineView())


@dataclass(frozen=True)
class StartEngine:
    """Start a version's engines, beside all others."""

    version: str


@dataclass(frozen=True)
class DeleteEngine:
    """Remove a version's engines; their running answers end first."""

    version: str


@dataclass(frozen=True)
class MoveStable:
    """Point the alias `stable` at a version, if it still names the expected one."""

    version: str
    expected: str | None


RolloutAction = StartEngine | DeleteEngine | MoveStable


@dataclass(frozen=True)
class RolloutPlan:
    """What has to be done in a state.

    Attributes:
        weights: Fractions of the traffic by version. They sum to 1, or there are none because no engine is up.
        actions: Each may be done twice without harm.
    """

    weights: Mapping[str, float]
    actions: tuple[RolloutAction, ...]


def advance(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    """Return the state that follows; the same one if nothing changes."""
    obeyed = _obey(state, seen)
    if obeyed.moment != state.moment:
        return obeyed
    if obeyed.phase in _ABORTABLE and not obeyed.is_paused:
        if obeyed.spent_s + seen.since_s > policy.total_timeout_s:
            return _back(obeyed, seen, f"it took more than {policy.total_timeout_s:g} s")
        if obeyed.restarts > policy.max_restarts:
            return _back(obeyed, seen, f"the controller started {obeyed.restarts} times in the middle of it")
    if obeyed.phase in _ABORTABLE and not _is_ours(obeyed, seen):
        return _back(obeyed, seen, _moved_by_others(seen))
    return _RULES[obeyed.phase](obeyed, seen, policy)


def taken_over(state: RolloutState) -> RolloutState:
    """Return the state with which a new controller goes on."""
    return state if state.phase == "idle" else replace(state, restarts=state.restarts + 1)


def plan(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutPlan:
    """Return where traffic goes in a state, and what is still to be done."""
    needed = {state.stable} | ({state.candidate} if state.phase in ("starting", "shifting", "finishing") else set())
    actions: list[RolloutAction] = []
    for version in sorted(version for version in needed if version):
        status = seen.engine(version).status
        if status == "absent":
            actions.append(StartEngine(version))
        elif status == "failed" and version == state.stable:
            actions.append(DeleteEngine(version))  # once it is gone, it is started again
    for version in sorted(set(seen.engines) - needed):
        if _may_be_deleted(version, seen, policy):
            actions.append(DeleteEngine(version))
    # The alias moves only while the candidate can answer, so a reader of it never finds a release that cannot serve.
    is_promoted = state.phase == "finishing" and seen.engine(state.candidate).status == "ready"
    if is_promoted and state.candidate and seen.stable_alias == state.expected_alias != state.candidate:
        actions.append(MoveStable(state.candidate, state.expected_alias))
    return RolloutPlan(weights(state, seen, policy), tuple(actions))


def weights(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> dict[str, float]:
    """Return the fractions of the traffic: none for an engine that is not up, and 1 altogether."""
    stable, candidate = seen.engine(state.stable), seen.engine(state.candidate)
    share = _share(state, policy) if candidate.status == "ready" else 0.0
    if share and not stable.is_up:
        share = 1.0
    split = {state.candidate: share, state.stable: 1.0 - share if stable.is_up else 0.0}
    return {version: weight for version, weight in split.items() if version and weight > 0}


def _share(state: RolloutState, policy: RolloutPolicy) -> float:
    """Return the candidate's fraction if all engines are up."""
    if state.phase == "finishing":
        return 1.0
    return policy.steps[min(state.step, len(policy.steps) - 1)] if state.phase == "shifting" else 0.0


def _may_be_deleted(version: str, seen: Observation, policy: RolloutPolicy) -> bool:
    status = seen.engine(version).status
    # Answers that run on these engines may end first, and no ingress may still send requests there.
    return status not in ("absent", "deleting") and seen.since_s >= policy.drain_s and seen.is_agreed


def _obey(state: RolloutState, seen: Observation) -> RolloutState:
    command = seen.command
    if command is None or command.number <= state.handled_command:
        return state
    state = replace(state, handled_command=command.number)
    if command.action in ("pause", "resume"):
        return _moved(state, seen, is_paused=command.action == "pause")
    if command.action == "abort" and state.phase in _ABORTABLE:
        return _back(state, seen, f"aborted by {command.by or 'somebody'}: {command.reason or 'no reason was given'}")
    if command.action == "retry":
        kept = {v: why for v, why in state.refused.items() if command.version not in (None, v)}
        return replace(state, refused=kept)
    return state


def _moved(
    state: RolloutState,
    seen: Observation,
    phase: Phase | None = None,
    step: int = 0,
    reason: str | None = None,
    is_paused: bool | None = None,
) -> RolloutState:
    """Return the state in another phase, step or pause; the time spent so far is added up."""
    moved = replace(
        state,
        phase=phase or state.phase,
        step=step if phase else state.step,
        reason=state.reason if reason is None else reason,
        is_paused=state.is_paused if is_paused is None else is_paused,
    )
    # Time in a pause is not counted: a person may hold a rollout for as long as they like.
    if moved.moment == state.moment or state.is_paused:
        return moved
    return replace(moved, spent_s=state.spent_s + seen.since_s)


def _back(state: RolloutState, seen: Observation, reason: str) -> RolloutState:
    return _moved(state, seen, "rolling_back", reason=reason)


def _is_ours(state: RolloutState, seen: Observation) -> bool:
    """Whether the alias `stable` is where the rollout found it, or already where it goes."""
    return seen.stable_alias in (state.expected_alias, state.candidate)


def _moved_by_others(seen: Observation) -> str:
    return f"somebody else moved the alias 'stable' to {seen.stable_alias}"


def _idle(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    named = seen.stable_alias
    if named != state.stable and named is not None and named not in state.refused:
        if state.stable is None or seen.engine(state.stable).status == "absent":
            return replace(state, stable=named, reason="")  # nothing serves, so nothing has to be shifted
        return state if state.is_paused else _begun(state, seen, named)
    version = seen.candidate_alias
    if version in (None, state.stable) or version in state.refused or seen.gate_refusal or state.is_paused:
        return state
    if state.stable is not None and not seen.engine(state.stable).is_up:
        return state  # first what serves, then what is new
    return _begun(state, seen, version)


def _begun(state: RolloutState, seen: Observation, version: str) -> RolloutState:
    return replace(
        state,
        phase="verifying",
        candidate=version,
        step=0,
        reason="",
        expected_alias=seen.stable_alias,
        spent_s=0.0,
        restarts=0,
        is_away=False,
        losses=0,
    )


def _verifying(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    if seen.verification is None:
        return state
    if not seen.verification.is_good:
        return _back(state, seen, seen.verification.reason)
    # A pause holds only what goes forwards. A refusal, above, is obeyed at once.
    return state if state.is_paused else _moved(state, seen, "starting")


def _starting(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    engine = seen.engine(state.candidate)
    if engine.status == "failed":
        return _back(state, seen, f"its engines did not start: {engine.detail}")
    if seen.since_s > policy.start_timeout_s and not state.is_paused:
        return _back(state, seen, f"it was not ready after {policy.start_timeout_s:g} s: {engine.detail}")
    if engine.status != "ready" or seen.answers is None:
        return state
    if not seen.answers.is_good:
        return _back(state, seen, seen.answers.reason)
    if state.is_paused:
        return state
    return _moved(state, seen, "finishing" if state.stable is None else "shifting")


def _shifting(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    engine = seen.engine(state.candidate)
    is_away = engine.status == "unhealthy"  # an engine has died, until Serve has replaced it
    state = replace(state, is_away=is_away, losses=state.losses + (is_away and not state.is_away))
    if state.losses > policy.max_engine_losses:
        return _back(state, seen, f"its engines died {state.losses} times")
    if seen.judgement is not None and not seen.judgement.is_good:
        return _back(state, seen, seen.judgement.reason)
    if engine.status == "failed":
        return _back(state, seen, f"its engines failed: {engine.detail}")
    if engine.status in ("absent", "deleting"):
        return _moved(state, seen, "starting")
    if engine.status != "ready":
        is_over = seen.unready_s > policy.unready_timeout_s
        return _back(state, seen, f"its engines were away too long: {engine.detail}") if is_over else state
    if state.is_paused or seen.since_s < policy.step_s:
        return state
    # Too little traffic to judge by. After `max_step_s` that counts as no objection, else nothing would ever roll in.
    if seen.judgement is None and seen.since_s < policy.max_step_s:
        return state
    if state.step + 1 < len(policy.steps):
        return _moved(state, seen, "shifting", state.step + 1)
    return _moved(state, seen, "finishing")


def _finishing(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    if state.candidate is None:
        leftover = [v for v, one in seen.engines.items() if one.status != "absent" and v != state.stable]
        return state if leftover else _moved(state, seen, "idle")
    if seen.stable_alias == state.candidate:
        return replace(state, stable=state.candidate, candidate=None, expected_alias=None, reason="")
    if not _is_ours(state, seen):
        return _back(state, seen, _moved_by_others(seen))
    if seen.promotion_error:
        return _back(state, seen, f"it could not be promoted: {seen.promotion_error}")
    engine = seen.engine(state.candidate)
    if engine.status == "failed":
        return _back(state, seen, f"its engines failed: {engine.detail}")
    if engine.status != "ready" and seen.unready_s > policy.unready_timeout_s:
        return _back(state, seen, f"its engines were away too long: {engine.detail}")
    # After a lost cluster it is checked and shifted again, and the serving release answers meanwhile.
    return _moved(state, seen, "starting") if engine.status in ("absent", "deleting") else state


def _rolling_back(state: RolloutState, seen: Observation, policy: RolloutPolicy) -> RolloutState:
    if state.candidate and seen.engine(state.candidate).status != "absent":
        return state
    refused = {**state.refused, **({state.candidate: state.reason} if state.candidate else {})}
    kept = dict(list(refused.items())[-_MAX_REFUSED:])
    return replace(_moved(state, seen, "idle"), candidate=None, expected_alias=None, refused=kept)


_RULES: Mapping[Phase, Callable[[RolloutState, Observation, RolloutPolicy], RolloutState]] = {
    "idle": _idle,
    "verifying": _verifying,
    "starting": _starting,
    "shifting": _shifting,
    "finishing": _finishing,
    "rolling_back": _rolling_back,
}
