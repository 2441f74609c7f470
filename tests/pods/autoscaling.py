"""The workspace of the manifests under Ray's own autoscaler: no worker, two for a run, none again."""

from kuberay_manifests import Resource, cluster_spec, find
from pods.kubernetes_api import ACCOUNT_FOLDER, NAMESPACE, KubernetesApi
from pods.manifest import Volume
from pods.outcome import Outcome
from pods.pod import RunningPod
from pods.ray_cluster import Machine, PodCluster, note
from pods.training import entrypoint

_OPTIONS = "--resources /etc/warren/autoscaled.yaml --set 'pretrain.duration={steps: 20}'"


class Autoscaling:
    """KubeRay's part: it makes pods for `replicas`, and deletes those that the autoscaler names."""

    def __init__(self, machine: Machine, outcome: Outcome) -> None:
        self._machine, self._outcome = machine, outcome
        self._workspace = find(list(machine.manifests.resources), "RayCluster")
        (self._group,) = (group["groupName"] for group in self._workspace["spec"]["workerGroupSpecs"])
        self._sizes = [0]

    def from_none_to_two_and_back(self) -> None:
        """Start the autoscaler beside a head without workers, submit a run, and wait until its workers are gone."""
        machine = self._machine
        with KubernetesApi(machine.network.gateway, machine.folder / "kubernetes", self._workspace, self._pods) as api:
            self._api = api
            name, spec = self._workspace["metadata"]["name"], cluster_spec(self._workspace)
            account = Volume(ACCOUNT_FOLDER, files=api.account)
            self.cluster = PodCluster(machine, name, spec, 0, [account])
            sidecar = self.cluster.head.execute(
                ["ray", "kuberay-autoscaler", f"--cluster-name={name}", f"--cluster-namespace={NAMESPACE}"],
                {**api.environment, "RAY_HEAD_POD_NAME": self.cluster.head.name, "KUBERAY_CRD_VER": "v1"},
            )
            try:
                machine.operators.append(self._reconcile)
                self.cluster.run_job(entrypoint(machine, "ingest"), "ingest")
                self.cluster.run_job(f"{entrypoint(machine, 'pretrain', 'autoscaled')} {_OPTIONS}", "autoscaled")
                machine.until(lambda: not self.cluster.workers, "end of the idle workers")
            finally:
                machine.operators.clear()
                sidecar.kill()
                sidecar.wait()
        self._outcome.autoscaled = self._sizes

    def _reconcile(self) -> None:
        """Make the pods what the RayCluster says, as the operator does."""
        group, workers = self._api.group(self._group), self.cluster.workers
        leaving = set(group["scaleStrategy"]["workersToDelete"])
        for pod in [pod for pod in workers if pod.name in leaving]:
            note(f"the autoscaler takes {pod.name} back")
            self.cluster.drain_worker(pod)
        while len(workers) < group["replicas"]:
            self.cluster.add_worker()
        if len(workers) != self._sizes[-1]:
            self._sizes.append(len(workers))

    def _pods(self) -> list[Resource]:
        return [_shown(pod, self.cluster.head, self._workspace["metadata"]["name"]) for pod in self.cluster.pods]


def _shown(pod: RunningPod, head: RunningPod, cluster: str) -> Resource:
    """A pod as Kubernetes shows it: the fields that the autoscaler reads."""
    kind, group = ("head", "headgroup") if pod is head else ("worker", "workers")
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": kind, "ray.io/group": group}
    state: Resource = {"running": {}} if pod.ready else {"waiting": {"reason": "ContainerCreating"}}
    return {
        "metadata": {"name": pod.name, "namespace": NAMESPACE, "labels": labels, "resourceVersion": "1"},
        "status": {"podIP": pod.place.address, "containerStatuses": [{"state": state}]},
    }
