"""`jobs/release.py`, an endpoint file and the real engine: deployed, rolled into under requests, undone, deleted."""

import hashlib
import runpy
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import ray
import yaml
from openai import OpenAI

from factories import colour_sample, tiny_recipe, write_dataset
from serve_endpoint import Endpoint
from warren.cli.job import run_job
from warren.cli.rollout import main as rollout_command
from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve import golden_task
from warren.cluster.serve.endpoint import dashboard_url
from warren.cluster.serve.golden_task import write_golden
from warren.config import Recipe
from warren.data.manifest import read_manifest
from warren.evaluate.accuracy import score
from warren.evaluate.evaluation_report import Evaluation
from warren.inference.testing import save_random_model
from warren.release import read_alias, read_deployment
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
KEY = "sk-operator"
NAME = "rolled"
POLICY = {"steps": [0.5, 1.0], "step_s": 1.0, "max_step_s": 3.0, "min_requests": 500, "drain_s": 1.0, "poll_s": 0.5}


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


class Clients:
    """Two of OpenAI's clients that ask one question after the other, one of them for streams."""

    def __init__(self, url: str) -> None:
        self._client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)
        self.answers: Counter[str | None] = Counter()
        self.failures: list[str] = []
        self._stopped = threading.Event()

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(is_stream,)) for is_stream in (False, True)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
            self._client.close()

    def _run(self, is_stream: bool) -> None:
        while not self._stopped.wait(0.1):
            try:
                self.answers[self._streamed() if is_stream else self._whole()] += 1
            except Exception as error:
                self.failures.append(repr(error))

    def _whole(self) -> str | None:
        messages: Any = [{"role": "user", "content": "well?"}]
        return self._client.chat.completions.create(model=NAME, messages=messages, max_tokens=4).system_fingerprint

    def _streamed(self) -> str | None:
        messages: Any = [{"role": "user", "content": "and?"}]
        stream = self._client.chat.completions.create(model=NAME, messages=messages, max_tokens=6, stream=True)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason, "the stream was cut"
        (version,) = {chunk.system_fingerprint for chunk in chunks}
        return version


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
        code = run_job(module["main"], module["__doc__"], arguments, extend=module["options"], check=module["check"])
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


def test_releases_roll_into_a_declared_endpoint_and_worse_ones_are_undone(
    endpoint: Endpoint,
    release: Callable[..., tuple[int, str]],
    root_of_runs: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    root, recipe, run = root_of_runs, tiny_recipe(NAME), Run(root_of_runs / "runs" / "run")
    write_dataset(root, "test", [colour_sample(0)])
    other = others_application(tmp_path)
    endpoint.deploy(other)
    endpoint.wait_for_status("RUNNING", name="other")
    others = endpoint.pids("Theirs", name="other")
    declared = declare(tmp_path)

    first = commit(run, 1, tmp_path)
    code, message = release(recipe, *declared)
    assert code == 1
    assert "was not measured as the gate asks" in message
    assert endpoint.application() == {}, "nothing is deployed before something is released"
    measure(root, run, recipe, first)
    code, message = release(recipe, *declared)
    assert code == 0, message
    assert "endpoint: port 9 has no effect, Serve runs with" in message
    assert "endpoint: chat is new, at /, with API keys" in message
    assert (ask(endpoint, None).status_code, ask(endpoint, KEY).json()["system_fingerprint"]) == (401, "run-00000001")
    args = endpoint.application()["deployed_app_config"]["args"]
    assert (args["release"], args["rollout"]) == (f"{root}/releases/{NAME}", POLICY)
    assert read_alias(root, NAME, "stable") == "run-00000001"
    kept = endpoint.pids("Ingress") | endpoint.pids("Controller")

    clients = Clients(endpoint.url)
    with clients.asking():
        measure(root, run, recipe, commit(run, 2, tmp_path))
        code, message = release(recipe, *declared)
        assert code == 0, message
        assert "gets traffic, step 1" in message
        assert "endpoint:" not in message.replace("endpoint: port", ""), "it runs as declared, so nothing was deployed"
        assert read_alias(root, NAME, "stable") == "run-00000002"

        measure(root, run, recipe, commit(run, 3, tmp_path))
        with monkeypatch.context() as patch:
            # The weights of one step with the cases of another: it loads, but is not the model that was trained.
            trained = run.checkpoints.part(first, MODEL_FOLDER)
            patch.setattr(golden_task, "write_golden", lambda size, _, folder: write_golden(size, trained, folder))
            code, message = release(recipe)
        assert code == 1
        assert "run-00000003 was undone, run-00000002 serves: its engines did not start" in message
        assert "golden case 'wide image': log-probability of token" in message
        assert len([line for line in message.splitlines() if line.startswith("error:")]) == 1

        measure(root, run, recipe, commit(run, 4, tmp_path, broken=True))
        code, message = release(recipe)
        assert (code, "no golden cases can be made of" in message) == (1, True)
    assert clients.failures == []
    assert clients.answers.keys() == {"run-00000001", "run-00000002"}
    assert endpoint.pids("Ingress") | endpoint.pids("Controller") == kept, "a release restarts neither"
    assert endpoint.application("other")["deployed_app_config"] == other
    assert endpoint.pids("Theirs", name="other") == others, "other applications are not even restarted"

    capsys.readouterr()
    assert rollout_command("", ["delete", NAME, "--json"]) == 0
    assert '"chat-engine-run-00000002"' in capsys.readouterr().out
    assert [endpoint.application(name) for name in ("chat", "chat-engine-run-00000002")] == [{}, {}]
    assert endpoint.pids("Theirs", name="other") == others
    assert read_deployment(root, NAME, "chat") == ()
    assert read_alias(root, NAME, "stable") == "run-00000002", "the registry stays"


def declare(folder: Path) -> tuple[str, ...]:
    """Write an endpoint file, and return the options of the job that name it."""
    keys, file = folder / "keys", folder / "mine.yaml"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    settings = {"num_slots": 3, "num_cpus": 0.25, "max_replicas": 1, "max_new_tokens": 4, "api_keys_file": str(keys)}
    declared = {"release": NAME, "settings": settings, "rollout": POLICY, "serve": {"http": {"port": 9}}}
    file.write_text(yaml.safe_dump(declared))
    return "--endpoint", str(file), "--set", "endpoint.settings.ingress_num_cpus=0.1"
