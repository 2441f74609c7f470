"""One RayCluster of pods: KubeRay's part, and a client's from outside."""

import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from pods.manifest import Manifests, PodPlan, RayNodePlan, ray_node_plan
from pods.network import PodNetwork
from pods.pod import RunningPod

HEAD_GROUP = "headgroup"
_DASHBOARD_PORT = 8265
_POLL_S = 0.3
_TIMEOUT_S = 900.0
ValueT = TypeVar("ValueT")


@dataclass
class Machine:
    """What all pods of a run share: the network, a folder, the rendered manifests and the names of services."""

    network: PodNetwork
    folder: Path
    manifests: Manifests
    hosts: dict[str, str] = field(default_factory=dict)
    pods: list[RunningPod] = field(default_factory=list)

    def run(self, plan: PodPlan, service: str | None = None) -> RunningPod:
        """Start a pod, and give its address to a service if it stands alone behind one."""
        place = self.network.add()
        name = f"{plan.group}-{place.address.rpartition('.')[2]}"
        if service:
            self.hosts[service] = place.address
        folder = self.folder / name
        folder.mkdir()
        pod = RunningPod(plan, name, place, folder, self.hosts)
        self.pods.append(pod)
        pod.start()
        return pod

    def remove(self, pod: RunningPod) -> None:
        """Take a pod away at once."""
        pod.delete()
        self.pods.remove(pod)

    def until(self, look: Callable[[], ValueT], what: str, timeout_s: float = _TIMEOUT_S) -> ValueT:
        """Tend the pods until `look` returns something, and return it.

        Raises:
            TimeoutError: It did not.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"there was no {what} in {timeout_s:.0f} s; the pods' logs are in {self.folder}")
            for pod in self.pods:
                pod.tend()
            time.sleep(_POLL_S)
        return value

    def wait(self, seconds: float) -> None:
        """Tend the pods for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "end of a pause", seconds + 60)


class PodCluster:
    """A RayCluster of the manifests.

    Args:
        spec: The RayCluster's spec.
        workers: How many to begin with.
    """

    def __init__(self, machine: Machine, name: str, spec: Mapping[str, Any], workers: int) -> None:
        self.machine = machine
        self._spec, self._name, self._token = spec, name, secrets.token_hex(16)
        (self._group,) = (group["groupName"] for group in spec["workerGroupSpecs"])
        self._service = f"{name}-head-svc"
        self.head = machine.run(self._plan(HEAD_GROUP), self._service)
        note(f"{self.head.name} at {self.head.place.address}")
        machine.until(lambda: self.head.ready, "head that is ready")  # the init container of a worker waits for it
        self.workers = [self.add_worker() for _ in range(workers)]
        self.wait_for_nodes(workers + 1)

    @property
    def url(self) -> str:
        """The dashboard and the API of jobs and Serve, as seen from outside."""
        return f"http://{self.head.place.address}:{_DASHBOARD_PORT}"

    def add_worker(self) -> RunningPod:
        """Start a worker; the caller waits until it has joined."""
        pod = self.machine.run(self._plan(self._group))
        note(f"{pod.name} at {pod.place.address}")
        return pod

    def lose_worker(self, pod: RunningPod) -> None:
        """Take a worker's machine away."""
        self.workers.remove(pod)
        self.machine.remove(pod)

    def alive(self) -> set[str]:
        """Return the addresses of the nodes that the head holds for alive; none while it does not answer."""
        answer = self._ask("GET", "/api/v0/nodes")
        if answer is None or answer.status_code != 200:
            return set()
        rows = answer.json()["data"]["result"]["result"]
        return {row["node_ip"] for row in rows if row["state"] == "ALIVE"}

    def wait_for_nodes(self, count: int) -> None:
        self.machine.until(lambda: len(self.alive()) == count, f"cluster of {count} nodes")

    def submit(self, entrypoint: str, job: str) -> None:
        """Submit a job over HTTP."""
        body = {"entrypoint": entrypoint, "submission_id": job}
        self.machine.until(lambda: self._accepted(body), f"answer to the submission of {job}", 120)
        note(f"submitted {job}: {entrypoint}")

    def job_status(self, entrypoint: str, job: str) -> str:
        """Return a job's status; submit it again if the head forgot it, as KubeRay does in `HTTPMode`."""
        answer = self._ask("GET", f"/api/jobs/{job}")
        if answer is None:
            return "UNKNOWN"
        if answer.status_code == 404:
            note(f"the head does not know {job}")
            self.submit(entrypoint, job)
            return "PENDING"
        return str(answer.json()["status"]) if answer.status_code == 200 else "UNKNOWN"

    def run_job(self, entrypoint: str, job: str) -> None:
        """Submit a job and wait for its end.

        Raises:
            RuntimeError: It failed.
        """
        self.submit(entrypoint, job)
        self.wait_for_job(entrypoint, job)

    def wait_for_job(self, entrypoint: str, job: str) -> None:
        """Wait for the end of a submitted job.

        Raises:
            RuntimeError: It failed.
        """
        ends = ("SUCCEEDED", "FAILED", "STOPPED")
        status = self.machine.until(
            lambda: found if (found := self.job_status(entrypoint, job)) in ends else None, f"end of {job}"
        )
        if status != "SUCCEEDED":
            raise RuntimeError(f"{job} is {status}; its log:\n{self.job_log(job)[-4000:]}")

    def job_log(self, job: str) -> str:
        answer = self._ask("GET", f"/api/jobs/{job}/logs")
        return str(answer.json().get("logs")) if answer is not None and answer.status_code == 200 else ""

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the dashboard's API for JSON; None while it does not answer."""
        answer = self._ask(method, path, body)
        return None if answer is None or answer.status_code != 200 else (answer.json() if answer.text else {})

    def remove(self) -> None:
        for pod in [*self.workers, self.head]:
            self.machine.remove(pod)

    def _accepted(self, body: Mapping[str, str]) -> bool:
        answer = self._ask("POST", "/api/jobs/", body)
        if answer is not None and answer.status_code == 400:
            raise RuntimeError(f"the submission of {body['submission_id']} was refused: {answer.text[-500:]}")
        return answer is not None and answer.status_code == 200

    def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response | None:
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            return httpx.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=30, trust_env=False)
        except httpx.HTTPError:
            return None

    def _plan(self, group: str) -> PodPlan:
        node = RayNodePlan(self._name, group, self._service, self._token)
        return ray_node_plan(self.machine.manifests, self._spec, node)


def note(text: str) -> None:
    """Say what happens, for whoever waits."""
    print(f"test-cluster: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
