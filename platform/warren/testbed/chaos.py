"""A small recipe trained twice: once in peace, once while its parts are killed. Both must end with the same weights.

Everything runs in services of its own on this machine: a real S3 server, a real Ray cluster, jobs as processes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from warren.compat.environment_variables import ONE_COMPUTE_THREAD
from warren.compat.ray_cli import process_title
from warren.errors import ServiceError, StorageError
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.testbed import RayHead, S3Server
from warren.train.run import Run
from warren.train.run_report import read_metrics
from warren.train.step_metrics import StepMetrics

_BUCKET = "warren-chaos"
_CPUS = 4
_S3_AWAY_S = 3.0
_TIMEOUT_S = 900.0
_POLL_S = 0.1
KILLS = ("reader", "splitter", "worker", "s3", "controller", "cluster")


@dataclass
class Chaos:
    """Trains a recipe's first stage, unbroken and broken.

    Attributes:
        recipe: Name of the recipe.
        options: `--set` overrides for its jobs.
        kills: What is killed, in this order, each after a new checkpoint.
        scratch: An empty folder; keep its path short, it holds Unix sockets.
    """

    recipe: str
    options: Sequence[str]
    kills: Sequence[str]
    scratch: Path
    killed: list[tuple[str, float]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Run both and compare them.

        Raises:
            ServiceError: A service or a job failed for a reason of its own.
        """
        with S3Server(self.scratch / "s3") as self._server:
            os.environ.update(self._server.environment)
            ensure_bucket(_BUCKET)
            root = Location.parse(f"s3://{_BUCKET}/chaos")
            environment = {**self._server.environment, "WARREN_STORAGE": root.uri, **ONE_COMPUTE_THREAD}
            with RayHead(self.scratch / "ray", _CPUS, environment, object_store_bytes=1_000_000_000) as self._head:
                self._wait(self._job("ingest"))
                self._wait(self._job("pretrain", "--run", "whole"))
                broken = Run(root / "runs" / "broken")
                self._train_and_kill(broken)
            return compare(Run(root / "runs" / "whole"), broken, self.killed)

    def _train_and_kill(self, run: Run) -> None:
        job = self._job("pretrain", "--run", run.name)
        seen = 0
        for kind in self.kills:
            if kind != "reader":  # readers are ahead of the steps: there may be none left after a checkpoint
                seen = self._next_checkpoint(run, seen, job)
            self._kill(kind)
            if kind == "cluster":
                job.kill()
                job.wait()
                self._head.start()
                job = self._job("pretrain", "--run", run.name)
        self._wait(job)

    def _next_checkpoint(self, run: Run, seen: int, job: "subprocess.Popen[bytes]") -> int:
        """Wait until there is a newer checkpoint than `seen`, and return its step."""

        def newest() -> int:
            with suppress(StorageError):
                return max(run.checkpoints.steps(), default=0)
            return 0

        self._until(lambda: newest() > seen, f"a checkpoint after step {seen}", job)
        return newest()

    def _kill(self, kind: str) -> None:
        if kind == "s3":
            self._note(kind)
            self._server.kill()
            time.sleep(_S3_AWAY_S)
            self._server.start()
        elif kind == "cluster":
            self._note(kind)
            self._head.kill()
        else:
            self._until(lambda: bool(titled(self._head, kind)), f"a process called {process_title(kind)}")
            victim = titled(self._head, kind)[-1]
            self._note(kind)
            victim.kill()

    def _note(self, kind: str) -> None:
        print(f"chaos: killing {kind}", file=sys.stderr, flush=True)
        self.killed.append((kind, time.time()))

    def _job(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        sets = [part for option in self.options for part in ("--set", option)]
        command = [sys.executable, f"jobs/{name}.py", "--recipe", self.recipe, *sets, *arguments]
        environment = {**os.environ, **self._head.environment, "RAY_ADDRESS": self._head.driver_address}
        return subprocess.Popen(command, env=environment)

    def _wait(self, job: "subprocess.Popen[bytes]") -> None:
        if job.wait(_TIMEOUT_S) != 0:
            raise ServiceError(f"{job.args!r} ended with {job.returncode}; its error is above")

    def _until(self, condition: Callable[[], bool], what: str, job: "subprocess.Popen[bytes] | None" = None) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not condition():
            if job is not None and job.poll() is not None:
                raise ServiceError(f"the job ended with {job.returncode} before there was {what}")
            if time.monotonic() > deadline:
                raise ServiceError(f"there was no sign of {what} in {_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)


def titled(head: RayHead, kind: str) -> list[psutil.Process]:
    """Return a cluster's processes of a kind: `worker`, `reader`, `splitter` or `controller`."""
    processes = []
    for process in head.processes():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(process_title(kind)):
                processes.append(process)
    return processes


def compare(whole: Run, broken: Run, killed: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Compare the ends of two runs, and their way there.

    Args:
        killed: What was killed when, by the clock.

    Returns:
        `weights_bit_equal`; samples of steps that `broken` left out, took twice or took others for; seconds from each
        kill to the next step that counted.
    """
    expected, actual = read_metrics(whole), read_metrics(broken)
    by_step: dict[int, list[StepMetrics]] = {}
    for row in actual:
        by_step.setdefault(row["step"], []).append(row)
    lost = repeated = 0
    for row in expected:
        same = [other for other in by_step.get(row["step"], []) if other["keys_sum"] == row["keys_sum"]]
        lost += 0 if same else row["samples"]
        repeated += row["samples"] * (len(by_step.get(row["step"], [])) - len(same[:1]))
    recovery = [
        (kind, min((row["time"] for row in actual if row["time"] > at), default=at) - at) for kind, at in killed
    ]
    return {
        "weights_bit_equal": _weights(whole) == _weights(broken),
        "losses_bit_equal": [row["loss"] for row in expected] == [row["loss"] for row in actual],
        "samples_lost": lost,
        "samples_repeated": repeated,
        "steps": len(expected),
        "kills": len(killed),
        "recovery_s": {kind: round(seconds, 1) for kind, seconds in recovery},
    }


def _weights(run: Run) -> list[str]:
    latest = run.checkpoints.latest()
    return sorted(entry.sha256 for entry in latest.files if entry.path.endswith(".safetensors")) if latest else []
