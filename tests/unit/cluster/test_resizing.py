"""Where the workers of a run whose number changes may be; the change itself is tested in integration."""

import pytest
from ray.train import ScalingConfig

from warren.cluster.train import elastic
from warren.cluster.train.elastic import StayingNodes


@pytest.mark.parametrize(("alive", "leaving", "room"), [(True, {}, 3), (True, {"other": 0}, 1), (False, {}, 1)])
def test_a_node_that_goes_or_is_gone_has_room_for_nobody(
    alive: bool, leaving: dict[str, int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StayingNodes(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2}))
    nodes = [{"NodeID": "head", "Alive": True}, {"NodeID": "other", "Alive": alive}]
    monkeypatch.setattr(elastic.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(elastic.ray._private.state.state, "get_draining_nodes", lambda: leaving)
    assert policy._count_possible_workers({"head": {"CPU": 3.0}, "other": {"CPU": 4.0}}) == room
