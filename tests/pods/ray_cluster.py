"""One RayCluster of pods: KubeRay's part, and a client's from outside."""

import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from pods.manifest import Manifests, PodPlan, RayNodePlan, Volume, ray_node_plan
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
    operators: list[Callable[[], None]] = field(default_factory=list)
    _operating: bool = False

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

    def remove_all_but(self, *kept: RunningPod) -> None:
        """Take all other pods away, even if one does not go."""
        for pod in [pod for pod in reversed(self.pods) if pod not in kept]:
            with suppress(OSError):
                self.remove(pod)

    def until(self, look: Callable[[], ValueT], what: str, timeout_s: float = _TIMEOUT_S) -> ValueT:
        """Tend the pods until `look` returns something, and return it.

        Raises:
            TimeoutError: It did not.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"there was no {what} in {timeout_s:.0f} s; the pods' logs are in {self.folder}")
            self._tend()
            time.sleep(_POLL_S)
        return value

    def _tend(self) -> None:
        for pod in list(self.pods):
            pod.tend()
        if not self._operating:  # an operator waits, too
            self._operating = True
            try:
                for operate in self.operators:
                    operate()
            finally:
                self._operating = False

    def wait(self, seconds: float) -> None:
        """Tend the pods for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "end of a pause", seconds + 60)


class PodCluster:
    """A RayCluster of the manifests.

    Args:
        spec: The RayCluster's spec.
        workers: How many to begin with.
        head_volumes: What the head has beside the manifest's.
    """

    def __init__(
        self, machine: Machine, name: str, spec: Mapping[str, Any], workers: int, head_volumes: Sequence[Volume] = ()
    ) -> None:
        self.machine = machine
        self._spec, self._name, self._token = spec, name, secrets.token_hex(16)
        (self._group,) = (group["groupName"] for group in spec["workerGroupSpecs"])
        self._service = f"{name}-head-svc"
        plan = self._plan(HEAD_GROUP)
        self.head = machine.run(replace(plan, volumes=(*plan.volumes, *head_volumes)), self._service)
        note(f"{self.head.name} at {self.head.place.address}")
        machine.until(lambda: self.head.ready, "head that is ready")  # the init container of a worker waits for it
        self.workers: list[RunningPod] = []
        for _ in range(workers):
            self.add_worker()
        self.wait_for_nodes()

    @property
    def url(self) -> str:
        """The dashboard and the API of jobs and Serve, as seen from outside."""
        return f"http://{self.head.place.address}:{_DASHBOARD_PORT}"

    @property
    def pods(self) -> list[RunningPod]:
        return [self.head, *self.workers]

    def add_worker(self) -> RunningPod:
        """Start a worker; the caller waits until it has joined."""
        pod = self.machine.run(self._plan(self._group))
        self.workers.append(pod)
        note(f"{pod.name} at {pod.place.address}")
        return pod

    def lose_worker(self, pod: RunningPod) -> None:
        """Take a worker's machine away."""
        self.workers.remove(pod)
        self.machine.remove(pod)

    def drain_worker(self, pod: RunningPod) -> None:
        """Delete a worker in good order: its `preStop` drains its node, and then it is asked to end."""
        self.workers.remove(pod)
        leaving = pod.leave()
        self.machine.until(lambda: leaving.poll() is not None, f"end of the preStop of {pod.name}", pod.plan.grace_s)
        pod.terminate()
        self.machine.pods.remove(pod)

    def alive(self) -> set[str]:
        """Return the addresses of the nodes that the head holds for alive; none while it does not answer."""
        return {row["node_ip"] for row in self._rows("nodes") if row["state"] == "ALIVE"}

    def wait_for_nodes(self) -> None:
        """Wait until every pod of the cluster is a node that is alive, and no other is."""
        addresses = {pod.place.address for pod in self.pods}
        self.machine.until(lambda: self.alive() == addresses, f"cluster of {sorted(addresses)}")

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

    def where(self, kind: str, named: str, state: str | None = None) -> set[str]:
        """Return the addresses of the nodes on which tasks or actors of a name run or have run.

        Args:
            kind: `tasks` or `actors`.
            named: What the name of the task or of the actor's class contains.
            state: The state they must be in; None for any.
        """
        key = "class_name" if kind == "actors" else "name"
        nodes = {row["node_id"]: row["node_ip"] for row in self._rows("nodes")}
        rows = [row for row in self._rows(kind) if named in row[key] and state in (None, row["state"])]
        return {nodes[row["node_id"]] for row in rows if row["node_id"] in nodes}

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        """Ask the state API; nothing while the head does not answer."""
        answer = self.request("GET", f"/api/v0/{kind}?limit=10000")
        return list(answer["data"]["result"]["result"]) if answer else []

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
