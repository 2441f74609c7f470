"""The rollout controller of one endpoint: it looks, follows the rules of `warren.rollout`, and acts.

It decides nothing itself, and it knows no Ray: engines are behind `Engines`. One thread looks and acts; calls of
ingress replicas only leave reports and take the routing table.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from warren.config import RolloutPolicy
from warren.errors import ConflictError, NotFoundError, ReleaseError, StorageError
from warren.release import move_alias, read_alias, release_folder, write_deployment
from warren.rollout.answer_checks import Reply, judge_answers
from warren.rollout.questions import SanityQuestion, read_questions
from warren.rollout.state_machine import (
    DeleteEngine,
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
)
from warren.rollout.state_store import RolloutFiles, RolloutOwner, SupersededError
from warren.rollout.traffic_analysis import AnswerRecord, StepJudge
from warren.storage import Location
from warren_serve.engine_applications import Engines
from warren_serve.release_checks import ReleaseChecks
from warren_serve.routing import IngressReport, RoutingTable

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_REPORTS_LAST_S = 5.0  # an ingress replica that is silent for so long is gone
_MAX_BASELINE = 2000


@dataclass(frozen=True)
class _Registry:
    """What storage said when it was last asked."""

    stable: str | None = None
    candidate: str | None = None
    gate_refusal: str = ""
    command: RolloutCommand | None = None


@dataclass
class _Asking:
    """The sanity questions to one candidate, asked by a thread."""

    version: str
    judgement: Judgement | None = None
    thread: threading.Thread | None = None


@dataclass
class _Reports:
    """The last report of every ingress replica, and when it came."""

    last: dict[str, tuple[float, IngressReport]] = field(default_factory=dict)

    def current(self, now_s: float) -> list[IngressReport]:
        return [report for at_s, report in self.last.values() if now_s - at_s <= _REPORTS_LAST_S]


class RolloutController:
    """Watches a release's aliases and rolls candidates in.

    Args:
        root: Where releases live.
        name: The release's name.
        endpoint: Name of the endpoint's application.
        policy: How candidates roll in.
        engines: Starts, deletes and asks engines.
        owner: What this controller calls itself.
        clock: Monotonic seconds.

    Raises:
        StorageError: The state cannot be read or written.
    """

    def __init__(
        self,
        root: Location,
        name: str,
        endpoint: str,
        policy: RolloutPolicy,
        engines: Engines,
        owner: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._name, self._policy, self._engines, self._clock = root, name, policy, engines, clock
        self._files, self._endpoint = RolloutFiles(root, name, endpoint), endpoint
        self._deployed: set[str] | None = None
        # Before anything else, so that the controller before this one stops as early as possible.
        self._owned: RolloutOwner = self._files.take_over(owner)
        self._registry, self._read_s = _Registry(), float("-inf")
        self._began_s = self._ready_s = clock()
        self._judge, self._baseline = StepJudge(policy), deque[AnswerRecord](maxlen=_MAX_BASELINE)
        self._checks = ReleaseChecks(root, name)
        self._asking: _Asking | None = None
        self._stable_asked: tuple[str, tuple[SanityQuestion, ...], list[Reply]] | None = None
        self._promotion_error = ""
        self._views: Mapping[str, EngineView] = {}
        self._table: RoutingTable | None = None
        self._num_tables = 0
        self._reports = _Reports()
        self._lock = threading.Lock()  # of the judge, the baseline and the reports
        self._closed = threading.Event()
        self.superseded = ""

    @property
    def state(self) -> RolloutState:
        """Where the rollout stands."""
        return self._owned.record.state

    def run(self) -> None:
        """Look and act until closed, or until another controller takes over."""
        while not self._closed.wait(_TICK_S):
            try:
                self.tick()
            except SupersededError as error:
                self.superseded = str(error)
                logger.error("%s", error)
                return
            except StorageError as error:
                logger.warning("storage does not answer, so the rollout waits: %s", error)
            except Exception:  # the serving release goes on serving, so the next look may find what to do
                logger.exception("the rollout controller failed, and tries again")

    def close(self) -> None:
        """Stop looking. Engines go on serving."""
        self._closed.set()

    def exchange(self, report: IngressReport) -> RoutingTable | None:
        """Take an ingress replica's report and return the weights; fast, because all replicas ask often.

        A controller that has not looked yet returns None, so that the weights of the one before it stay.
        """
        with self._lock:
            self._reports.last[report.replica] = self._clock(), report
            self._judge.add(report.records)
            self._baseline.extend(one for one in report.records if one.version == self.state.stable)
        return self._table

    def status(self) -> dict[str, Any]:
        """Return where the rollout stands, as JSON types."""
        state = self.state
        return {
            "phase": state.phase,
            "stable": state.stable,
            "candidate": state.candidate,
            "step": state.step,
            "weights": dict(self._table.weights) if self._table else {},
            "paused": state.is_paused,
            "reason": state.reason,
            "refused": dict(state.refused),
            "engines": {version: asdict(view) for version, view in self._views.items()},
            "gate_refusal": self._registry.gate_refusal,
            "superseded": self.superseded,
            "ingress_agrees": self._is_agreed(),
        }

    def tick(self) -> None:
        """Look once, and do what follows.

        Raises:
            SupersededError: Another controller has taken over; nothing was done.
            StorageError: Storage does not answer.
        """
        self._read_registry()
        seen = self._look()
        state = advance(self.state, seen, self._policy)
        if state != self.state:
            self._enter(state)
        self._mark_deployed(state)
        # The new state may have begun just now, and what it waits for counts from then.
        planned = plan(state, replace(seen, since_s=self._clock() - self._began_s), self._policy)
        running = {version for version, view in self._views.items() if view.is_up}
        applications = {version: self._engines.application(version) for version in sorted(running)}
        self._publish(RoutingTable(planned.weights, state.candidate, applications, self._policy.sticky))
        for action in planned.actions:
            self._do(action, state)

    def _publish(self, table: RoutingTable) -> None:
        """Give the ingress replicas a table, under a new name if it differs from the last one."""
        if self._table is None or table != replace(self._table, name=""):
            self._num_tables += 1
            self._table = replace(table, name=f"{self._owned.record.epoch}.{self._num_tables}")

    def _enter(self, state: RolloutState) -> None:
        """Store a new state before anything is done in it."""
        before = self.state
        # Stored first: a controller that dies here leaves a state whose actions its successor repeats.
        self._owned.save(state)
        logger.info("rollout of %s: %s, step %d %s", state.candidate, state.phase, state.step, state.reason)
        self._promotion_error = ""
        if state.moment != before.moment:
            self._began_s = self._ready_s = self._clock()
            with self._lock:
                # Each step is judged by its own traffic; answers under other weights came with another load.
                self._judge = StepJudge(self._policy, tuple(self._baseline))
                # Another release serves from now on, so its predecessor's answers are no baseline any more.
                if state.stable != before.stable:
                    self._baseline.clear()
        if state.phase in ("idle", "verifying"):
            self._asking = None
            self._checks.forget()
        self._read_s = float("-inf")

    def _mark_deployed(self, state: RolloutState) -> None:
        """Say which versions this endpoint needs, before it starts them, so that nobody removes them meanwhile."""
        needed = {version for version in (state.stable, state.candidate, *self._views) if version}
        if needed == self._deployed:
            return
        try:
            write_deployment(self._root, self._name, self._endpoint, sorted(needed))
        except ReleaseError as error:  # one is being removed; its engines will not load, which undoes a candidate
            logger.warning("an endpoint needs a release that is being removed: %s", error)
        self._deployed = needed

    def _read_registry(self) -> None:
        now_s = self._clock()
        # During a rollout an alias that somebody moves, or a command, has to have its effect soon.
        wait_s = self._policy.poll_s if self.state.phase == "idle" else min(1.0, self._policy.poll_s)
        if now_s - self._read_s < wait_s:
            return
        self._owned.check()
        candidate = read_alias(self._root, self._name, "candidate")
        self._registry = _Registry(
            stable=read_alias(self._root, self._name, "stable"),
            candidate=candidate,
            gate_refusal=self._checks.gate_refusal(candidate) if candidate else "",
            command=self._files.read_command(),
        )
        self._read_s = now_s

    def _look(self) -> Observation:
        state, now_s = self.state, self._clock()
        views = dict(self._engines.views())
        self._views = dict(views)
        if state.candidate and state.phase == "starting":
            views[state.candidate] = self._seen_by_ingress(state.candidate, views.get(state.candidate, EngineView()))
        if state.candidate and views.get(state.candidate, EngineView()).status == "ready":
            self._ready_s = now_s
        with self._lock:
            judgement = self._judge.verdict(state.candidate, state.stable) if state.phase == "shifting" else None
        return Observation(
            since_s=now_s - self._began_s,
            unready_s=now_s - self._ready_s,
            stable_alias=self._registry.stable,
            candidate_alias=self._registry.candidate,
            gate_refusal=self._registry.gate_refusal,
            engines=views,
            verification=self._checks.verify(state.candidate or "") if state.phase == "verifying" else None,
            answers=self._answers(state, views) if state.phase == "starting" else None,
            judgement=judgement,
            promotion_error=self._promotion_error,
            command=self._registry.command,
            is_agreed=self._is_agreed(),
        )

    def _is_agreed(self) -> bool:
        """Whether every ingress replica that lives follows the weights that were given out last."""
        with self._lock:
            reports = self._reports.current(self._clock())
        return self._table is not None and all(report.table == self._table.name for report in reports)

    def _seen_by_ingress(self, version: str, view: EngineView) -> EngineView:
        """Return an engine's view, which is ready only when every ingress replica can check its requests."""
        with self._lock:
            reports = self._reports.current(self._clock())
        for report in reports:
            if version in report.failures:
                return EngineView("failed", f"an ingress replica cannot load it: {report.failures[version]}")
        if view.status == "ready" and not all(version in report.loaded for report in reports):
            return EngineView("starting", "its engines are ready; the ingress replicas load its tokenizer")
        return view

    def _answers(self, state: RolloutState, views: Mapping[str, EngineView]) -> Judgement | None:
        version = state.candidate or ""
        if views.get(version, EngineView()).status != "ready":
            return None
        if self._asking is None or self._asking.version != version:
            asking = self._asking = _Asking(version)
            stable = state.stable if state.stable and views.get(state.stable, EngineView()).is_up else None
            asking.thread = threading.Thread(target=self._ask, args=(asking, stable), name="warren-ask", daemon=True)
            asking.thread.start()
        return self._asking.judgement

    def _ask(self, asking: _Asking, stable: str | None) -> None:
        try:
            questions = read_questions(release_folder(self._root, self._name, asking.version))
            new = self._engines.ask(asking.version, questions)
            old = self._stable_answers(stable, questions) if stable else None
            asking.judgement = judge_answers(questions, new, old, self._policy)
            logger.info("answers of %s: %s", asking.version, asking.judgement.reason)
        except Exception as error:  # of any type: a candidate that cannot be asked must not hold the controller
            logger.exception("the sanity questions could not be asked")
            asking.judgement = Judgement(False, f"the sanity questions could not be asked: {error}")

    def _stable_answers(self, stable: str, questions: Sequence[SanityQuestion]) -> list[Reply]:
        """Ask the serving release, unless it was asked the same for an earlier candidate."""
        known = self._stable_asked
        if known is None or known[:2] != (stable, tuple(questions)):
            known = stable, tuple(questions), self._engines.ask(stable, questions)
            has_failed = any(reply.text is None for reply in known[2])
            self._stable_asked = None if has_failed else known
        return known[2]

    def _do(self, action: RolloutAction, state: RolloutState) -> None:
        if isinstance(action, StartEngine):
            # Replicas for the largest step before the last; autoscaling follows the load once all traffic is there.
            partial = max((step for step in self._policy.steps if step < 1.0), default=1.0)
            beside = state.stable if action.version == state.candidate else None
            self._engines.start(action.version, beside, partial)
        elif isinstance(action, DeleteEngine):
            self._engines.delete(action.version)
        elif isinstance(action, MoveStable):
            self._promote(action)

    def _promote(self, action: MoveStable) -> None:
        try:
            # Somebody may have overwritten files since the engines checked them.
            if changed := self._checks.changed(action.version):
                raise ReleaseError(changed)
            move_alias(self._root, self._name, "stable", action.version, action.expected)
        except ConflictError as error:  # the next look sees who moved it
            logger.warning("the alias 'stable' was moved by somebody else: %s", error)
        except (ReleaseError, NotFoundError) as error:
            self._promotion_error = str(error)
        self._read_s = float("-inf")
