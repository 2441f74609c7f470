"""Training on a real cluster: Ray Train, DeepSpeed, S3; killed, resumed, refused; and equal to training without one."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest
from ray.util import placement_group_table

from factories import colour_sample, tiny_recipe, tiny_stage, write_dataset
from secret_search import places_of_secrets
from train_processes import train_plainly
from warren.cluster.train.preparation import prepare
from warren.cluster.train.stage import train_stage
from warren.config import Duration, Recipe, Resources
from warren.errors import CheckpointError, NotFoundError
from warren.storage import Location
from warren.testbed.chaos import compare, titled
from warren.train.checkpoint import METRICS_FILE
from warren.train.damaged_checkpoints import newest_intact
from warren.train.run import Run

RESOURCES = Resources(
    num_workers=2, cpus_per_worker=0.5, data_cpus_per_task=0.5, zero_stage=2, micro_batch_size=2, max_failures=1
)
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


def datasets(root: Location, samples: int = 96) -> None:
    write_dataset(root, "captions", [colour_sample(i, caption=True) for i in range(samples)])
    write_dataset(root, "train", [colour_sample(i) for i in range(samples)])


def losses(run: Run) -> list[float]:
    latest = run.checkpoints.latest()
    assert latest is not None
    entry = next(e for e in latest.files if e.path.endswith(METRICS_FILE))
    lines = (run.checkpoints.at(latest.step) / entry.path).read_bytes().splitlines()
    return [json.loads(line)["loss"] for line in lines]


class Killer(threading.Thread):
    """Kills processes of the cluster, each once the run has committed a checkpoint at its step or later."""

    def __init__(self, cluster: Any, run: Run, schedule: list[tuple[str, int]]) -> None:
        super().__init__(daemon=True)
        self._cluster, self._run, self._schedule = cluster, run, schedule
        self.killed: list[tuple[str, float]] = []

    def run(self) -> None:
        deadline = time.monotonic() + 300
        for kind, step in self._schedule:
            while time.monotonic() < deadline:
                victims = (
                    titled(self._cluster.head, kind) if max(self._run.checkpoints.steps(), default=0) >= step else []
                )
                if victims:
                    self.killed.append((kind, time.time()))
                    victims[-1].kill()
                    break
                time.sleep(0.1)


DRIVER = """
import sys
import ray
from warren.cluster.train.preparation import prepare
from warren.cluster.train.stage import train_stage
from warren.config import Recipe, Resources
from warren.storage import Location

ray.init(log_to_driver=False, logging_level="ERROR")
recipe, resources = Recipe.model_validate_json(sys.argv[1]), Resources.model_validate_json(sys.argv[2])
train_stage(recipe, "pretrain", resources, Location.parse(sys.argv[3]), sys.argv[4])
"""


def train_until_the_driver_is_killed(cluster: Any, recipe: Recipe, resources: Resources, run: Run, step: int) -> None:
    """Train in a driver of its own, kill -9 it once there is a checkpoint at the step or later; its workers end too."""
    values = [recipe.model_dump_json(), resources.model_dump_json(), root_of(run).uri, run.name]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *values], env={**os.environ, **cluster.driver_env})
    try:
        while max(run.checkpoints.steps(), default=0) < step:
            assert driver.poll() is None
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    while titled(cluster.head, "worker") or groups_there_are():
        time.sleep(0.1)


def groups_there_are() -> list[Any]:
    return [group for group in placement_group_table().values() if group["state"] == "CREATED"]


def root_of(run: Run) -> Location:
    return Location(run.folder.uri.rsplit("/runs/", 1)[0])


def recipe(**changes: Any) -> Recipe:
    stage = tiny_stage("captions@v1", template="plain", duration=Duration(epochs=3), **changes)
    return tiny_recipe(pretrain=stage)


CHANGES = {"keep_checkpoints": 9, "projector_learning_rate": 3e-4, "weight_decay": 0.1}


def interrupt(run: Run, step: int) -> None:
    """Leave the run as if it had been interrupted after `step`, while its learning rate was high."""
    for later in run.checkpoints.steps():
        if later > step:
            manifest = run.checkpoints.at(later) / "manifest.json"
            manifest.store.delete(manifest.key)


def damage(run: Run, step: int) -> None:
    """Change a byte of a checkpoint's state."""
    entry = next(entry for entry in run.checkpoints.read(step).files if "/state/" in entry.path)
    target = run.checkpoints.at(step) / entry.path
    data = target.read_bytes()
    target.put_bytes(bytes([data[0] ^ 255]) + data[1:])


def assert_equal_to_rounding(resumed: list[float], whole: list[float], step: int) -> None:
    assert resumed[:step] == whole[:step]
    assert resumed[step:] != whole[step:]  # it was trained anew, and rounds differently
    assert resumed == pytest.approx(whole, rel=1e-4)


RECOVERY = ["detect_s", "first_step_s", "last_step", "load_s", "next_step", "restart_s", "total_s"]


@pytest.fixture(scope="module")
def whole(storage_root: Location) -> Run:
    """A finished run of two ranks without a cluster, that nothing disturbed."""
    root = storage_root / "training"
    datasets(root)
    run = Run(root / "runs" / "whole")
    return train_plainly(prepare(recipe(**CHANGES), "pretrain", RESOURCES, run, None, None))


def test_a_killed_run_ends_as_an_unbroken_one(whole: Run, ray_cluster: Any) -> None:
    broken = Run(root_of(whole) / "runs" / "broken")
    killer = Killer(ray_cluster, broken, [("worker", 4), ("controller", 16)])
    killer.start()
    resources = RESOURCES.model_copy(update={"max_failures": 2})
    train_stage(recipe(**CHANGES), "pretrain", resources, root_of(whole), "broken")
    compared = compare(whole, broken, killer.killed)
    assert list(compared["recovery_s"]) == ["worker", "controller"]
    assert compared["weights_bit_equal"]
    assert compared["losses_bit_equal"]
    assert (compared["samples_lost"], compared["samples_repeated"], compared["steps"]) == (0, 0, 36)
    recoveries = [json.loads(file.read_bytes()) for file in (broken.folder / "recoveries").list()]
    assert [sorted(each) for each in recoveries[0]] == [RECOVERY, RECOVERY]
    assert not groups_there_are()
    assert b"## Recoveries" in (broken.folder / "report" / "report.md").read_bytes()
    assert any("tfevents" in file.uri for file in (broken.folder / "tensorboard").list())
    assert losses(whole)[-1] < losses(whole)[0]
    done = train_stage(recipe(**CHANGES), "pretrain", RESOURCES, root_of(whole), "broken")
    assert done == broken  # at once
    assert places_of_secrets(ray_cluster, root_of(whole)) == []  # checkpoints, record, report, events


@pytest.mark.long  # test_training_loop.py finds damaged checkpoints and resizes without a cluster
def test_a_damaged_checkpoint_and_a_killed_driver_cost_steps_and_nothing_else(whole: Run, ray_cluster: Any) -> None:
    run = Run(root_of(whole) / "runs" / "damaged")
    train_plainly(prepare(recipe(**CHANGES), "pretrain", RESOURCES, run, None, None))
    interrupt(run, step=12)
    damage(run, step=12)  # found by the worker that reads it: the run goes on from step 8
    alone = RESOURCES.model_copy(update={"num_workers": 1})
    raised = recipe(**{**CHANGES, "max_quarantined_fraction": 0.5})  # changes no loss
    train_until_the_driver_is_killed(ray_cluster, raised, alone, run, step=20)
    [*_, change] = (run.record() or {})["changes"]
    assert change["changed"]["recipe.pretrain.max_quarantined_fraction"] == [0.001, 0.5]
    latest = newest_intact(run)
    assert latest is not None
    assert 20 <= latest.step == len(losses(run))
    assert_equal_to_rounding(losses(run), losses(whole)[: latest.step], step=8)


@pytest.mark.long  # test_training_loop.py resizes ZeRO 3 without a cluster
def test_a_zero_3_run_goes_on_with_more_workers(s3_root: Location, ray_cluster: Any) -> None:
    datasets(s3_root, samples=64)
    one = RESOURCES.model_copy(update={"num_workers": 1, "zero_stage": 3})
    run = train_stage(recipe(**CHANGES), "pretrain", one, s3_root, "r")
    whole = losses(run)
    interrupt(run, step=8)
    with pytest.raises(CheckpointError, match=r"written with ZeRO stage 3.*zero_stage=3"):
        train_stage(recipe(**CHANGES), "pretrain", one.model_copy(update={"zero_stage": 2}), s3_root, "r")
    train_stage(recipe(**CHANGES), "pretrain", one.model_copy(update={"num_workers": 3}), s3_root, "r")
    assert_equal_to_rounding(losses(run), whole, step=8)
    wait_for_figure(ray_cluster.head.metrics_url, rf'ray_warren_train_step{{.*run="r".*}} {len(whole) - 1}(\.0)?\s')


def wait_for_figure(url: str, pattern: str) -> None:
    """Wait until Prometheus would find a metric; Ray's agents tell it some seconds late."""
    deadline = time.monotonic() + 60
    while not re.search(pattern, httpx.get(url, timeout=10).text):
        assert time.monotonic() < deadline, f"{url} has no {pattern}"
        time.sleep(1)


def test_finetune_needs_a_checkpoint_of_pretrain(root: Location) -> None:
    datasets(root)
    with pytest.raises(CheckpointError, match="train it first"):
        train_stage(tiny_recipe(), "finetune", RESOURCES, root, "ft", parent="never")
    assert (root / "runs").list() == []


def test_a_dataset_that_is_not_there_is_refused_before_anything_starts(root: Location) -> None:
    with pytest.raises(NotFoundError, match=r"captions@v1.*ingest"):
        train_stage(tiny_recipe(), "pretrain", RESOURCES, root, "r")
    assert (root / "runs").list() == []
