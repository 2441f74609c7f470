"""Checkpoints evaluated and released while training goes on, on resources that the training workers do not use.

A thread of the driver looks at storage, decides by `EvaluationPlan` what is next, and has one Ray task at a time do it.
The workers know nothing of it but which checkpoints they must not delete. Training comes first: without room a
checkpoint waits, and a task ends when the workers need its place. The newest checkpoint is evaluated first.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from warren.cluster.capacity import fitting, has_room, size_of, waiting
from warren.cluster.train.checkpoint_tasks import CheckpointWork, evaluate_checkpoint, release_checkpoint
from warren.errors import root_cause
from warren.train.checkpoint_scores import CheckpointScores, EvaluatedCheckpoint
from warren.train.evaluation_plan import EvaluationPlan, prune

_POLL_S = 2.0
_WAITING_LINE_EVERY_S = 30.0
_YIELD_AFTER_S = 10.0
_MAX_TRIES = 3
_MAX_ERRORS_AT_THE_END = 30

_Kind = Literal["evaluate", "release"]
_Action = tuple[_Kind, EvaluatedCheckpoint]
_TASKS: Mapping[_Kind, Callable[[CheckpointWork, EvaluatedCheckpoint], None]] = {
    "evaluate": evaluate_checkpoint,
    "release": release_checkpoint,
}


@dataclass(frozen=True)
class _Running:
    """A task that runs, and what it does to which checkpoint."""

    kind: _Kind
    checkpoint: EvaluatedCheckpoint
    result: Any

    @property
    def name(self) -> tuple[str, int]:
        """Kind and step."""
        return self.kind, self.checkpoint.step


class CheckpointEvaluator:
    """Evaluates and releases the checkpoints of a run in a thread.

    Args:
        work: What is done with them.
        plan: Which of them, and in which order.
        keep: How many of the newest checkpoints are kept whatever their scores.
        monitor: The run monitor; None: the run has no workers any more.
        say: Shows a line to the person who started the job.
        on_scores: Gets step and scores of every checkpoint that was evaluated, and a note for the progress line.
    """

    def __init__(
        self,
        work: CheckpointWork,
        plan: EvaluationPlan,
        keep: int,
        monitor: Any | None,
        say: Callable[[str], None],
        on_scores: Callable[[int, Mapping[str, float], str], None],
    ) -> None:
        self._work, self._plan, self._keep, self._monitor = work, plan, keep, monitor
        self._show_line, self._on_scores = say, on_scores
        self._running: _Running | None = None
        self._seen_steps: list[int] | None = None
        self._checkpoints: Sequence[EvaluatedCheckpoint] = ()
        self._action: _Action | None = None
        self._tries: Counter[tuple[str, int]] = Counter()
        self._done: set[tuple[str, int]] = set()
        self._waiting_said_s: float | None = None
        self._training_ended = monitor is None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="warren-checkpoint-evaluator")

    def __enter__(self) -> "CheckpointEvaluator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._cancel()

    def finish(self) -> None:
        """Wait until every checkpoint of the finished run is evaluated, or has failed."""
        self._training_ended = True
        while self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _follow(self) -> None:
        errors = 0
        while True:
            try:
                ended = self._training_ended  # read first: what is committed before training ends is looked at after
                if not self._advance() and ended:
                    return
                errors = 0
            except Exception as error:  # such as storage that is away: training goes on, and this is tried again
                errors += 1
                if errors == 1 or errors == _MAX_ERRORS_AT_THE_END:
                    self._say(f"checkpoints cannot be evaluated at the moment: {root_cause(error)}")
                # While training goes on there is nothing to lose by trying; after it, the job has to end.
                if self._training_ended and errors >= _MAX_ERRORS_AT_THE_END:
                    return
            if self._stop.wait(_POLL_S):
                return

    def _advance(self) -> bool:
        """Look after the task that runs, or start the next one; return whether there is something left to do."""
        if self._running is not None:
            self._attend(self._running)
            return True
        steps = self._work.run.checkpoints.steps()
        if steps != self._seen_steps:  # without a new checkpoint, what is next stays what it was
            self._seen_steps, self._checkpoints = steps, self._plan.present(self._work.run)
            self._action = self._next(self._checkpoints)
        if self._action is None:
            return False
        number = self._room()
        if number == 0:
            self._show_waiting(self._checkpoints)
        if self._training_ended:
            number = self._work.resources.num_evaluators  # they wait themselves, so that a cluster can grow for them
        if number:
            self._start(*self._action, number)
            self._seen_steps = None
        return True

    def _next(self, checkpoints: Sequence[EvaluatedCheckpoint]) -> _Action | None:
        release = self._plan.to_release(checkpoints, CheckpointScores(self._work.run.folder).read())
        if release is not None and ("release", release.step) not in self._done:
            return "release", release
        left = [each for each in self._plan.unevaluated(checkpoints) if ("evaluate", each.step) not in self._done]
        return ("evaluate", left[0]) if left else None

    def _room(self) -> int | None:
        """Return how many evaluators there is room for; None while the workers themselves wait for room."""
        resources, spare_cpus = self._work.resources, 0.0
        if not self._training_ended and self._monitor is not None:
            if ray.get(self._monitor.without_workers_s.remote()):
                return None
            spare_cpus = resources.data_cpus_per_task  # the workers' data comes before an evaluator
        number, cpus, gpus = resources.num_evaluators, resources.cpus_per_replica, resources.gpus_per_replica
        return fitting(number, cpus, gpus, spare_cpus)

    def _start(self, kind: _Kind, checkpoint: EvaluatedCheckpoint, number: int) -> None:
        work = replace(self._work, resources=self._work.resources.model_copy(update={"num_evaluators": number}))
        # On the driver's node, where relative paths of the recipe lead to the same files.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task = ray.remote(_TASKS[kind]).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        self._waiting_said_s = None
        self._running = _Running(kind, checkpoint, task.remote(work, checkpoint))
        self._tries[self._running.name] += 1

    def _say(self, text: str) -> None:
        self._show_line(f"{self._work.run.name}: {text}")

    def _attend(self, running: _Running) -> None:
        step = running.checkpoint.step
        ready, _ = ray.wait([running.result], timeout=0)
        if not ready:
            if self._workers_need_room():
                self._cancel()
                # It was stopped for the workers' sake, so that is no failed try.
                self._tries[running.name] -= 1
                self._say(f"step {step}: its evaluation makes room for the workers, and is done later")
            return
        self._running = None
        try:
            ray.get(running.result)
        except Exception as error:
            reason = " ".join(str(root_cause(error)).split())
            if self._tries[running.name] < _MAX_TRIES:
                self._say(f"step {step}: {running.kind} did not end well ({reason[:200]}); it is started again")
                return
            self._give_up(running, reason)
        self._show(running)
        prune(self._work.run, self._keep, self._plan)

    def _workers_need_room(self) -> bool:
        if self._training_ended or self._monitor is None:
            return False
        resources = self._work.resources
        fewest = resources.min_workers * resources.cpus_per_worker, resources.min_workers * resources.gpus_per_worker
        return ray.get(self._monitor.without_workers_s.remote()) > _YIELD_AFTER_S and not has_room(*fewest)

    def _cancel(self) -> None:
        if self._running is not None:
            ray.cancel(self._running.result, force=True)  # the evaluators, which it owns, end with it
            self._running = None

    def _give_up(self, running: _Running, reason: str) -> None:
        self._done.add(running.name)
        if running.kind == "evaluate":
            self._work.fail(self._known(running), reason)
            return
        step = running.checkpoint.step
        self._say(f"step {step}: no release: {reason}. To release it: {self._work.command('release', step)}")

    def _known(self, running: _Running) -> EvaluatedCheckpoint:
        """Return what is stored about a task's checkpoint, which may be deleted by now."""
        name = running.checkpoint.step, running.checkpoint.weights
        stored = {(each.step, each.weights): each for each in CheckpointScores(self._work.run.folder).read()}
        return stored.get(name, running.checkpoint)

    def _show(self, running: _Running) -> None:
        known = self._known(running)
        outcome = known.outcome
        if running.kind == "evaluate":
            self._show_evaluation(running, known)
        elif outcome is not None and outcome.version is not None:
            self._say(f"step {known.step} is released as {outcome.version}, and is the candidate")
        elif outcome is not None:
            self._say(f"step {known.step} is not released: {outcome.reason}")

    def _show_evaluation(self, running: _Running, known: EvaluatedCheckpoint) -> None:
        if not self._plan.is_complete(known):
            self._done.add(running.name)
            for each in known.failures.values():
                self._say(
                    f"step {known.step}: {each.evaluation} failed: {each.reason}. To run it again: {each.command}"
                )
            return
        name = self._plan.best_by
        if name is not None and name not in known.scores:
            names = ", ".join(known.scores)
            self._say(f"step {known.step} has no score {name!r}, so it cannot be the best; its scores are {names}")
        note = self._note(known)
        self._on_scores(known.step, known.scores, note)
        self._say(f"evaluated: {note}")

    def _note(self, known: EvaluatedCheckpoint) -> str:
        """Return what the progress line says of a checkpoint's scores."""
        name = self._plan.best_by
        if name is None or name not in known.scores:
            name, value = next(iter(known.scores.items()))
            return f"{name} {value:.4g} at step {known.step}"
        note = f"{name} {known.scores[name]:.4g} at step {known.step}"
        best = self._plan.best(CheckpointScores(self._work.run.folder).read())
        if best is None or best.step == known.step:
            return f"{note} (the best)"
        return f"{note} (best {best.scores[name]:.4g} at step {best.step})"

    def _show_waiting(self, checkpoints: Sequence[EvaluatedCheckpoint]) -> None:
        now = time.monotonic()
        if self._waiting_said_s is not None and now - self._waiting_said_s < _WAITING_LINE_EVERY_S:
            return
        self._waiting_said_s = now
        left = self._plan.unevaluated(checkpoints)
        resources = self._work.resources
        evaluators = size_of(1, "evaluators", resources.cpus_per_replica, resources.gpus_per_replica)
        newest = f", the newest at step {left[0].step}" if left else ""
        self._say(f"{len(left)} checkpoints are to be evaluated{newest}: {waiting(evaluators)}")
