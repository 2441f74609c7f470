"""`jobs/release.py` onto a Serve instance that an operator configured: keys, limits and other applications stay."""

import hashlib
import runpy
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from factories import colour_sample, tiny_recipe, write_dataset
from warren.cli.job import run_job
from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.config import Recipe
from warren.data.manifest import read_manifest
from warren.evaluate.report import Evaluation
from warren.evaluate.scoring import score
from warren.inference.testing import save_random_model
from warren.release import publish, read_alias
from warren.storage import FileEntry, Location, digest_file
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
KEY = "sk-operator"
NAME = "rolled"


class Served:
    """What Serve runs, and what it answers."""

    def __init__(self, cluster: Any) -> None:
        self.rest = f"{cluster.dashboard_url}/api/serve/applications/"
        self.url = f"http://127.0.0.1:{cluster.serve_port}"
        self.port = cluster.serve_port

    def deploy(self, *applications: dict[str, Any]) -> None:
        options = {"host": "127.0.0.1", "port": self.port}
        config = {"proxy_location": "HeadOnly", "http_options": options, "applications": list(applications)}
        httpx.put(self.rest, json=config, timeout=60).raise_for_status()
        self.until_running(*(each["name"] for each in applications))

    def until_running(self, *names: str) -> None:
        import time

        patience = time.monotonic() + 150
        while any(self.application(name)["status"] != "RUNNING" for name in names):
            assert time.monotonic() < patience, [self.application(name)["status"] for name in names]
            time.sleep(0.5)

    def application(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(self.rest, timeout=60).json()["applications"][name]
        return found

    def pids(self, name: str) -> set[int]:
        deployments = self.application(name)["deployments"].values()
        return {replica["pid"] for each in deployments for replica in each["replicas"] if replica["state"] == "RUNNING"}

    def ask(self, key: str | None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"model": NAME, "max_tokens": 1, "messages": [{"role": "user", "content": "well?"}]}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def application(name: str, route: str, release: Location, **args: Any) -> dict[str, Any]:
    settings = {"release": release.uri, "num_slots": 2, "num_cpus": 0.25, "ingress_num_cpus": 0.1, **args}
    return {"name": name, "route_prefix": route, "import_path": "warren_serve.app:build", "args": settings}


@pytest.fixture
def served(ray_cluster: Any) -> Iterator[Served]:
    yield Served(ray_cluster)
    httpx.delete(f"{ray_cluster.dashboard_url}/api/serve/applications/", timeout=60)


@pytest.fixture
def release(
    repository: Path, root_of_runs: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[[Recipe], tuple[int, str]]:
    """Run the job in this process, which is connected to the cluster, and return exit code and stderr."""
    monkeypatch.syspath_prepend(str(repository / "jobs"))
    monkeypatch.setenv("WARREN_STORAGE", root_of_runs.uri)
    module = runpy.run_path(str(repository / "jobs" / "release.py"), run_name="job")

    def job(recipe: Recipe) -> tuple[int, str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True)))
        arguments = ["--recipe", str(file), "--run", "run"]
        code = run_job(module["main"], module["__doc__"], arguments, extend=module["options"])
        return code, capsys.readouterr().err

    return job


@pytest.fixture
def root_of_runs(storage_root: Location) -> Location:
    return storage_root / "releasing"


def commit(run: Run, step: int, folder: Path, broken: bool = False) -> CheckpointManifest:
    """Commit a checkpoint of a random model; a broken one does not load."""
    local = folder / str(step)
    save_random_model(local / MODEL_FOLDER, seed=step)
    if broken:
        (local / MODEL_FOLDER / "model.safetensors").write_bytes(b"not weights")
    manifest = CheckpointManifest(step, 1, 0, "f", tuple(run.checkpoints.upload(step, "a1", local)))
    run.checkpoints.commit(manifest)
    return manifest


def measure(root: Location, run: Run, recipe: Recipe, checkpoint: CheckpointManifest) -> None:
    """Write the evaluation that the recipe's gate asks for."""
    config = recipe.require("evaluate")
    identity = identify(config, checkpoint, read_manifest(root, config.dataset))
    found = Evaluation(run.name, checkpoint.step, identity, asdict(score([True], ["red"])), {"red": [1, 1.0]})
    evaluations_of(run).write(found, [{"key": "a"}])


def published(root: Location, name: str, folder: Path) -> Location:
    """Publish a random model as another release."""
    save_random_model(folder / name, seed=9)
    files = tuple(FileEntry(path.name, *digest_file(path)) for path in sorted((folder / name).iterdir()))
    return publish(root, name, "v1", Location.parse(str(folder / name)), files, {}, {})


def test_a_release_changes_what_serves_and_nothing_else_and_one_that_fails_is_undone(
    served: Served, release: Callable[[Recipe], tuple[int, str]], root_of_runs: Location, tmp_path: Path
) -> None:
    root, recipe = root_of_runs, tiny_recipe(NAME)
    write_dataset(root, "test", [colour_sample(0)])
    run = Run(root / "runs" / "run")
    first = published(root, NAME, tmp_path)
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    other = application("other", "/other", published(root, "foreign", tmp_path))
    closed = application(
        "chat", "/", first, model_name=NAME, api_keys_file=str(keys), max_replicas=2, max_concurrent_requests=3
    )
    closed["runtime_env"] = {"env_vars": {"OPERATORS": "own"}}
    served.deploy(other, closed)
    assert (served.ask(None).status_code, served.ask(KEY).json()["system_fingerprint"]) == (401, "v1")
    others = served.pids("other")

    second = commit(run, 2, tmp_path)
    code, message = release(recipe)
    assert code == 1
    assert "was not measured as the gate asks" in message
    assert "measured so far: nothing. Measure it first: python jobs/evaluate.py --recipe" in message
    assert served.ask(KEY).json()["system_fingerprint"] == "v1"

    measure(root, run, recipe, second)
    assert release(recipe)[0] == 0
    check_kept(served, closed, other, root / "releases" / NAME / "run-00000002")
    assert read_alias(root, NAME, "stable") == "run-00000002"

    measure(root, run, recipe, commit(run, 3, tmp_path, broken=True))
    code, message = release(recipe)
    assert code == 1
    assert f"it was undone, and {root}/releases/{NAME}/run-00000002 keeps serving" in message
    assert len([line for line in message.splitlines() if line.startswith("error:")]) == 1
    check_kept(served, closed, other, root / "releases" / NAME / "run-00000002")
    assert served.pids("other") == others, "other applications are not even restarted"
    assert read_alias(root, NAME, "stable") == "run-00000002"
    assert read_alias(root, NAME, "candidate") == "run-00000003"


def check_kept(served: Served, closed: dict[str, Any], other: dict[str, Any], release: Location) -> None:
    chat = served.application("chat")
    assert chat["status"] == "RUNNING"
    assert chat["deployed_app_config"] == {**closed, "args": {**closed["args"], "release": release.uri}}
    assert served.application("other")["deployed_app_config"] == other
    assert (served.ask(None).status_code, served.ask(KEY).json()["system_fingerprint"]) == (401, release.name)
