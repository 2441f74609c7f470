"""The jobs as people run them: bad input gives one line, a non-zero exit code and the status FAILED."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from factories import make_image
from warren.cli.job import run_job
from warren.storage import Location

CONFIG_ERRORS: list[tuple[str, list[str], dict[str, str], str]] = [
    ("pretrain", ["--recipe", "dmeo"], {}, "no recipe named 'dmeo'; did you mean 'demo'?"),
    ("pretrain", ["--set", "pretrain.sed=1"], {}, "unknown key 'pretrain.sed'; did you mean 'seed'?"),
    ("pretrain", ["--set", "pretrain.seed=one"], {}, "pretrain.seed: Input should be a valid integer (given: 'one')"),
    ("pretrain", ["--resources", "lapto"], {}, "did you mean 'laptop'?"),
    ("ingest", [], {"WARREN_STORAGE": ""}, "WARREN_STORAGE is not set"),
    ("ingest", [], {"WARREN_STORAGE": "store"}, "is a relative path"),
    ("ingest", [], {"WARREN_STORAGE": "gs://bucket"}, "storage is one of s3://, file://"),
]
CLUSTER_ERRORS: list[tuple[str, list[str], dict[str, str], str]] = [
    ("ingest", ["--set", "ingest.path=/nowhere"], {}, "ingest.path '/nowhere' holds no train/questions.json"),
    ("ingest", ["--set", "ingest.limit_images=3"], {"WARREN_STORAGE": "s3://nowhere/x"}, "bucket 'nowhere' does not"),
    ("ingest", ["--limit", "3"], {}, "--limit and --report go with --dry-run"),
    ("pretrain", [], {"WARREN_STORAGE": "s3://nowhere/x"}, "bucket 'nowhere' does not exist"),
    ("pretrain", [], {"AWS_SECRET_ACCESS_KEY": "wrong"}, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("pretrain", ["--set", "pretrain.dataset=none@v1"], {}, "no dataset 'none@v1'"),
    ("finetune", ["--set", "finetune.dataset=none"], {}, "expected name@version"),
    ("evaluate", ["--run", "never"], {}, "run 'never'"),
    ("release", ["--run", "never"], {}, "run 'never'"),
]


def run(repository: Path, job: str, arguments: list[str], environment: dict[str, str]) -> Any:
    """Run a job in a process of its own."""
    command = [sys.executable, f"jobs/{job}.py", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, timeout=120)


def run_here(repository: Path, job: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a job in this process, which is connected to the cluster already, and return exit code and stderr."""
    module = runpy.run_path(str(repository / "jobs" / f"{job}.py"), run_name="job")
    code = run_job(module["main"], module["__doc__"], arguments, extend=module.get("options"))
    return code, capsys.readouterr().err


def assert_one_line(stderr: str, message: str) -> None:
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, stderr
    assert message in lines[0]
    assert "Traceback" not in stderr


@pytest.fixture(autouse=True)
def jobs_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "jobs"))


@pytest.mark.parametrize(("job", "arguments", "environment", "message"), CONFIG_ERRORS)
def test_wrong_settings_are_refused_before_ray_starts(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: str,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    def no_cluster(*_: object) -> None:
        raise AssertionError("connected to Ray")

    monkeypatch.setattr("warren.cluster.session.connect", no_cluster)
    for name, value in {"WARREN_STORAGE": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    code, stderr = run_here(repository, job, arguments, capsys)
    assert code == 1
    assert_one_line(stderr, message)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("job", "arguments", "environment", "message"), CLUSTER_ERRORS)
def test_wrong_input_is_one_line(
    repository: Path,
    storage_root: Location,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: str,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in {"WARREN_STORAGE": (storage_root / "jobs").uri, **environment}.items():
        monkeypatch.setenv(name, value)
    code, stderr = run_here(repository, job, arguments, capsys)
    assert code == 1
    assert_one_line(stderr, message)


@pytest.mark.parametrize("job", ["ingest", "release"])
def test_help_is_short_and_shows_how_to_submit(repository: Path, job: str) -> None:
    found = run(repository, job, ["--help"], {})
    assert found.returncode == 0
    assert f"python jobs/{job}.py" in found.stdout
    assert len(found.stdout.splitlines()) < 30


def test_a_job_that_fails_has_the_status_failed(repository: Path, ray_cluster: Any) -> None:
    client = JobSubmissionClient(ray_cluster.dashboard_url)
    program = str(Path(sys.executable).parent / "ray")
    command = [program, "job", "submit", "--working-dir", ".", "--submission-id", "fails", "--"]
    command += ["python", "jobs/pretrain.py", "--set", "pretrain.dataset=none@v1"]
    found = subprocess.run(
        command, cwd=repository, env={**os.environ, **ray_cluster.env}, capture_output=True, text=True, timeout=120
    )
    assert found.returncode != 0
    assert client.get_job_status("fails") == "FAILED"
    assert "error: no dataset 'none@v1'" in client.get_job_logs("fails")


@pytest.mark.usefixtures("ray_cluster")
def test_an_unreadable_image_stops_the_ingest_and_nothing_is_complete(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / "raw" / split / "images").mkdir(parents=True)
        rows = [["what color is the circle?", "red", 0], ["what color is the circle?", "blue", 1]]
        (tmp_path / "raw" / split / "questions.json").write_text(json.dumps(rows))
        (tmp_path / "raw" / split / "images" / "0.png").write_bytes(make_image())
        (tmp_path / "raw" / split / "images" / "1.png").write_bytes(make_image()[:70])
    store = tmp_path / "store"
    monkeypatch.setenv("WARREN_STORAGE", str(store))
    arguments = ["--set", f"ingest.path={tmp_path / 'raw'}"]
    code, stderr = run_here(repository, "ingest", arguments, capsys)
    assert code == 1
    assert_one_line(stderr, "train-00001-caption': the image cannot be decoded")
    assert not list(store.rglob("manifest.json"))
    assert list(store.rglob("quarantine/*.parquet"))
    allowed = [*arguments, "--set", "ingest.max_quarantined_fraction=0.5"]
    code, stderr = run_here(repository, "ingest", allowed, capsys)
    assert code == 0, stderr
    assert len(list(store.rglob("manifest.json"))) == 3
    again = [*arguments, "--set", "ingest.questions_per_conversation=3"]
    code, stderr = run_here(repository, "ingest", again, capsys)
    assert code == 1
    assert_one_line(
        stderr, "is kept as it is, but it is not what this ingest would make (ingest.questions_per_conversation"
    )
