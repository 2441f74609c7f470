"""A training run over pods, undisturbed and disturbed."""

import os

from kuberay_manifests import cluster_spec, find
from pods.manifest import deployment_plan
from pods.outcome import Outcome
from pods.pod import RunningPod
from pods.ray_cluster import Machine, PodCluster, note
from warren.errors import StorageError
from warren.storage import Location
from warren.testbed.chaos import compare
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run
from warren.train.run_report import read_metrics

STORAGE = "warren-object-storage"
_S3_PORT = 9000
CUT_S = 20.0
ELASTIC = "/etc/warren/elastic.yaml"
_CHECKPOINT_TIMEOUT_S = 600.0
_ROUNDING = 1e-3  # of a loss


def start_storage(machine: Machine) -> RunningPod:
    """Run the overlay's S3 server on a host of its own, point this process at it, and return its pod."""
    pod = machine.run(deployment_plan(machine.manifests, STORAGE), STORAGE)
    machine.until(lambda: pod.ready, "S3 server that is ready", 120)
    os.environ.update(machine.manifests.secrets[STORAGE])
    os.environ.update({"AWS_ENDPOINT_URL": f"http://{pod.place.address}:{_S3_PORT}", "AWS_REGION": "us-east-1"})
    return pod


class TrainingRuns:
    """The RayJobs `ingest` and `pretrain` of the manifests on one cluster of a head and two workers."""

    def __init__(self, machine: Machine, outcome: Outcome) -> None:
        self._machine, self._outcome = machine, outcome
        job = find(list(machine.manifests.resources), "RayJob", "warren-pretrain")
        (group,) = cluster_spec(job)["workerGroupSpecs"]
        self.cluster = PodCluster(machine, job["metadata"]["name"], cluster_spec(job), group["replicas"])
        outcome.nodes = max(outcome.nodes, len(self.cluster.alive()))
        self.cluster.run_job(entrypoint(self._machine, "ingest"), "ingest")

    def undisturbed(self) -> None:
        """Train once in peace, unless an earlier part has."""
        if self._newest("whole"):
            return
        self.cluster.run_job(entrypoint(self._machine, "pretrain", "whole"), "whole")
        steps = len(read_metrics(self._run("whole")))
        trained = self.cluster.where("actors", "RayTrainWorker")
        read = self.cluster.where("tasks", "MapBatches(read)")
        self._outcome.readers_apart = bool(read) and not read & trained
        self._outcome.shown |= {"steps": steps, "training_nodes": len(trained), "reading_nodes": len(read)}
        note(f"the undisturbed run took {steps} steps")

    def disturbed(self) -> None:
        """Train again while a worker's machine is lost, another comes, a link is cut and the head dies; compare."""
        command, name = entrypoint(self._machine, "pretrain", "disturbed"), "disturbed"
        self.cluster.submit(command, name)
        for fault in (self._lose_a_worker, self._cut_a_link, self._kill_the_head):
            self._next_checkpoint(command, name)
            fault()
            self.cluster.wait_for_nodes()
        self._next_checkpoint(command, name)
        self.cluster.wait_for_job(command, name)
        result = compare(self._run("whole"), self._run(name), [])
        self._outcome.loss_curve_equal = result["losses_bit_equal"] and result["weights_bit_equal"]
        self._outcome.samples_lost, self._outcome.samples_repeated = result["samples_lost"], result["samples_repeated"]

    def drained(self) -> None:
        """Train on two nodes while one drains and leaves, as when Kubernetes evicts its pod, and another comes."""
        while len(self.cluster.workers) > 2:
            self.cluster.lose_worker(self.cluster.workers[0])
        self.cluster.wait_for_nodes()
        command, name = f"{entrypoint(self._machine, 'pretrain', 'drained')} --resources {ELASTIC}", "drained"
        self.cluster.submit(command, name)
        self._checkpoint_of(2, command, name)
        leaving = self._training_pod()
        note(f"draining {leaving.name}")
        self._outcome.drained.append(leaving.name)
        self.cluster.drain_worker(leaving)
        self._checkpoint_of(1, command, name)
        self.cluster.add_worker()
        self._outcome.added.append(self.cluster.workers[-1].name)
        self._checkpoint_of(2, command, name)
        self.cluster.wait_for_job(command, name)
        self._compare_drained(self._run(name))

    def _compare_drained(self, run: Run) -> None:
        """Losses of another number of workers agree up to rounding; after a drain no step is trained twice."""
        result = compare(self._run("whole"), run, [])
        pairs = zip(read_metrics(self._run("whole")), read_metrics(run), strict=True)
        shown = [abs(other["loss"] - row["loss"]) / row["loss"] for row, other in pairs]
        (file,) = (run.folder / "recoveries").list()
        retrained = sum(back["last_step"] + 1 - back["next_step"] for back in file.read_json())
        self._outcome.drained_loss_curve_close = max(shown) < _ROUNDING
        self._outcome.samples_lost = (self._outcome.samples_lost or 0) + result["samples_lost"]
        self._outcome.samples_repeated = (self._outcome.samples_repeated or 0) + result["samples_repeated"]
        self._outcome.drained_steps_repeated = retrained

    def _training_pod(self) -> RunningPod:
        def look() -> RunningPod | None:
            training = self.cluster.where("actors", "RayTrainWorker", "ALIVE")
            return next((pod for pod in self.cluster.workers if pod.place.address in training), None)

        pod = self._machine.until(look, "pod that trains")
        assert pod is not None
        return pod

    def _lose_a_worker(self) -> None:
        lost = self._training_pod()
        note(f"taking {lost.name} away")
        self._outcome.killed.append(lost.name)
        self.cluster.lose_worker(lost)
        self.cluster.add_worker()
        self._outcome.added.append(self.cluster.workers[-1].name)

    def _cut_a_link(self) -> None:
        pod = self._training_pod()
        note(f"cutting the link of {pod.name} for {CUT_S:.0f} s")
        self._outcome.cut.append(pod.name)
        self._machine.network.cut(pod.place)
        self._machine.wait(CUT_S)
        self._machine.network.mend(pod.place)
        note("the link is back")

    def _kill_the_head(self) -> None:
        note("killing the head")
        self._outcome.killed.append(self.cluster.head.name)
        self.cluster.head.kill()  # the kubelet starts it again

    def _next_checkpoint(self, command: str, name: str) -> None:
        """Wait until the run has written a checkpoint more than it has now."""
        seen = self._newest(name)

        def look() -> bool:
            self._check_that_it_trains(command, name)
            return self._newest(name) > seen

        self._machine.until(look, f"checkpoint after step {seen}", _CHECKPOINT_TIMEOUT_S)
        note(f"a checkpoint at step {self._newest(name)}")

    def _checkpoint_of(self, world_size: int, command: str, name: str) -> None:
        """Wait until that many workers have written a checkpoint after the newest there is."""
        seen = self._newest(name)

        def look() -> bool:
            self._check_that_it_trains(command, name)
            latest = self._latest(name)
            return latest is not None and latest.step > seen and latest.world_size == world_size

        self._machine.until(look, f"checkpoint of {world_size} workers after step {seen}", _CHECKPOINT_TIMEOUT_S)
        note(f"a checkpoint of {world_size} workers at step {self._newest(name)}")

    def _check_that_it_trains(self, command: str, name: str) -> None:
        if self.cluster.job_status(command, name) in ("FAILED", "STOPPED", "SUCCEEDED"):
            raise RuntimeError(f"{name} ended too early; its log:\n{self.cluster.job_log(name)[-4000:]}")

    def _newest(self, name: str) -> int:
        latest = self._latest(name)
        return latest.step if latest else 0

    def _latest(self, name: str) -> CheckpointManifest | None:
        try:
            return self._run(name).checkpoints.latest()
        except StorageError:
            return None

    def _run(self, name: str) -> Run:
        return Run(Location.parse("s3://warren/runs") / name)


def entrypoint(machine: Machine, job: str, run: str | None = None) -> str:
    """Return a RayJob's entrypoint; the run's name is added, because two runs of one recipe need two."""
    spec = find(list(machine.manifests.resources), "RayJob", f"warren-{job}")["spec"]
    words: str = spec["entrypoint"]
    return f"{words} --run {run}" if run else words
