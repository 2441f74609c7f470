"""How many engine replicas fit into the cluster."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from warren_serve.settings import EndpointSettings


def replicas_that_fit(settings: EndpointSettings, nodes: Sequence[Mapping[str, float]] | None = None) -> int:
    """Return the most engine replicas that autoscaling may start where the settings do not say.

    One less than the cluster has room for, so that a replica of the next release has room beside those that serve;
    never less than one, nor less than `min_replicas`.

    Args:
        settings: They say what a replica takes.
        nodes: What each node has in all; None asks Ray.
    """
    held = _nodes() if nodes is None else nodes
    per_replica = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    fit = sum(_on_node(node, per_replica) for node in held)
    return max(1, settings.min_replicas, fit - 1)


def _on_node(node: Mapping[str, float], per_replica: Mapping[str, float]) -> int:
    return min(math.floor(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in per_replica.items() if amount > 0)


def _nodes() -> list[dict[str, Any]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
