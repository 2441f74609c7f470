"""Which checkpoints of a run are evaluated, which of them is the best, is released, and is kept.

Everything here is decided by what storage holds, so a driver that was killed and one that takes over decide the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from warren.config import Recipe
from warren.errors import CheckpointError, ConfigError, ReleaseError
from warren.train.checkpoint import CheckpointManifest
from warren.train.checkpoint_scores import CheckpointScores, EvaluatedCheckpoint, evaluation_name, weights_of
from warren.train.run import Run


@dataclass(frozen=True)
class EvaluationPlan:
    """How the checkpoints of a run are evaluated.

    Attributes:
        every_steps: Checkpoints at multiples of it are evaluated, and the run's last one.
        num_steps: Of the whole run; None where it is not known.
        names: What each is evaluated by, as `evaluation_name` names it.
        best_by: The score that says which is the best; None: none is.
        release_when: The recipe's `release.when`; `manual` for a stage that is not released.
    """

    every_steps: int
    num_steps: int | None
    names: tuple[str, ...]
    best_by: str | None
    release_when: Literal["manual", "best_evaluated", "every_commit"] = "manual"

    @classmethod
    def of(
        cls, recipe: Recipe, stage: Literal["pretrain", "finetune"], num_steps: int | None = None
    ) -> "EvaluationPlan | None":
        """Return the plan of a stage, or None where its checkpoints are not evaluated."""
        config = recipe.require(stage)
        if config.evaluate_every_checkpoints is None:
            return None
        every = config.checkpoint_every_steps * config.evaluate_every_checkpoints
        names = tuple(evaluation_name(each) for each in recipe.evaluations)
        when = recipe.release.when if recipe.release and recipe.released_stage == stage else "manual"
        return cls(every, num_steps, names, recipe.best_by, when)

    def is_due(self, step: int) -> bool:
        """Tell whether the checkpoint at a step is to be evaluated."""
        return step % self.every_steps == 0 or step == self.num_steps

    def is_complete(self, checkpoint: EvaluatedCheckpoint) -> bool:
        """Tell whether everything that the plan names was measured."""
        return all(name in checkpoint.evaluations for name in self.names)

    def present(self, run: Run) -> list[EvaluatedCheckpoint]:
        """Return what is known of the checkpoints that are due and are in storage, in the order of the steps."""
        known = {(each.step, each.weights): each for each in CheckpointScores(run.folder).read()}
        steps = {step for step, _ in known}
        checkpoints = []
        for step in run.checkpoints.steps():
            if self.is_due(step) or step in steps:
                try:
                    weights = weights_of(run.checkpoints, run.checkpoints.read(step))
                except CheckpointError:  # damaged, or deleted since they were listed
                    continue
                checkpoints.append(known.get((step, weights)) or EvaluatedCheckpoint(step, weights))
        return checkpoints

    def best(self, checkpoints: Sequence[EvaluatedCheckpoint]) -> EvaluatedCheckpoint | None:
        """Return the checkpoint with the highest score, the newest of equals; None where none has the score."""
        scored = [each for each in checkpoints if self.best_by in each.scores]
        return max(scored, key=lambda each: (each.scores[str(self.best_by)], each.step), default=None)

    def unevaluated(self, checkpoints: Sequence[EvaluatedCheckpoint]) -> list[EvaluatedCheckpoint]:
        """Return the checkpoints that lack scores, the newest first."""
        return [each for each in reversed(checkpoints) if self._is_wanted(each) and not self.is_complete(each)]

    def _is_wanted(self, checkpoint: EvaluatedCheckpoint) -> bool:
        return self.is_due(checkpoint.step) or any(name in checkpoint.failures for name in self.names)

    def to_release(
        self, checkpoints: Sequence[EvaluatedCheckpoint], known: Sequence[EvaluatedCheckpoint]
    ) -> EvaluatedCheckpoint | None:
        """Return the checkpoint that becomes a release now, by itself.

        Args:
            checkpoints: As `present` returned them.
            known: What is stored, also of checkpoints that are gone.
        """
        complete = [each for each in checkpoints if self.is_complete(each)]
        tried = [each for each in known if each.outcome is not None]
        # Never older than what was tried: the newest release stays the newest model.
        if self.release_when == "every_commit" and complete:
            newest = complete[-1]
            return newest if newest.step > max((each.step for each in tried), default=-1) else None
        best = self.best(complete) if self.release_when == "best_evaluated" else None
        if best is None or best.outcome is not None:
            return None
        released = [each.scores.get(str(self.best_by)) for each in tried if each.outcome and each.outcome.version]
        return best if all(score is None or best.scores[str(self.best_by)] > score for score in released) else None

    def has_more(self, run: Run) -> bool:
        """Tell whether a checkpoint of a run is to be evaluated or released."""
        checkpoints, known = self.present(run), CheckpointScores(run.folder).read()
        return bool(self.unevaluated(checkpoints) or self.to_release(checkpoints, known))

    def needed(self, run: Run, keep: int) -> set[int]:
        """Return the steps whose checkpoints must not be deleted, beside the newest.

        These are checkpoints that wait for their evaluation or are being evaluated, the best one, the one that becomes
        a release, and of those whose evaluation failed the newest `keep`, so that it can be run again.
        """
        checkpoints = self.present(run)
        failed = [each for each in self.unevaluated(checkpoints) if each.failures]
        waiting = [each for each in self.unevaluated(checkpoints) if not each.failures]
        chosen = [self.best(checkpoints), self.to_release(checkpoints, CheckpointScores(run.folder).read())]
        return {each.step for each in [*waiting, *failed[:keep], *chosen] if each is not None}


def prune(run: Run, keep: int, plan: EvaluationPlan | None) -> None:
    """Delete a run's checkpoints but the newest `keep` and those that their evaluation needs."""
    older = len(run.checkpoints.steps()) > keep
    run.checkpoints.prune(keep, plan.needed(run, keep) if plan and older else ())


def chosen_checkpoint(recipe: Recipe, run: Run, evaluating: str, step: int | None = None) -> CheckpointManifest:
    """Return the checkpoint that a release takes: the newest, or the best, as `release.choose` says.

    Args:
        evaluating: The command that evaluates a checkpoint of the run, up to the step.
        step: Of the checkpoint, where it was chosen already.

    Raises:
        CheckpointError: The run has no complete checkpoint, or none at that step.
        ReleaseError: It is not known which is the best.
    """
    if step is not None:
        return run.checkpoints.read(step)
    newest = run.newest_checkpoint()
    stage = recipe.released_stage
    if recipe.require("release").choose == "last" or stage is None:
        return newest
    plan = EvaluationPlan.of(recipe, stage)
    if plan is None:
        raise ConfigError(f"release.choose is best, but {stage}.evaluate_every_checkpoints is not set: set it")
    checkpoints = plan.present(run)
    unknown = plan.unevaluated(checkpoints)
    if unknown:
        raise ReleaseError(
            f"the best checkpoint of run {run.name!r} is not known: step {unknown[0].step} is not evaluated"
            f"{_reasons(unknown[0])}. Evaluate it first: {evaluating} --step {unknown[0].step}; or release the newest "
            "with --set release.choose=last"
        )
    best = plan.best(checkpoints)
    if best is None:
        names = sorted({name for each in checkpoints for name in each.scores})
        raise ReleaseError(
            f"no checkpoint of run {run.name!r} has the score {plan.best_by!r}; scores: {', '.join(names) or 'none'}. "
            f"Evaluate one: {evaluating} --step {newest.step}; or name another with release.score"
        )
    return run.checkpoints.read(best.step)


def _reasons(checkpoint: EvaluatedCheckpoint) -> str:
    reasons = [f"{each.evaluation}: {each.reason}" for each in checkpoint.failures.values()]
    return f" ({'; '.join(reasons)})" if reasons else ""
