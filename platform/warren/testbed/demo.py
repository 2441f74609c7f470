"""The whole way on one machine: raw pairs → S3 → Ray Data → DeepSpeed → evaluation → release → REST answer → image.

It starts the services of a cluster, then does what a user does: `ray job submit`, and the official OpenAI client.
"""

import base64
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warren.cluster.serve.endpoint import PORT_VARIABLE
from warren.compat.environment_variables import ONE_COMPUTE_THREAD
from warren.compat.ray_cli import TOKEN_VARIABLE, is_submission_message, quiet_submission
from warren.config import Recipe
from warren.config.versions import git_revision
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.sample import IMAGE_MARK, Sample
from warren.data.stream import iter_samples
from warren.errors import ServiceError
from warren.evaluate.evaluation_report import Evaluation
from warren.evaluate.identity import Identity
from warren.evaluate.stored_evaluations import Evaluations
from warren.release import read_alias
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.storage.scratch import scratch_folder
from warren.testbed import RayHead, S3Server, free_port
from warren.testbed.demo_load import DemoLoad
from warren.train.checkpoint import MODEL_FOLDER
from warren.train.run import Run
from warren.train.run_report import read_metrics

_BUCKET = "warren-demo"
_ENDPOINT = "demo"  # a file of jobs/endpoints
_CPUS = 4  # logical: two workers at half a CPU each, their feeders, an evaluator and a replica


@dataclass(frozen=True)
class DemoAnswer:
    """One held-out question put to the endpoint."""

    image: bytes
    question: str
    truth: str
    answer: str


@dataclass
class Demo:
    """Runs a recipe's whole way in services of its own.

    Attributes:
        recipe: What to run.
        options: `--set` overrides, passed on to every job.
        output: Folder of the image, the summary and the S3 server's data (`store`). What an earlier demo stored there
            is not made again.
        keep: Leave the endpoint up until Ctrl-C.
        num_questions: Held-out questions asked through the endpoint.
        named: The name or the path by which the jobs find the recipe; None: its own name.
    """

    recipe: Recipe
    options: list[str]
    output: Path
    keep: bool = False
    num_questions: int = 12
    named: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Run it and return its metrics.

        Raises:
            ServiceError: A job failed; its own error is printed above.
        """
        began = time.monotonic()
        store = (self.output / "store").resolve()
        if store.is_dir():
            print(f"going on with what is in {store}; delete that folder to begin anew", flush=True)
        with ExitStack() as services:
            scratch = services.enter_context(scratch_folder("demo"))
            with self._timed("start S3 and Ray"):
                server = services.enter_context(S3Server(store))
                os.environ.update(server.environment)
                ensure_bucket(_BUCKET)
                root = Location.parse(f"s3://{_BUCKET}/warren")
                head = services.enter_context(
                    RayHead(scratch / "ray", _CPUS, self._environment(server, root), token=secrets.token_hex(32))
                )
            port = int(head.environment[PORT_VARIABLE])
            metrics = self.walk(root, head.environment, port, began)
            if self.keep:
                self._wait(root, head, port)
        print(f"\nEverything made is in {store}. To use it, start the services again: make demo KEEP=1")
        return metrics

    def walk(
        self, root: Location, environment: dict[str, str], port: int, began: float | None = None
    ) -> dict[str, Any]:
        """Go the whole way on a cluster that runs.

        Args:
            root: The cluster's storage; this process must reach it too.
            environment: Variables that make `ray job submit` find the cluster.
            port: Where its endpoint will be.
            began: When the clock started, as `time.monotonic` tells it.
        """
        began = time.monotonic() if began is None else began
        for job in ("ingest", "pretrain"):
            self._submit(job, environment)
        if read_alias(root, self.recipe.require("release").name, "stable") is None:  # an earlier demo's release serves
            first = ("--run", f"{self.recipe.name}-pretrain")
            self._submit("evaluate", environment, *first, title="evaluate stage 1")
            why = ("--override-gate", "the first model, so that something serves")
            self._submit("release", environment, *first, "--endpoint", _ENDPOINT, *why, title="serve stage 1")
        for job in ("finetune", "evaluate"):
            self._submit(job, environment)
        load = self._roll_in(root, environment, port)
        with self._timed("ask"):
            answers = list(self._ask(root, port))
        with self._timed("draw"):
            image = self._draw(root, answers)
        metrics = self._summary(root, time.monotonic() - began, answers) | {
            "requests_during_rollout": sum(load.answers.values()) + len(load.failures),
            "failed_requests": len(load.failures),
        }
        (self.output / f"{self.recipe.name}.json").write_text(json.dumps(metrics, indent=2) + "\n")
        print(f"\n{image}\n{json.dumps(metrics)}", flush=True)
        return metrics

    @property
    def _named(self) -> str:
        return self.named or self.recipe.name

    def _environment(self, server: S3Server, root: Location) -> dict[str, str]:
        return {
            **server.environment,
            "WARREN_STORAGE": root.uri,
            PORT_VARIABLE: str(free_port()),
            "WARREN_GIT_REVISION": git_revision(),
            **ONE_COMPUTE_THREAD,
        }

    def _submit(self, job: str, environment: dict[str, str], *options: str, title: str = "") -> None:
        """Submit a job as the README says, and pass on what it prints.

        Args:
            options: Beside the recipe and the overrides.
            title: Of the step; empty: the job's name.
        """
        with self._timed(title or job):
            self._run_job(job, environment, *options)

    def _run_job(self, job: str, environment: dict[str, str], *options: str) -> None:
        overrides = [each for each in self.options if job == "release" or not each.startswith("endpoint.")]
        sets = [part for override in overrides for part in ("--set", override)]
        command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{job}.py"]
        command += ["--recipe", self._named, *options, *sets]
        print(f"\n$ {shlex.join(command)}", flush=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "PATH": path, **quiet_submission()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() and not is_submission_message(line):
                print(f"  {line.rstrip()}", flush=True)
        if process.wait() != 0:
            raise ServiceError(f"jobs/{job}.py failed (exit code {process.returncode}); its error is above")

    def _roll_in(self, root: Location, environment: dict[str, str], port: int) -> DemoLoad:
        """Release the finetuned model while questions come in.

        Raises:
            ServiceError: A request failed.
        """
        endpoint = ("--endpoint", _ENDPOINT)
        samples = self._held_out(root)
        messages = [_message(_question_of(sample), sample.images[0]) for sample in samples]
        load = DemoLoad(f"http://127.0.0.1:{port}", messages)
        if read_alias(root, self.recipe.require("release").name, "stable") is None or not _answers(port):
            self._submit("release", environment, *endpoint)  # on with an earlier demo: nothing serves here yet
            return load
        with load:
            self._submit("release", environment, *endpoint, title="release under load")
        print(f"meanwhile: {load.summary()}", flush=True)
        if load.failures:
            raise ServiceError(f"{len(load.failures)} requests failed while a release rolled in: {load.failures[0]}")
        return load

    def _ask(self, root: Location, port: int) -> Iterator[DemoAnswer]:
        """Put held-out questions to the endpoint through the official client."""
        from openai import OpenAI

        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
        model = client.models.list().data[0].id
        for sample in self._held_out(root):
            question = _question_of(sample)
            messages: Any = [_message(question, sample.images[0])]
            reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=8)
            answer = (reply.choices[0].message.content or "").strip()
            print(f"  {question} → {answer} (truth: {sample.turns[1].text})", flush=True)
            yield DemoAnswer(sample.images[0], question, sample.turns[1].text, answer)

    def _held_out(self, root: Location) -> list[Sample]:
        """Pick questions of all kinds, each about another image."""
        dataset = self.recipe.require("evaluate").dataset
        samples = list(iter_samples(dataset_folder(root, dataset), read_manifest(root, dataset)))
        stride = max(1, len(samples) // self.num_questions)
        return samples[::stride][: self.num_questions]

    def _draw(self, root: Location, answers: list[DemoAnswer]) -> Path:
        from warren.evaluate.run_plot import draw_run_plot

        curves = {stage: self._losses(root, stage) for stage in ("pretrain", "finetune")}
        sheet = [(a.image, a.question, a.answer, a.truth) for a in answers]
        self.output.mkdir(parents=True, exist_ok=True)
        target = self.output / f"{self.recipe.name}.png"
        draw_run_plot(curves, sheet, target)
        return target

    def _losses(self, root: Location, stage: str) -> list[float]:
        run = Run(root / "runs" / f"{self.recipe.name}-{stage}")
        return [row["loss"] for row in read_metrics(run)] if run.checkpoints.steps() else []

    def _summary(self, root: Location, total_s: float, answers: list[DemoAnswer]) -> dict[str, Any]:
        measured = self._measured(root)
        return {
            "accuracy": measured.value,
            "num_questions": measured.score.num_samples,
            "asked": len(answers),
            "right": sum(a.answer == a.truth for a in answers),
            "total_s": round(total_s, 1),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def _measured(self, root: Location) -> Evaluation:
        """Return the evaluation that the recipe describes, of the checkpoint that was released."""
        config = self.recipe.require("evaluate")
        run = Run(root / "runs" / f"{self.recipe.name}-finetune")
        checkpoint = run.newest_checkpoint()
        manifest = read_manifest(root, config.dataset)
        identity = Identity.of(config, checkpoint.digest(MODEL_FOLDER), manifest.digest)
        evaluation = Evaluations(run.folder / "evaluations").find(checkpoint.step, identity)
        if evaluation is None:
            raise ServiceError(f"run {run.name!r} has no evaluation by {identity.description}")
        return evaluation

    def _wait(self, root: Location, head: RayHead, port: int) -> None:
        example = self._held_out(root)[0]
        body = {
            "model": self.recipe.require("release").name,
            "messages": [_message(_question_of(example), example.images[0])],
        }
        request = self.output / "request.json"
        request.write_text(json.dumps(body) + "\n")
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        print(f"\nThe endpoint is up:\n  curl {url} -H 'Content-Type: application/json' -d @{request}")
        print(f"dashboard: {head.dashboard_url} (token: {head.environment[TOKEN_VARIABLE]})")
        variables = self.output / "env.sh"
        exported = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(head.environment.items())]
        variables.write_text("".join(exported))
        variables.chmod(0o600)  # it holds the cluster's token
        job, recipe = "  ray job submit --working-dir . -- python jobs", f"--recipe {shlex.quote(self._named)}"
        print(
            f"To go on with it, in another shell:\n  . {variables}\n"
            f"{job}/finetune.py {recipe} --run mine --from-run {self.recipe.name}-finetune "
            "--set finetune.duration.steps=200\n"
            "To publish a worse model, which the gate refuses, and watch the endpoint undo it:\n"
            f"{job}/finetune.py {recipe} --run worse --from-run {self.recipe.name}-pretrain "
            "--set finetune.duration.steps=20\n"
            f"{job}/evaluate.py {recipe} --run worse\n"
            f'{job}/release.py {recipe} --run worse --endpoint {_ENDPOINT} --override-gate "to watch it being undone"\n'
            f"  python jobs/rollout.py status {self.recipe.require('release').name}"
        )
        print("Ctrl-C ends it.", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("\nstopping")

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        print(f"\n[{name}]", flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        print(f"[{name}: {self.seconds[name]:.0f} s]", flush=True)


def _question_of(sample: Sample) -> str:
    return sample.turns[0].text.replace(f"{IMAGE_MARK}\n", "")


def _answers(port: int) -> bool:
    """Tell whether an endpoint of this machine serves."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _message(question: str, image: bytes) -> dict[str, Any]:
    uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
    return {"role": "user", "content": parts}
