"""Which samples an evaluation reads: all, the first ones, or those that a seed draws."""

from collections.abc import Callable

from warren.cluster.batch.evaluation import _chosen
from warren.config import EvaluateConfig
from warren.data.manifest import Manifest, Shard
from warren.storage import FileEntry

SIZES = [(4, 4, 1), (4, 3)]
MANIFEST = Manifest("d", "v1", tuple(Shard(FileEntry(f"{n}", 1, "s"), rows) for n, rows in enumerate(SIZES)), "", "")


def places(config: EvaluateConfig) -> list[int]:
    """Return the places in the dataset that are read."""
    starts, start = {}, 0
    for shard in MANIFEST.shards:
        for group, size in enumerate(shard.row_groups):
            starts[shard.file.path, group] = (start, size)
            start += size
    found = []
    for read in _chosen(config, MANIFEST):
        first, size = starts[read.group.file.path, read.group.row_group]
        found += [first + row for row in (range(size) if read.rows is None else read.rows)]
    return found


def test_a_limit_takes_the_first_samples_and_a_seed_draws_from_all() -> None:
    config: Callable[..., EvaluateConfig] = lambda **options: EvaluateConfig(dataset="d@v1", **options)  # noqa: E731
    assert places(config()) == list(range(16))
    assert places(config(limit_samples=100, sample_seed=1)) == list(range(16))
    assert places(config(limit_samples=6)) == list(range(6))
    drawn = places(config(limit_samples=6, sample_seed=1))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 6
    assert drawn != list(range(6))
    assert drawn == places(config(limit_samples=6, sample_seed=1))
    assert drawn != places(config(limit_samples=6, sample_seed=2))
