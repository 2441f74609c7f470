"""A training run over pods, undisturbed and disturbed."""

import os

from kuberay_manifests import cluster_spec, find
from pods.manifest import deployment_plan
from pods.outcome import Outcome
from pods.ray_cluster import Machine, PodCluster, note
from warren.errors import StorageError
from warren.storage import Location
from warren.testbed.chaos import compare
from warren.train.report import read_metrics
from warren.train.run import Run

STORAGE = "warren-object-storage"
_S3_PORT = 9000
CUT_S = 20.0


def start_storage(machine: Machine) -> None:
    """Run the overlay's S3 server on a host of its own, and point this process at it."""
    pod = machine.run(deployment_plan(machine.manifests, STORAGE), STORAGE)
    machine.until(lambda: pod.ready, "S3 server that is ready", 120)
    os.environ.update(machine.manifests.secrets[STORAGE])
    os.environ.update({"AWS_ENDPOINT_URL": f"http://{pod.place.address}:{_S3_PORT}", "AWS_REGION": "us-east-1"})


class TrainingRuns:
    """The RayJobs `ingest` and `pretrain` of the manifests on one cluster of a head and two workers."""

    def __init__(self, machine: Machine, outcome: Outcome) -> None:
        self._machine, self._outcome = machine, outcome
        self._jobs = {
            name: find(list(machine.manifests.resources), "RayJob", f"warren-{name}") for name in ("ingest", "pretrain")
        }
        job = self._jobs["pretrain"]
        (group,) = cluster_spec(job)["workerGroupSpecs"]
        self.cluster = PodCluster(machine, job["metadata"]["name"], cluster_spec(job), group["replicas"])
        outcome.nodes = max(outcome.nodes, len(self.cluster.alive()))
        self.cluster.run_job(self._entrypoint("ingest"), "ingest")

    def undisturbed(self) -> None:
        """Train once in peace."""
        self.cluster.run_job(self._entrypoint("pretrain", "whole"), "whole")
        steps = len(read_metrics(self._run("whole")))
        self._outcome.shown["steps"] = steps
        note(f"the undisturbed run took {steps} steps")

    def disturbed(self) -> None:
        """Train again while a worker's machine is lost, another comes, a link is cut and the head dies; compare."""
        entrypoint, name = self._entrypoint("pretrain", "disturbed"), "disturbed"
        self.cluster.submit(entrypoint, name)
        for fault in (self._lose_a_worker, self._cut_a_link, self._kill_the_head):
            self._next_checkpoint(entrypoint, name)
            fault()
        self._next_checkpoint(entrypoint, name)
        self.cluster.wait_for_job(entrypoint, name)
        result = compare(self._run("whole"), self._run(name), [])
        self._outcome.loss_curve_equal = result["losses_bit_equal"] and result["weights_bit_equal"]
        self._outcome.samples_lost, self._outcome.samples_repeated = result["samples_lost"], result["samples_repeated"]

    def _lose_a_worker(self) -> None:
        lost = self.cluster.workers[0]
        note(f"taking {lost.name} away")
        self._outcome.killed.append(lost.name)
        self.cluster.lose_worker(lost)
        self.cluster.workers.append(self.cluster.add_worker())
        self._outcome.added.append(self.cluster.workers[-1].name)

    def _cut_a_link(self) -> None:
        pod = self.cluster.workers[0]
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

    def _next_checkpoint(self, entrypoint: str, name: str) -> None:
        """Wait until the run has written a checkpoint more than it has now."""
        seen = self._newest(name)

        def look() -> bool:
            if self.cluster.job_status(entrypoint, name) in ("FAILED", "STOPPED", "SUCCEEDED"):
                raise RuntimeError(f"{name} ended too early; its log:\n{self.cluster.job_log(name)[-4000:]}")
            return self._newest(name) > seen

        self._machine.until(look, f"checkpoint after step {seen}", 300)
        note(f"a checkpoint at step {self._newest(name)}")

    def _newest(self, name: str) -> int:
        try:
            return max(self._run(name).checkpoints.steps(), default=0)
        except StorageError:
            return 0

    def _entrypoint(self, job: str, run: str | None = None) -> str:
        """The manifest's; the run's name is added, because two runs of one recipe need two."""
        entrypoint: str = self._jobs[job]["spec"]["entrypoint"]
        return f"{entrypoint} --run {run}" if run else entrypoint

    def _run(self, name: str) -> Run:
        return Run(Location.parse("s3://warren/runs") / name)
