"""The endpoint of the manifests over two nodes, which loses one of them, and then the head."""

import time
from typing import Any

import yaml

from kuberay_manifests import cluster_spec, find
from pods.outcome import Outcome
from pods.pod import RunningPod
from pods.ray_cluster import Machine, PodCluster, note
from pods.traffic import Traffic
from serve_endpoint import publish_random_model
from warren.release import move_alias, read_alias
from warren.storage import Location

API_KEYS = "warren-api-keys"
RELEASE = "demo"
_APPLICATIONS = "/api/serve/applications/"
_CALM_S = 8.0


class EndpointOnPods:
    """The RayService of the manifests: its cluster, its applications, and a release of random weights."""

    def __init__(self, machine: Machine, outcome: Outcome, key: str) -> None:
        self._machine, self._outcome, self._key = machine, outcome, key
        service = find(list(machine.manifests.resources), "RayService")
        self._config = yaml.safe_load(service["spec"]["serveConfigV2"])
        (group,) = cluster_spec(service)["workerGroupSpecs"]
        self._publish()
        self.cluster = PodCluster(machine, service["metadata"]["name"], cluster_spec(service), group["minReplicas"])
        outcome.nodes = max(outcome.nodes, len(self.cluster.alive()))
        machine.until(lambda: self.cluster.request("PUT", _APPLICATIONS, self._config) is not None, "Serve")
        machine.until(self._serves, "application that runs")
        machine.until(lambda: len(self._ready()) == group["minReplicas"], "proxy on every worker")
        note(f"the endpoint serves; its engine is at {sorted(self._engine_addresses())}")

    def lose_a_node_and_the_head(self) -> None:
        """Stream all the time while the node with a proxy and no engine is lost, a new one comes, and the head dies."""
        with Traffic(self._ready, RELEASE, self._key) as traffic:
            self._machine.until(lambda: traffic.count("whole") >= 3, "whole answer")
            lost = self._node_without_engine()
            staying = [pod for pod in self.cluster.workers if pod is not lost]
            lost_at = time.monotonic()
            self._lose(lost)
            self._machine.until(lambda: traffic.count("whole", since=lost_at) >= 5, "answer without the node")
            replacement = self.cluster.add_worker()
            self._machine.until(lambda: replacement.ready, "proxy on the new node")
            self._lose_the_head(traffic)
        self._report(traffic, lost, [*staying, replacement])

    def _lose(self, pod: RunningPod) -> None:
        note(f"taking {pod.name} away, which has a proxy")
        self._outcome.killed.append(pod.name)
        self.cluster.lose_worker(pod)

    def _lose_the_head(self, traffic: Traffic) -> None:
        note("killing the endpoint's head")
        died_at = time.monotonic()
        self._outcome.killed.append(self.cluster.head.name)
        self.cluster.head.delete()
        self._machine.until(lambda: traffic.count("whole", since=died_at) >= 5, "answer without a head")
        self.cluster.head.start()
        self._machine.until(self._serves, "application that runs under the new head")
        back_at = time.monotonic()
        self._outcome.shown["head_away_s"] = round(back_at - died_at, 1)
        self._machine.wait(_CALM_S)
        self._machine.until(lambda: traffic.count("whole", since=back_at) >= 5, "answer under the new head")

    def _report(self, traffic: Traffic, lost: RunningPod, staying: list[RunningPod]) -> None:
        self._outcome.streams_broken = traffic.count("cut", staying)
        self._outcome.shown |= {
            "streams_whole": traffic.count("whole"),
            "streams_cut_with_their_node": traffic.count("cut", [lost]),
            "requests_refused": traffic.count("refused"),
            "requests_unreachable": {pod.name: traffic.count("unreachable", [pod]) for pod in [lost, *staying]},
        }

    def _ready(self) -> list[RunningPod]:
        """The pods behind the Service: workers whose readiness probe succeeds."""
        return [pod for pod in self.cluster.workers if pod.ready]

    def _serves(self) -> bool:
        applications = self._applications()
        named = {application["name"] for application in self._config["applications"]}
        return named <= applications.keys() and all(each["status"] == "RUNNING" for each in applications.values())

    def _applications(self) -> dict[str, Any]:
        answer = self.cluster.request("GET", _APPLICATIONS)
        return dict(answer["applications"]) if answer else {}

    def _engine_addresses(self) -> set[str]:
        return {
            replica["node_ip"]
            for application in self._applications().values()
            for name, deployment in application["deployments"].items()
            for replica in deployment["replicas"]
            if "Engine" in name and replica["state"] == "RUNNING"
        }

    def _node_without_engine(self) -> RunningPod:
        engines = self._engine_addresses()
        return next(pod for pod in self.cluster.workers if pod.place.address not in engines)

    def _publish(self) -> None:
        root = Location.parse("s3://warren")
        folder = self._machine.folder / "model"
        publish_random_model(root, "v1", folder, name=RELEASE, max_position_embeddings=1024)
        for alias in ("candidate", "stable"):
            move_alias(root, RELEASE, alias, "v1", read_alias(root, RELEASE, alias))
