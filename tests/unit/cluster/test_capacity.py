"""What a job that has no workers says of itself."""

from types import SimpleNamespace

import pytest
import ray

from warren.cluster import capacity
from warren.cluster.capacity import fitting, has_room, lacks, size_of, waiting


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0, "memory": 1e9})
    monkeypatch.setattr(capacity.ray, "available_resources", lambda: {"CPU": 0.5, "memory": 1e9})


def test_it_says_how_many_of_what_size_it_waits_for() -> None:
    assert size_of(2, "workers", 1.0, 0.0) == "2 workers of 1 CPUs"
    assert size_of((2, 2), "workers", 1.0, 0.0) == "2 workers of 1 CPUs"
    assert size_of((2, 8), "evaluators", 0.5, 1.0) == "2 to 8 evaluators of 0.5 CPUs and 1 GPUs"


def test_it_says_what_the_cluster_has_of_it(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting("2 workers") == (
        "waiting for 2 workers; the cluster has 8 CPUs (0.5 of them free) and 2 GPUs (0 of them free)"
    )
    monkeypatch.setattr(capacity.ray, "cluster_resources", dict)
    assert waiting("2 workers") == "waiting for 2 workers; the cluster has no node"


def test_either_kind_may_be_lacking(cluster: None) -> None:
    assert not lacks(0.5, 0.0)
    assert lacks(1.0, 0.0)
    assert lacks(0.5, 1.0)


def test_as_many_fit_as_every_kind_allows_beside_what_is_left_free(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitting(3, 1.0, 0.0) == 0
    assert fitting(3, 0.25, 0.0) == 2
    assert fitting(1, 0.25, 0.0) == 1
    assert fitting(3, 0.25, 0.0, spare_cpus=0.25) == 1
    assert fitting(3, 0.25, 0.0, spare_cpus=1.0) == 0
    assert fitting(3, 0.25, 1.0) == 0
    monkeypatch.setattr(capacity.ray, "available_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    assert fitting(3, 1.0, 0.5) == 2


def test_workers_that_have_their_place_or_would_find_one_are_starting(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_job_id=lambda: "07000000")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    groups = {"aa06000000": {"state": "CREATED"}, "bb07000000": {"state": "REMOVED"}}
    monkeypatch.setattr(ray.util, "placement_group_table", lambda: groups)
    assert has_room(0.5, 0.0)  # nothing was asked for yet: what will ask is starting
    assert not has_room(1.0, 0.0)
    groups["cc07000000"] = {"state": "PENDING"}
    assert not has_room(0.5, 0.0)
    groups["cc07000000"] = {"state": "CREATED"}
    assert has_room(1.0, 0.0)
