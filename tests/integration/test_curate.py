"""The curate job on a cluster: whatever is killed, it ends in the same bytes, and a stage trains on its result."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
import yaml

from cluster_fixtures import Cluster
from factories import tiny_recipe, tiny_stage, write_dataset
from selecting import STEPS, config_of, files, pair, write_embeddings, write_pairs, write_tiny_clip
from warren.cluster.batch.curation import curate, run_on_cluster
from warren.cluster.train.stage import train_stage
from warren.compat.ray_cli import process_title
from warren.config import CurateConfig, Duration, Resources
from warren.curate import pipeline
from warren.curate.tasks import Task, Workspace, run_here
from warren.storage import Location
from warren.storage.scratch import scratch_folder
from warren.testbed import RayHead

_TIMEOUT_S = 300


def test_workers_killed_in_a_task_are_replaced_and_only_their_tasks_are_repeated(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Deadly:
        """A task that kills its process when it runs first, before or after it computes. Local, so Ray pickles it."""

        task: Task
        number: int
        kills: tuple[tuple[int, str], ...]
        log: Path

        @property
        def name(self) -> str:
            return self.task.name

        def compute(self) -> Any:
            self._die("before")
            computed = self.task.compute()
            self._die("after")
            with (self.log / "computed").open("a") as opened:
                opened.write(f"{self.number}\n")
            return computed

        def _die(self, moment: str) -> None:
            mark = self.log / f"{self.number}-{moment}"
            if (self.number, moment) in self.kills and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    config = config_of(write_embeddings(tmp_path / "embeddings"), STEPS, rewrite_below=0.4)
    roots = [Location(str(tmp_path / name)) for name in ("whole", "killed")]
    for root in roots:
        write_pairs(root)
    ran: list[Task] = []

    def counting(work: Workspace, tasks: Sequence[Task]) -> None:
        ran.extend(tasks)
        run_here(work, tasks)

    whole = pipeline.curate(config, roots[0], counting)
    draw = random.Random(5)
    kills = tuple((number, draw.choice(("before", "after"))) for number in draw.sample(range(len(ran)), 3))
    numbers = iter(range(len(ran)))

    def killing(work: Workspace, tasks: Sequence[Task]) -> None:
        run_on_cluster(work, [Deadly(task, next(numbers), kills, tmp_path) for task in tasks])

    assert pipeline.curate(config, roots[1], killing) == whole
    assert files(tmp_path / "killed/datasets/chosen") == files(tmp_path / "whole/datasets/chosen")
    assert len(list(tmp_path.glob("*-before")) + list(tmp_path.glob("*-after"))) == len(kills)
    assert Counter(map(int, (tmp_path / "computed").read_text().split())) == Counter(range(len(ran)))


def start(repository: Path, config: CurateConfig, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    values = yaml.safe_dump(
        json.loads(config.model_dump_json(exclude_none=True)), default_flow_style=True, width=10_000
    )
    command = [sys.executable, "jobs/curate.py", "--set", f"curate={values}"]
    return subprocess.Popen(command, cwd=repository, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


@dataclass
class Results:
    """Watches the results of a job's tasks: which there are, and which were written again."""

    folder: Path
    present: dict[Path, int] = field(default_factory=dict)
    again: set[Path] = field(default_factory=set)

    def look(self) -> None:
        for path in self.folder.rglob("[0-9]*"):  # tasks are numbered
            with suppress(FileNotFoundError):
                inode = path.stat().st_ino
                if path.is_file() and self.present.setdefault(path, inode) != inode:
                    self.again.add(path)

    def are_there(self, number: int) -> bool:
        return len(self.present) >= number

    @contextmanager
    def watched(self) -> Iterator[None]:
        ended = Event()

        def watch() -> None:
            while not ended.wait(0.01):
                self.look()

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def until(condition: Callable[[], Any], process: "subprocess.Popen[bytes]") -> Any:
    """Wait until a condition is true, and return its value."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not (value := condition()):
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def titled(head: RayHead, kind: str) -> psutil.Process | None:
    for process in head.processes():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(process_title(kind)):
                return process
    return None


@pytest.mark.long
def test_task_actor_driver_and_cluster_may_be_killed_at_any_moment(
    ray_cluster: Cluster, repository: Path, tmp_path: Path
) -> None:
    """Each is killed at a drawn number of finished tasks; what was finished then is never done again."""
    samples = [pair(n) for n in range(3000)]
    steps = [{"step": "duplicates", "of": "pixels"}, STEPS[1], {"step": "near_duplicates", "threshold": 0.9999}]
    embeddings = {"model": str(write_tiny_clip(tmp_path / "clip"))}
    config = config_of(None, [*steps, STEPS[4], STEPS[5]], embeddings=embeddings, rewrite_below=0.4)
    write_dataset(Location(str(tmp_path / "whole")), "pairs", samples, per_shard=500, per_group=8)
    whole = curate(config, Location(str(tmp_path / "whole")))
    assert 0 < whole.rows < 3000
    draw = random.Random(11)
    environment = {"PYTHONPATH": os.pathsep.join(str(repository / name) for name in ("platform", "serve"))}
    with scratch_folder("ray") as folder, RayHead(folder, 2, environment, 600_000_000) as head:
        drivers = {**head.environment, "RAY_ADDRESS": head.driver_address}
        for number, victim in enumerate(["task", "embedder", "driver", "cluster", "task", "driver"]):
            root = Location(str(tmp_path / f"killed-{number}"))
            write_dataset(root, "pairs", samples, per_shard=500, per_group=8)
            results = Results(Path(root.uri) / "datasets/chosen/v1/curation")
            moment, delay = draw.randrange(3 if victim == "task" else 14), draw.uniform(0, 0.2)
            job = start(repository, config, {**drivers, "WARREN_STORAGE": root.uri})
            with results.watched():
                if victim != "embedder":
                    until(partial(results.are_there, moment), job)
                time.sleep(delay)
                if victim in ("task", "embedder"):
                    until(partial(titled, head, victim), job).kill()
                else:
                    job.kill()
                    job.wait()
                    if victim == "cluster":
                        head.kill()
                        head.start()
                    assert not (results.folder.parent / "manifest.json").exists()
                    job = start(repository, config, {**drivers, "WARREN_STORAGE": root.uri})
                assert job.wait(_TIMEOUT_S) == 0, (victim, moment, delay)
            assert not results.again, (victim, moment, delay)
            assert files(Path(root.uri) / "datasets/chosen") == files(tmp_path / "whole/datasets/chosen"), victim


@pytest.mark.long
def test_a_killed_job_ends_in_the_same_bytes_and_its_selection_is_trained_on(
    ray_cluster: Cluster, repository: Path, tmp_path: Path
) -> None:
    embeddings = {"model": str(write_tiny_clip(tmp_path / "clip"))}
    steps = [{"step": "duplicates"}, *STEPS[1:2], {"step": "near_duplicates", "threshold": 0.9999}, *STEPS[3:5]]
    config = config_of(None, steps, embeddings=embeddings, rewrite_below=0.4)
    roots = [Location(str(tmp_path / name)) for name in ("whole", "killed")]
    for root in roots:
        write_pairs(root)
    whole = curate(config, roots[0])
    assert 0 < whole.rows < 300

    work = tmp_path / "killed/datasets/chosen/v1/curation"
    process = start(repository, config, {**ray_cluster.driver_env, "WARREN_STORAGE": roots[1].uri})
    while not list(work.glob("*/01-cluster/assigned/*")):
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (work.parent / "manifest.json").exists()
    assert curate(config, roots[1]) == whole
    assert files(tmp_path / "killed/datasets/chosen/v1") == files(tmp_path / "whole/datasets/chosen/v1")

    stage = tiny_stage("chosen@v1", template="plain", duration=Duration(steps=2))
    run = train_stage(
        tiny_recipe(pretrain=stage, finetune=None), "pretrain", Resources(num_workers=1), roots[1], "on-a-selection"
    )
    assert run.checkpoints.steps()[-1] == 2
