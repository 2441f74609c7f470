"""`jobs/release.py` onto a Serve instance that an operator configured: keys, limits and other applications stay."""

import hashlib
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import ray
import yaml

from factories import colour_sample, tiny_recipe, write_dataset
from serve_endpoint import Endpoint, chat, publish_random_model
from warren.cli.job import run_job
from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve import golden_task
from warren.cluster.serve.endpoint import dashboard_url
from warren.cluster.serve.golden_task import write_golden
from warren.config import Recipe
from warren.data.manifest import read_manifest
from warren.evaluate.accuracy import score
from warren.evaluate.evaluation_report import Evaluation
from warren.inference.testing import save_random_model
from warren.release import read_alias
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
KEY = "sk-operator"
NAME = "rolled"


THEIRS = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Theirs:
    def __call__(self) -> str:
        return "theirs"

app = Theirs.bind()
"""


def ask(endpoint: Endpoint, key: str | None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": NAME, "max_tokens": 1, "messages": [{"role": "user", "content": "well?"}]}
    return httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def others_application(folder: Path) -> dict[str, Any]:
    """Return an application that is none of Warren's."""
    (folder / "theirs.py").write_text(THEIRS)
    runtime_env = {"env_vars": {"PYTHONPATH": str(folder)}}
    return {"name": "other", "route_prefix": "/other", "import_path": "theirs:app", "runtime_env": runtime_env}


@pytest.fixture
def release(
    repository: Path, root_of_runs: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., tuple[int, str]]:
    """Run the job in this process, which is connected to the cluster, and return exit code and stderr."""
    monkeypatch.syspath_prepend(str(repository / "jobs"))
    monkeypatch.setenv("WARREN_STORAGE", root_of_runs.uri)
    module = runpy.run_path(str(repository / "jobs" / "release.py"), run_name="job")

    def job(recipe: Recipe, *options: str) -> tuple[int, str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True)))
        arguments = ["--recipe", str(file), "--run", "run", *options]
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
    found = Evaluation(run.name, checkpoint.step, identity, score([True], ["red"]), {"red": [1, 1.0]})
    evaluations_of(run).write(found, [{"key": "a"}])


def test_a_driver_that_connected_before_the_dashboard_had_an_address_finds_it(
    ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(dashboard_url=""))
    assert dashboard_url() == ray_cluster.head.dashboard_url


def test_a_release_changes_what_serves_and_nothing_else_and_one_that_fails_is_undone(
    endpoint: Endpoint,
    release: Callable[..., tuple[int, str]],
    root_of_runs: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, recipe = root_of_runs, tiny_recipe(NAME)
    write_dataset(root, "test", [colour_sample(0)])
    run = Run(root / "runs" / "run")
    first = publish_random_model(root, "v1", tmp_path / "first", name=NAME)
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    other = others_application(tmp_path)
    settings: dict[str, Any] = {"num_slots": 2, "num_cpus": 0.25, "max_replicas": 2, "max_concurrent_requests": 3}
    closed = chat(first, model_name=NAME, api_keys_file=str(keys), **settings)
    closed["runtime_env"] = {"env_vars": {"OPERATORS": "own"}}
    endpoint.deploy(other, closed)
    for name in ("other", "chat"):
        endpoint.wait_for_status("RUNNING", name=name)
    assert (ask(endpoint, None).status_code, ask(endpoint, KEY).json()["system_fingerprint"]) == (401, "v1")
    others = endpoint.pids("Theirs", name="other")

    second = commit(run, 2, tmp_path)
    code, message = release(recipe)
    assert code == 1
    assert "was not measured as the gate asks" in message
    assert "measured so far: nothing. Measure it first: python jobs/evaluate.py --recipe" in message
    assert ask(endpoint, KEY).json()["system_fingerprint"] == "v1"

    measure(root, run, recipe, second)
    assert release(recipe)[0] == 0
    check_kept(endpoint, closed, other, root / "releases" / NAME / "run-00000002")
    assert read_alias(root, NAME, "stable") == "run-00000002"

    closed = declare(endpoint, release, recipe, closed, keys, tmp_path)

    measure(root, run, recipe, commit(run, 3, tmp_path, broken=True))
    code, message = release(recipe)
    assert code == 1
    assert "no golden cases can be made of" in message
    assert read_alias(root, NAME, "candidate") == "run-00000002"

    measure(root, run, recipe, commit(run, 4, tmp_path))
    with monkeypatch.context() as patch:
        # The weights of one step with the cases of another: it loads, but is not the model that was trained.
        trained = run.checkpoints.part(second, MODEL_FOLDER)
        patch.setattr(golden_task, "write_golden", lambda size, _, folder: write_golden(size, trained, folder))
        code, message = release(recipe)
    assert code == 1
    assert "ReleaseError: golden case 'wide image': log-probability of token" in message
    assert f"it was undone, and {root}/releases/{NAME}/run-00000002 keeps serving" in message
    assert len([line for line in message.splitlines() if line.startswith("error:")]) == 1
    check_kept(endpoint, closed, other, root / "releases" / NAME / "run-00000002")
    assert endpoint.pids("Theirs", name="other") == others, "other applications are not even restarted"
    assert read_alias(root, NAME, "stable") == "run-00000002"
    assert read_alias(root, NAME, "candidate") == "run-00000004"


def declare(
    endpoint: Endpoint, release: Callable[..., tuple[int, str]], recipe: Recipe, closed: Any, keys: Path, folder: Path
) -> dict[str, Any]:
    """Release with an endpoint file: what it says is what the application has, and what it does not say is gone."""
    file = folder / "mine.yaml"
    settings = {"num_slots": 3, "num_cpus": 0.25, "max_replicas": 1, "api_keys_file": str(keys), "web_page": True}
    file.write_text(yaml.safe_dump({"release": NAME, "settings": settings, "serve": {"http": {"port": 9}}}))
    code, message = release(recipe, "--endpoint", str(file), "--set", "endpoint.settings.ingress_num_cpus=0.1")
    assert code == 0, message
    assert "endpoint: port 9 has no effect, Serve runs with" in message
    declared = endpoint.application()["deployed_app_config"]
    args = declared["args"]
    assert "max_concurrent_requests" not in args
    assert {key: args[key] for key in settings} == settings
    assert (args["model_name"], args["ingress_num_cpus"]) == (NAME, 0.1)
    assert declared["runtime_env"]["env_vars"]["OPERATORS"] == "own"
    assert ask(endpoint, None).status_code == 401
    assert httpx.get(f"{endpoint.url}/", timeout=60).status_code == 200, "the page that the file switched on"
    return dict(declared)


def check_kept(endpoint: Endpoint, closed: dict[str, Any], other: dict[str, Any], release: Location) -> None:
    chat = endpoint.application()
    assert chat["status"] == "RUNNING"
    assert chat["deployed_app_config"] == {**closed, "args": {**closed["args"], "release": release.uri}}
    assert endpoint.application("other")["deployed_app_config"] == other
    assert (ask(endpoint, None).status_code, ask(endpoint, KEY).json()["system_fingerprint"]) == (401, release.name)
