"""Invariants 1 and 2 over real shards: whatever the cluster and however often killed, the same global batches."""

import itertools
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import colour_sample, source_of, text_sample, write_dataset
from warren.data.batch import Cut, pack_parts, unpack_parts
from warren.data.model_inputs import Inputs
from warren.data.stream import Encoding, StreamSpec, WindowRead
from warren.storage import Location

Batches = dict[int, tuple[list[str], int]]  # keys and supervised tokens of each step


@st.composite
def specs(draw: st.DrawFn, root: Location, encoding: Encoding) -> StreamSpec:
    sources = []
    for number in range(draw(st.integers(1, 3))):
        make = draw(st.sampled_from([colour_sample, text_sample]))
        rows = draw(st.integers(1, 16))
        samples = [make(1000 * number + i) for i in range(rows)]
        per_shard, per_group = draw(st.integers(1, 12)), draw(st.integers(1, 5))
        manifest = write_dataset(root, f"d{number}", samples, per_shard, per_group)
        sources.append(source_of(root, manifest, draw(st.integers(1, 2 * rows))))
    return StreamSpec(
        tuple(sources),
        encoding,
        global_batch_size=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**31)),
        window_samples=draw(st.integers(1, 20)),
        epochs=draw(st.integers(1, 2)),
    )


def batches(spec: StreamSpec, cut: Cut, start: int = 0, until: int | None = None) -> Batches:
    """What the ranks get from step `start` on, through the rows that travel between processes."""
    reader = spec.reader(cut)
    reads = (WindowRead.from_row(read.to_row()) for read in spec.reads(start))
    steps = itertools.islice((parts for read in reads for parts in reader.read(read)), until)
    found = {}
    for step, parts in enumerate(steps, start):
        assert [(part.step, part.rank) for part in parts] == [(step, rank) for rank in range(cut.world_size)]
        found[step] = sorted(key for part in parts for key in part.keys), parts[0].num_supervised_tokens
    return found


@given(st.data())
@settings(deadline=None, max_examples=15)
def test_the_same_global_batches_on_any_cluster_and_after_any_kills(
    tiny_inputs: tuple[Inputs, str], data: st.DataObject
) -> None:
    with TemporaryDirectory(prefix="warren-stream-") as folder:
        spec = data.draw(specs(Location.parse(folder), Encoding(*tiny_inputs, 96)))
        whole = batches(spec, Cut(1, 1))
        assert list(whole) == list(range(spec.plan().num_steps))
        lived: Batches = {}
        cursor = 0  # the newest checkpoint
        while cursor < len(whole):  # attempts: some steps are trained, some of them are lost again
            cut = Cut.of(spec.global_batch_size, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
            trained = data.draw(st.integers(1, len(whole) - cursor))
            lived |= batches(spec, cut, cursor, trained)
            cursor += data.draw(st.integers(0 if trained < len(whole) - cursor else trained, trained))
        assert lived == whole
        given_out = Counter(key for keys, _ in whole.values() for key in keys)
        assert sum(given_out.values()) == (spec.epochs or 0) * sum(s.samples_per_epoch for s in spec.sources)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every row group that is read from now on: (file, number)."""
    found = []
    real = pq.ParquetFile.read_row_group

    def read(file: pq.ParquetFile, number: int, **options: object) -> object:
        found.append((id(file), number))
        return real(file, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
    return found


def test_the_first_batch_after_a_resume_reads_what_it_needs_and_a_window_reads_nothing_twice(
    tmp_path: Path, tiny_inputs: tuple[Inputs, str], reads: list[tuple[int, int]]
) -> None:
    root = Location.parse(str(tmp_path))
    manifest = write_dataset(root, "d", [text_sample(i) for i in range(400)], per_shard=80, per_group=8)
    encoding = Encoding(*tiny_inputs, 96)
    spec = StreamSpec((source_of(root, manifest),), encoding, 4, seed=1, window_samples=80, epochs=1)
    reader = spec.reader(Cut(1, 1))
    resumed = next(spec.reads(start_step=50))
    assert resumed.task.skip_batches == 10
    steps = reader.read(resumed)
    next(steps)
    needed = {row.slice for row in resumed.task.batches(4)[0]}
    assert len(reads) == len(needed) <= 4  # of 50 row groups
    list(steps)
    assert len(reads) == len(set(reads)) <= len(resumed.task.slices)


def test_what_the_limit_cuts_off_is_counted_whether_or_not_something_is_left(
    root: Location, tiny_inputs: tuple[Inputs, str]
) -> None:
    samples = [text_sample(0, words=3), text_sample(1, words=40), text_sample(2, words=60), colour_sample(3)]
    source = source_of(root, write_dataset(root, "long", samples))

    def counts(limit: int) -> tuple[int, int, int, int]:
        spec = StreamSpec((source,), Encoding(*tiny_inputs, limit), 4, 1, 4, epochs=1)
        cut = Cut.of(4, 1, 4)
        [[part]] = [parts for read in spec.reads() for parts in spec.reader(cut).read(read)]
        [packed] = unpack_parts(pack_parts([part]))
        assert packed.quarantined == part.quarantined
        return packed.num_cut_samples, packed.num_cut_tokens, packed.num_supervised_tokens, len(packed.quarantined)

    cut, cut_tokens, supervised, bad = counts(500)
    assert (cut, cut_tokens, bad) == (0, 0, 0)
    num_some, num_all = counts(30), counts(5)
    assert (num_some[0], num_some[3]) == (2, 0)
    assert num_some[1] + num_some[2] == supervised
    assert num_all == (4, supervised, 0, 4)  # nothing is left of any
