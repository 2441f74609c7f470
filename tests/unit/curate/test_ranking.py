"""Rank bands are those of a plain sort, wherever the scores lie and however they tie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warren.curate import ranking
from warren.curate.array_files import ArrayFile, pack
from warren.curate.row_mask import RowSet
from warren.curate.sampling import sample
from warren.storage import Location


def expected(scores: np.ndarray, rows: np.ndarray, first: int, end: int) -> list[int]:
    order = np.lexsort((rows, -scores))
    return sorted(rows[order[first:end]].tolist())


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    distinct=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 2**16),
    band=st.tuples(st.integers(0, 100), st.integers(0, 100)).filter(lambda pair: pair[0] < pair[1]),
)
def test_a_band_is_what_a_sort_gives(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], distinct: int, seed: int, band: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    random = np.random.default_rng(seed)
    rows = random.permutation(sum(counts))
    scores = (random.integers(-distinct, distinct, sum(counts)) / 7).astype(np.float32)
    files, start = [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_FENCE", 4)
        for number, count in enumerate(counts):
            part = slice(start, start + count)
            (folder / str(number)).write_bytes(pack(ranking.sorted_keys(scores[part], rows[part])))
            files.append(ArrayFile(Location(str(folder / str(number)))))
            start += count
        first, end = ranking.band_ranks((band[0] / 100, band[1] / 100), sum(counts))
        found = ranking.keys_in_ranks(files, first, end)
    kept = ranking.rows_of(np.concatenate(found))
    assert np.array_equal(ranking.scores_of(np.concatenate(found)), scores[np.argsort(rows)][kept])
    assert sorted(kept.tolist()) == expected(scores, rows, first, end)


def test_band_edges_are_exact() -> None:
    assert ranking.band_ranks((0.29, 0.57), 100) == (29, 57)  # 0.29 * 100 is 28.999999999999996
    assert ranking.band_ranks((0.0, 1.0), 7) == (0, 7)
    assert ranking.band_ranks((0.4, 0.6), 4) == (1, 2)


def test_negative_zero_ties_with_zero_and_the_lower_row_comes_first() -> None:
    keys = ranking.rank_keys(np.array([-0.0, 0.0, -1.0, 2.0], np.float32), np.array([5, 3, 1, 9]))
    assert ranking.rows_of(np.sort(keys)).tolist() == [9, 3, 5, 1]


def test_a_sample_has_its_size_and_its_seed() -> None:
    alive = RowSet.full(10_000)
    kept = sample(alive, 1000, seed=1)
    assert len(kept) == 1000
    assert np.array_equal(kept.bits, sample(alive, 1000, seed=1).bits)
    shared = np.bitwise_count(kept.bits & sample(alive, 1000, seed=2).bits).sum()
    assert 60 < shared < 140  # a tenth of a tenth
    assert len(sample(kept, 5000, seed=1)) == 1000


def test_row_sets_count_and_tell_their_rows() -> None:
    rows = RowSet.empty(21)
    rows.add(np.array([0, 7, 8, 20, 20]))
    assert len(rows) == 4
    assert [block.tolist() for block in rows.blocks()] == [[0, 7, 8, 20]]
    assert rows.mask(7, 10).tolist() == [True, True, False]
    assert len(RowSet.full(21)) == 21
