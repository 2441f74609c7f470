"""`ray job submit` with what its users give it: variables, packages, an id; and stopped while the job starts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util import placement_group_table
from ray.util.state import list_actors

from factories import colour_sample, write_dataset
from warren.storage import Location
from warren.testbed.chaos import titled

DRIVER = """
import json, os
import ray
from warren.cluster.session import connect, job_environment, shipped_packages
connect()

@ray.remote
def look():
    import given, warren
    names = ("WARREN_STORAGE", "AWS_REGION", "TOKENIZERS_PARALLELISM", "MALLOC_ARENA_MAX")
    return [given.VALUE, os.getcwd() != "/", {name: os.environ.get(name) for name in names}]

print("seen:", json.dumps([*ray.get(look.remote()), len(shipped_packages()), sorted(job_environment())]))
"""


def ray_job(cluster: Any, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a `ray job` command as a shell does."""
    command = [str(Path(sys.executable).parent / "ray"), "job", *arguments]
    env = {**os.environ, **cluster.env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_job_is_given_reaches_every_worker_and_wins(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "__init__.py").write_text("VALUE = 7\n")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "driver.py").write_text(DRIVER)
    variables = {"WARREN_STORAGE": "/given", "AWS_REGION": "moon-1", "TOKENIZERS_PARALLELISM": "true"}
    runtime_env = json.dumps({"env_vars": variables, "py_modules": [str(tmp_path / "given")]})
    options = ["--working-dir", "work", "--runtime-env-json", runtime_env, "--submission-id", "given"]
    found = ray_job(ray_cluster, tmp_path, "submit", *options, "--", "python", "driver.py")
    assert found.returncode == 0, found.stdout + found.stderr
    line = next(line for line in found.stdout.splitlines() if line.startswith("seen: "))
    value, has_folder, seen, num_packages, given = json.loads(line.removeprefix("seen: "))
    assert (value, has_folder) == (7, True)
    assert seen == {**variables, "MALLOC_ARENA_MAX": "1"}
    assert num_packages == 3  # the job's own, and Warren's two
    assert given == sorted(variables)


SHARED = "_AutoscalingCoordinatorActor"  # Ray Data's, one a cluster


def actors(job_id: str) -> dict[str, str]:
    """Return the actors of a job that are not dead, with their states."""
    found = list_actors(filters=[("job_id", "=", job_id)], limit=1000, raise_on_missing_output=False)
    return {actor.class_name: actor.state for actor in found if actor.state != "DEAD" and actor.class_name != SHARED}


def wait_until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def groups_there_are() -> list[str]:
    return [group["name"] for group in placement_group_table().values() if group["state"] == "CREATED"]


@pytest.fixture
def datasets(s3_root: Location) -> Location:
    """A storage that has what the demo recipe's first stage reads."""
    write_dataset(s3_root, "easy-vqa-captions", [colour_sample(i, caption=True) for i in range(640)])
    write_dataset(s3_root, "easy-vqa-train", [colour_sample(i) for i in range(64)])
    return s3_root


@pytest.mark.parametrize("moment", ["TrainController", pytest.param("RayTrainWorker", marks=pytest.mark.long)])
def test_a_job_stopped_while_it_starts_leaves_nothing_running(
    ray_cluster: Any, repository: Path, datasets: Location, moment: str
) -> None:
    client = JobSubmissionClient(ray_cluster.dashboard_url)  # `ray job` takes seconds to import, and calls the same
    runtime_env = {"working_dir": str(repository), "env_vars": {"WARREN_STORAGE": datasets.uri}}
    name = client.submit_job(entrypoint="python jobs/pretrain.py", runtime_env=runtime_env)
    wait_until(lambda: bool(client.get_job_info(name).job_id), lambda: client.get_job_logs(name))
    job_id = client.get_job_info(name).job_id
    wait_until(lambda: actors(job_id).get(moment) == "ALIVE", lambda: client.get_job_logs(name))
    assert client.stop_job(name)
    wait_until(lambda: client.get_job_status(name) == JobStatus.STOPPED, lambda: client.get_job_logs(name))
    wait_until(lambda: not actors(job_id) and not groups_there_are(), lambda: (actors(job_id), groups_there_are()))
    log = client.get_job_logs(name)
    assert not [word for word in ("Traceback", "SIGTERM", "PC: @", "Error") if word in log], log


def test_ctrl_c_ends_a_driver_without_a_word(ray_cluster: Any, repository: Path, datasets: Location) -> None:
    env = {**os.environ, **ray_cluster.driver_env, "WARREN_STORAGE": datasets.uri}
    command = [sys.executable, "jobs/pretrain.py", "--set", "resources.num_workers=1"]
    driver = subprocess.Popen(command, cwd=repository, env=env, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool(titled(ray_cluster.head, "worker")), lambda: driver.poll())
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert not [word for word in ("Traceback", "SIGINT", "error:") if word in said], said
    wait_until(lambda: not titled(ray_cluster.head, "worker"), lambda: titled(ray_cluster.head, "worker"))
