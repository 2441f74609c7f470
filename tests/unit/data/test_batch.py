"""Invariant 5's first half: how a global batch is cut loses nothing and hides nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from warren.data.batch import Cut, Quarantined, cut_global_batch, pack_parts, unpack_parts
from warren.data.model_inputs import EncodedSample

PAD, SIZE = 1, 4


def encoded(key: str, length: int, num_images: int, answer: int) -> EncodedSample:
    ids = np.arange(2, length + 2, dtype=np.int32)
    labels = np.where(np.arange(length) >= length - answer, ids, -100).astype(np.int32)
    images = [Image.new("RGB", (SIZE, SIZE), (int(key[1:]), 7, i)) for i in range(num_images)]
    return EncodedSample(key, ids, labels, tuple(images), SIZE)


samples = st.lists(st.tuples(st.integers(2, 30), st.integers(0, 2), st.integers(1, 5)), min_size=0, max_size=20).map(
    lambda rows: [encoded(f"s{i}", max(length, answer), n, answer) for i, (length, n, answer) in enumerate(rows)]
)


@given(samples, st.integers(1, 4), st.integers(1, 5), st.sampled_from([None, 30, 50, 400]))
@settings(deadline=None, max_examples=80)
def test_every_sample_is_in_exactly_one_part(
    batch: list[EncodedSample], world: int, micro: int, packed_tokens: int | None
) -> None:
    cut = Cut.of(max(1, len(batch)), world, micro, packed_tokens)
    parts = cut_global_batch(3, 1, batch, [], cut, PAD, SIZE)
    assert [part.rank for part in parts] == list(range(world))
    assert sorted(key for part in parts for key in part.keys) == sorted(s.key for s in batch)
    [num_micro_batches] = {len(part.micro_batches) for part in parts}
    if packed_tokens is None:
        assert num_micro_batches == cut.num_micro_batches
        assert all(len(m.input_ids) <= micro for part in parts for m in part.micro_batches)
    else:
        assert num_micro_batches <= cut.num_micro_batches
        assert all(m.input_ids.size <= micro * packed_tokens for part in parts for m in part.micro_batches)
    assert sum(m.input_ids.size for part in parts for m in part.micro_batches) == parts[0].num_slots
    assert sum(int(m.lengths.sum()) for part in parts for m in part.micro_batches) == parts[0].num_tokens
    supervised = sum(s.num_supervised_tokens for s in batch)
    assert {part.num_supervised_tokens for part in parts} == {supervised}
    labels = [m.labels[:, 1:] for part in parts for m in part.micro_batches]
    assert sum(int((rows >= 0).sum()) for rows in labels) == supervised
    assert sum(len(m.pixels) for part in parts for m in part.micro_batches) == sum(len(s.pixels) for s in batch)


@given(samples, st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_packing_into_arrow_gives_everything_back(batch: list[EncodedSample], world: int) -> None:
    bad = [Quarantined("k", "source", "because")]
    cut = Cut.of(max(1, len(batch)), world, 4)
    steps = [cut_global_batch(step, 0, batch, bad, cut, PAD, SIZE)[0] for step in range(3)]
    table = pack_parts(steps)
    assert table.num_rows == 1
    for before, after in zip(steps, unpack_parts(table), strict=True):
        assert (before.step, before.keys, before.quarantined) == (after.step, after.keys, after.quarantined)
        for a, b in zip(before.micro_batches, after.micro_batches, strict=True):
            assert all(
                np.array_equal(getattr(a, n), getattr(b, n))
                for n in ("input_ids", "labels", "lengths", "sequences", "pixels")
            )


def test_long_and_short_samples_are_dealt_out_evenly() -> None:
    batch = [encoded(f"s{i}", length, 0, 1) for i, length in enumerate([100, 98, 50, 50, 4, 2])]
    parts = cut_global_batch(0, 0, batch, [], Cut(2, 1), PAD, SIZE)
    loads = [sum(int(m.lengths.sum()) for m in part.micro_batches) for part in parts]
    assert max(loads) - min(loads) <= 4


@given(samples.filter(lambda batch: len(batch) > 1), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_packed_samples_keep_their_tokens_and_their_images_order(batch: list[EncodedSample], world: int) -> None:
    by_key = {sample.key: sample for sample in batch}
    for part in cut_global_batch(0, 0, batch, [], Cut.of(len(batch), world, 2, 60), PAD, SIZE):
        keys = iter(part.keys)
        for micro in part.micro_batches:
            used = [0] * len(micro.input_ids)
            pixels = []
            for sequence, length in zip(micro.sequences, micro.lengths, strict=True):
                sample = by_key[next(keys)]
                place = slice(used[sequence], used[sequence] + length)
                assert np.array_equal(micro.input_ids[sequence, place], sample.input_ids)
                assert np.array_equal(micro.labels[sequence, place][1:], sample.labels[1:])
                assert micro.labels[sequence, place][0] == -100
                used[sequence] += length
                pixels.append(sample.pixels)
            assert np.array_equal(micro.pixels, np.concatenate([*pixels, np.zeros((0, 3, SIZE, SIZE), np.uint8)]))


def test_packing_wastes_little_and_keeps_ranks_together() -> None:
    lengths = np.random.default_rng(1).integers(60, 200, 64)
    batch = [encoded(f"s{i}", int(length), 0, 1) for i, length in enumerate(lengths)]
    padded = cut_global_batch(0, 0, batch, [], Cut.of(64, 2, 4), PAD, SIZE)
    packed = cut_global_batch(0, 0, batch, [], Cut.of(64, 2, 4, 400), PAD, SIZE)
    assert packed[0].padding_fraction < 0.05 < padded[0].padding_fraction
    loads = [sum(int(m.lengths.sum()) for m in part.micro_batches) for part in packed]
    assert abs(loads[0] - loads[1]) < 200
    assert len(packed[0].micro_batches) < len(padded[0].micro_batches)
