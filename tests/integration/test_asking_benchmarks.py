"""Benchmarks asked on the session's cluster and of its endpoint: killed in every way, nothing stored is asked again."""

import json
import os
import runpy
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmark_asking import ask_here, write_benchmark
from cluster_fixtures import SECRET_MARK, Cluster
from secret_search import places_of_secrets
from serve_endpoint import Endpoint, chat, publish_random_model
from warren.cli.job import run_job
from warren.cluster.batch.benchmark import ask_on_cluster, load_asker
from warren.config import Resources
from warren.data.importers.easy_vqa import easy_vqa
from warren.errors import QuarantineError, root_cause
from warren.evaluate.answer_file import read_stored
from warren.evaluate.ask_endpoint import ask_at_endpoint, find_model
from warren.evaluate.benchmark_result import finish
from warren.evaluate.benchmark_run import BenchmarkRun, QuestionSource
from warren.evaluate.endpoint_client import EndpointOptions
from warren.evaluate.model_source import ModelSource
from warren.inference.engine import EngineError
from warren.storage import Location, StoredFiles
from warren.storage.scratch import scratch_folder
from warren.testbed import RayHead

pytestmark = pytest.mark.timeout(900)
ONE = Resources(num_workers=1, num_evaluators=1, cpus_per_replica=0.5)
NUM_QUESTIONS, PIECE = 60, 4
MODEL: dict[str, Any] = {"max_position_embeddings": 256}
BAD = ["q0002", "q0005"]
RESULTS = ("answers.parquet", "scores.json")


def run_in(folder: Location, benchmark: str, release: Location) -> tuple[BenchmarkRun, StoredFiles]:
    source = ModelSource.of_release(release.uri, release)
    asked = QuestionSource.of(benchmark, None)
    return BenchmarkRun(asked, source.model, folder, None, PIECE), source.files


def start_job(repository: Path, arguments: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    sets = [f"resources.{key}={value}" for key, value in {"num_evaluators": 1, "cpus_per_replica": 0.5}.items()]
    command = [sys.executable, "jobs/evaluate.py", *arguments, *(word for each in sets for word in ("--set", each))]
    return subprocess.Popen(command, cwd=repository, env={**os.environ, **environment}, stderr=subprocess.PIPE)


def stored(folder: Location) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "pieces").list()}


def evaluators(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if "_Evaluator" in (title := " ".join(process.cmdline())) and title.startswith("ray::"):
                found.append(process)
    return found


def wait_until(holds: Callable[[], object], timeout_s: float = 400.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def killing_the_evaluator(cluster: Cluster, folder: Location, num_pieces: int, killed: list[int]) -> threading.Thread:
    """Kill the evaluator once so many pieces are stored, and write down its process."""

    def kill() -> None:
        wait_until(lambda: len((folder / "pieces").list()) >= num_pieces)
        for process in evaluators(cluster.head.processes()):
            process.kill()
            killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def counting(counter: Path) -> Callable[[StoredFiles, int], Any]:
    """Return what loads a model that writes down every question it is asked, before it answers."""

    def load(model: StoredFiles, max_new_tokens: int) -> Any:
        asker = load_asker(model, max_new_tokens)
        ask = asker.ask

        def counted(prepared: Any, attempt: str = "") -> Any:
            with counter.open("a") as file:
                file.write("".join(f"{question.key}\n" for question in prepared.piece.questions))
            time.sleep(0.05)  # a kill comes while something is asked
            return ask(prepared, attempt)

        asker.ask = counted  # type: ignore[method-assign]
        return asker

    return load


def test_a_killed_run_ends_in_the_same_bytes_asks_nothing_stored_again_and_an_endpoint_answers_alike(
    ray_cluster: Cluster,
    endpoint: Endpoint,
    storage_root: Location,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = publish_random_model(storage_root, "asked", tmp_path / "model", name="asked", **MODEL)
    endpoint.deploy(chat(release, num_slots=3, max_kv_bytes=1 << 30))  # it starts while the cluster is asked
    benchmark = write_benchmark(tmp_path / "data", NUM_QUESTIONS, bad=True)
    whole, broken = storage_root / "asked/whole", storage_root / "asked/broken"

    run, _ = run_in(whole, benchmark, release)
    ask_here(run, tmp_path / "model")  # without Ray, and undisturbed
    with pytest.raises(QuarantineError, match="2 of 60 questions failed"):
        finish(run)
    assert finish(run, max_failed_fraction=0.1).report["failed"] == BAD

    # The evaluator is killed while it asks; the long test kills the driver and the cluster too.
    run, files = run_in(broken, benchmark, release)
    counter = tmp_path / "asked"
    killed: list[int] = []
    killer = killing_the_evaluator(ray_cluster, broken, 2, killed)
    assert ask_on_cluster(run, files, ONE, counting(counter)) == (NUM_QUESTIONS - len(BAD), 0)
    killer.join()
    assert killed
    asked = Counter(counter.read_text().split())
    assert len(asked) == NUM_QUESTIONS
    twice = [key for key, count in asked.items() if count > 1]
    assert len(twice) <= PIECE, "only the piece that the evaluator died with is asked again"

    where = ["--out", broken.uri, "--questions-per-piece", str(PIECE), "--max-failed-fraction", "0.1"]
    asks = ["--benchmark", benchmark, "--release", "asked/asked", *where]
    monkeypatch.syspath_prepend(str(repository / "jobs"))
    monkeypatch.setenv("WARREN_STORAGE", storage_root.uri)
    job = runpy.run_path(str(repository / "jobs/evaluate.py"), run_name="job")  # here, where torch is imported
    capsys.readouterr()
    assert run_job(job["main"], job["__doc__"], asks, extend=job["options"], needs=()) == 0
    assert f"(0 questions asked, {NUM_QUESTIONS} answered before)" in capsys.readouterr().err
    for name in RESULTS:
        assert (broken / name).read_bytes() == (whole / name).read_bytes()

    check_endpoint(endpoint, benchmark, whole, tmp_path)
    planted = {"planted": f"a line with {SECRET_MARK} in it"}  # the search finds this one, and nothing else
    assert places_of_secrets(ray_cluster, storage_root / "asked", release, shown=planted) == ["planted"]


def check_endpoint(endpoint: Endpoint, benchmark: str, whole: Location, tmp_path: Path) -> None:
    """The release's endpoint gives the answers that the release gives on the cluster."""
    endpoint.wait_for_status("RUNNING")
    options = EndpointOptions(endpoint.url, concurrency=5)
    folder = Location.parse(str(tmp_path / "endpoint"))
    run = BenchmarkRun(QuestionSource.of(benchmark, None), find_model(options), folder, None, PIECE)
    assert ask_at_endpoint(run, options)[1] == 0
    finish(run, max_failed_fraction=0.1)
    here, there = (read_stored(each / "answers.parquet")[0] for each in (whole, folder))
    assert [row.key for row in there if row.error] == BAD
    assert [(row.answer, row.num_tokens) for row in there] == [(row.answer, row.num_tokens) for row in here]
    assert len({row.answer for row in here}) > NUM_QUESTIONS / 3, "answers that are all alike show nothing"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_2000_questions_killed_three_times_give_the_bytes_of_an_unbroken_run(
    s3_server: Any, storage_root: Location, repository: Path, tmp_path: Path
) -> None:
    """The evaluator, the driver and the whole cluster are killed, in a cluster of this test's own."""
    benchmark = easy_vqa_benchmark(tmp_path / "easy-vqa", 2000)
    publish_random_model(storage_root, "long", tmp_path / "model", name="easy", **MODEL)
    whole, broken = storage_root / "easy/whole", storage_root / "easy/broken"
    asks = ["--benchmark", benchmark, "--release", "easy/long", "--questions-per-piece", "20", "--out"]
    environment = {**s3_server.environment, "WARREN_STORAGE": storage_root.uri, "OMP_NUM_THREADS": "1"}
    with scratch_folder("ray") as folder, RayHead(folder, 2, environment, object_store_bytes=300_000_000) as head:
        variables = {**head.environment, "RAY_ADDRESS": head.driver_address}

        def start(where: Location) -> "subprocess.Popen[bytes]":
            return start_job(repository, [*asks, where.uri], variables)

        unbroken = start(whole)
        _, said = unbroken.communicate()
        assert unbroken.returncode == 0, said.decode()

        seen: dict[str, bytes] = {}
        for kind in ("evaluator", "driver", "cluster"):
            job = start(broken)
            wait_until(lambda: len(stored(broken)) > len(seen) + 10 or job.poll() is not None, 300.0)  # noqa: B023
            if kind == "evaluator":
                [process] = evaluators(head.processes())
                process.kill()
                wait_until(lambda: len(stored(broken)) > len(seen) + 20 or job.poll() is not None, 300.0)  # noqa: B023
            if kind == "cluster":
                head.kill()
            job.kill()
            job.communicate()
            if kind == "cluster":
                head.start()
            wait_until(lambda: not evaluators(head.processes()))
            now = stored(broken)
            assert {name: data for name, data in now.items() if name in seen} == seen
            assert len(seen) < len(now) < 100, f"the job ended before the {kind} could be killed"
            seen = now
        last = start(broken)
        _, said = last.communicate()
        assert last.returncode == 0, said.decode()
        assert f"({2000 - 20 * len(seen)} questions asked, {20 * len(seen)} answered before)" in said.decode()
    for name in RESULTS:
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_question_that_kills_its_evaluator_ends_the_job_and_the_rest_is_kept(
    storage_root: Location, tmp_path: Path
) -> None:
    release = publish_random_model(storage_root, "deadly", tmp_path / "model", name="deadly", **MODEL)
    run, files = run_in(storage_root / "deadly", write_benchmark(tmp_path / "data", 12), release)

    def load(model: StoredFiles, max_new_tokens: int) -> Any:
        asker = load_asker(model, max_new_tokens)
        ask = asker.ask
        kill = os._exit

        def deadly(prepared: Any, attempt: str = "") -> Any:
            if prepared.piece.start == PIECE:
                kill(1)
            return ask(prepared, attempt)

        asker.ask = deadly  # type: ignore[method-assign]
        return asker

    with pytest.raises(Exception, match=r"died 4 times") as died:
        ask_on_cluster(run, files, ONE, load)
    known = root_cause(died.value)
    assert isinstance(known, EngineError)
    assert "the questions 'q0004' to 'q0007'" in str(known)
    assert "q0000" in run.pieces.read().outcomes


def easy_vqa_benchmark(folder: Path, number: int) -> str:
    """Write the first of easy-vqa's test questions as a benchmark; its images stay in the package."""
    data = Path(easy_vqa(None, None, 1)[0].folder) / "test"
    rows = [
        {"id": str(place), "question": question, "answer": answer, "image": f"images/{image}.png"}
        for place, (question, answer, image) in enumerate(json.loads((data / "questions.json").read_text())[:number])
    ]
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "easy-vqa.yaml"
    file.write_text(f"questions: questions.jsonl\nimages: {data}\nmax_new_tokens: 4\ngroup: answer\n")
    return str(file)
