"""Resuming a run: which settings may have changed since it began, and how its record says so.

A setting that does not change the loss curve may change, and the change is appended to the run's record. A setting that
does may not change (`OnResume`). A run without a complete checkpoint begins anew with the present settings.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from warren.config import Change, Duration, OnResume, Recipe, Resources, StageConfig, changes
from warren.data.stream import StreamSpec
from warren.errors import TrainingError
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run
from warren.train.run_record import RecordedChange, RunRecord

_FIXED = ("stage", "datasets", "origin")
_NOTED = ("packages", "git_revision")  # not known to change the loss curve beyond rounding
_STALE = ("quarantine", "skipped")  # folders of earlier attempts, deleted if the run starts from the beginning


def go_on(run: Run, record: RunRecord, latest: CheckpointManifest | None) -> RunRecord:
    """Return the record that the run trains under from now on; nothing is written.

    Args:
        record: The record of the stage as it is configured now, from `describe`.
        latest: The run's newest complete checkpoint; settings are compared with its record.

    Raises:
        TrainingError: Something that changes the loss curve is not what the checkpoint was trained with.
    """
    written = run.record()
    trained = latest.run if latest else written
    if trained is None:
        return record
    fixed = [change for change in _changes(trained, record) if change.rule is OnResume.FIXED]
    # No step was kept, so there is no loss curve that the change could break.
    if fixed and latest is None:
        return record
    if fixed and latest is not None:
        sections = " and ".join(dict.fromkeys(change.key.split(".")[0] for change in fixed))
        raise TrainingError(
            f"run {run.name!r} exists with another {sections} ({_listed(fixed)}), which changes the loss curve, and "
            f"has a checkpoint at step {latest.step}: undo the change to go on with it, or give this run another "
            "name with --run"
        )
    before = written or trained
    changed = {change.key: [change.old, change.new] for change in _changes(before, record)}
    entry: RecordedChange = {"time": int(time.time()), "step": latest.step if latest else 0, "changed": changed}
    result: RunRecord = {**record, "changes": [*before.get("changes", []), *([entry] if changed else [])]}
    # The run began once, however often its settings changed since.
    if "created" in before:
        result["created"] = before["created"]
    if "origin_step" in before:
        result["origin_step"] = before["origin_step"]
    return result


def begin(run: Run, record: RunRecord, latest: CheckpointManifest | None) -> None:
    """Write the run's record, once its content has been checked."""
    if latest is None:
        for folder in _STALE:
            for each in (run.folder / folder).list():
                each.store.delete(each.key)
    run.write(record)


def check_duration(run: Run, stage: StageConfig, latest: CheckpointManifest | None, stream: StreamSpec) -> None:
    """Refuse a duration that would have changed the learning rates of steps already taken.

    Raises:
        TrainingError: It would, as any other number of steps does once the cosine has begun to fall.
    """
    began = latest.run.get("recipe", {}).get(latest.run.get("stage", ""), {}).get("duration") if latest else None
    if latest is None or began is None:
        return
    duration = Duration.model_validate(began)
    before = replace(stream, num_steps=duration.steps, epochs=duration.epochs).plan().num_steps
    now = stream.plan().num_steps
    if now == before:
        return
    from warren.train.optimization import cosine_schedule  # here, because it imports models and few runs need it

    old, new = (cosine_schedule(num_steps, stage.warmup_fraction) for num_steps in (before, now))
    if now < latest.step or any(old(step) != new(step) for step in range(latest.step + 1)):
        raise TrainingError(
            f"run {run.name!r} has taken {latest.step} of {before} steps, and with {now} the learning rate of these "
            "steps would have been another (a cosine over all steps): undo the change of duration to go on with it; to "
            f"train its model further, start a new run from it: --run NAME --from-run {run.name}"
        )


def _changes(old: RunRecord, new: RunRecord) -> list[Change]:
    every: list[Change] = []
    for key in _FIXED:
        every += changes(old.get(key), new.get(key), key)
    if old.get("stage") == new.get("stage"):
        every += changes(old.get("recipe"), new.get("recipe"), "recipe", Recipe)
    if old.get("resources") and new.get("resources"):
        every += changes(old["resources"], new["resources"], "resources", Resources, OnResume.FREE)
    for key in _NOTED:
        every += changes(old.get(key), new.get(key), key, rule=OnResume.FREE)
    return every


def _listed(every: Sequence[Change]) -> str:
    return ", ".join(map(str, every))
