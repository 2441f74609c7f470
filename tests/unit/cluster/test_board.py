"""What a run that has no workers says of itself."""

import pytest

from warren.cluster.board import waiting
from warren.config import Resources


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        (Resources(num_workers=2), "2 workers of 1 CPUs"),
        (Resources(num_workers=(2, 2)), "2 workers of 1 CPUs"),
        (
            Resources(num_workers=(2, 8), cpus_per_worker=0.5, gpus_per_worker=1),
            "2 to 8 workers of 0.5 CPUs and 1 GPUs",
        ),
    ],
)
def test_it_says_how_many_workers_of_what_size_it_waits_for(resources: Resources, wanted: str) -> None:
    assert resources.workers_wanted == wanted


def test_it_says_what_the_cluster_has_of_it() -> None:
    there = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
    assert waiting("2 workers", there, {"CPU": 0.5, "memory": 1e9}) == (
        "waiting for 2 workers; the cluster has 8 CPUs (0.5 of them free) and 2 GPUs (0 of them free)"
    )
    assert waiting("2 workers", {}, {}) == "waiting for 2 workers; the cluster has no node"
