"""A cluster of several nodes: too few at first; one dies in the middle of a step, one comes, one is taken back."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import yaml

from factories import colour_sample, tiny_recipe, tiny_stage, write_dataset
from ray_nodes import RayNode
from warren.config import Duration
from warren.storage import Location
from warren.testbed import RayHead
from warren.testbed.chaos import compare
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run
from warren.train.run_report import read_metrics

STEPS = 900  # enough for a node to start meanwhile
STORE_BYTES = 200_000_000
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]


@dataclass
class Nodes:
    """A head with room for one worker and the reading tasks, and nodes with room for one worker each."""

    head: RayHead
    folder: Path
    started: list[RayNode] = field(default_factory=list)

    def add(self) -> RayNode:
        number = len(self.started) + 2
        self.started.append(RayNode(self.head, self.folder / f"n{number}", number, 2, STORE_BYTES))
        return self.started[-1]


@pytest.fixture
def nodes(repository: Path) -> Iterator[Nodes]:
    sources = os.pathsep.join(str(repository / name) for name in ("platform", "serve"))
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": sources}
    with (
        TemporaryDirectory(prefix="warren-n-", ignore_cleanup_errors=True) as folder,
        RayHead(Path(folder) / "h", 3, environment, STORE_BYTES) as head,
    ):
        found = Nodes(head, Path(folder))
        yield found
        for node in found.started:
            node.kill()


def wait_until(condition: Callable[[], Any], what: str, job: "subprocess.Popen[bytes]", timeout_s: float = 240) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert job.poll() is None, f"the job ended before there was {what}"
        assert time.monotonic() < deadline, f"there was no {what} in {timeout_s} s"
        time.sleep(0.1)
    return found


def written_by(run: Run, world_size: int, after: int = 0) -> Callable[[], CheckpointManifest | None]:
    def look() -> CheckpointManifest | None:
        latest = run.checkpoints.latest()
        return latest if latest and latest.world_size == world_size and latest.step > after else None

    return look


def test_a_run_follows_the_nodes_that_come_and_go(nodes: Nodes, tmp_path: Path, repository: Path) -> None:
    root = Location.parse(str(tmp_path / "store"))
    for name in ("captions", "train"):
        write_dataset(root, name, [colour_sample(i, caption=name == "captions") for i in range(96)])
    stage = tiny_stage(
        "captions@v1",
        template="plain",
        duration=Duration(steps=STEPS),
        global_batch_size=16,
        learning_rate=1e-4,
        checkpoint_every_steps=20,
        keep_checkpoints=99,
    )
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(pretrain=stage).model_dump(mode="json")))

    def train(name: str, num_workers: list[int]) -> "subprocess.Popen[bytes]":
        resources = {
            "num_workers": num_workers,
            "cpus_per_worker": 2,
            "data_cpus_per_task": 0.5,
            "micro_batch_size": 2,
            "elastic_check_s": 2,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(resources))
        command = [sys.executable, "jobs/pretrain.py", "--recipe", str(recipe)]
        command += ["--resources", str(tmp_path / f"{name}.yaml"), "--run", name]
        environment = {**os.environ, **nodes.head.environment, "RAY_ADDRESS": nodes.head.driver_address}
        with (tmp_path / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command, env={**environment, "WARREN_STORAGE": root.uri}, cwd=repository, stderr=log
            )

    def says(name: str, what: str) -> Callable[[], bool]:
        return lambda: what in (tmp_path / f"{name}.log").read_text()

    whole, run = Run(root / "runs" / "whole"), Run(root / "runs" / "elastic")
    job = train("whole", [2, 2])
    wait_until(says("whole", "waiting for 2 workers of 2 CPUs; the cluster has 3 CPUs"), "word of too few nodes", job)
    node = nodes.add()
    assert job.wait(400) == 0

    job = train("elastic", [1, 2])
    wait_until(written_by(run, 2), "a checkpoint of two workers", job)
    node.kill()
    lost_at = wait_until(written_by(run, 1), "a checkpoint of one worker", job).step
    wait_until(lambda: "ray_warren_train_step" in httpx.get(nodes.head.metrics_url).text, "metrics for Prometheus", job)
    node = nodes.add()
    grown_at = wait_until(written_by(run, 2, after=lost_at), "a checkpoint of two workers again", job).step
    node.announce_its_end(deadline_s=600)
    wait_until(written_by(run, 1, after=grown_at), "a checkpoint without the node that is to go", job)
    assert job.wait(400) == 0

    result = compare(whole, run, [])
    assert (result["samples_lost"], result["samples_repeated"]) == (0, 0)
    expected, found = read_metrics(whole), read_metrics(run)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-3)
    (recoveries,) = (run.folder / "recoveries").list()
    killed, grown, taken_back = recoveries.read_json()
    assert killed["next_step"] <= killed["last_step"] + 1
    assert [back["next_step"] - back["last_step"] for back in (grown, taken_back)] == [1, 1]  # no step trained twice
