"""S3 that misbehaves: what is read and written through faults on real sockets is what an undisturbed server gives."""

import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from factories import colour_sample, source_of, write_dataset
from fault_proxy import Fault, FaultProxy
from warren.data.batch import Cut
from warren.data.model_inputs import Inputs
from warren.data.stream import Encoding, StreamSpec
from warren.errors import ConflictError, StorageError
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.testbed import S3Server

MEGABYTE = 1 << 20


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The session's server, behind a proxy that this test's clients talk to."""
    with FaultProxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def folder(s3_server: S3Server) -> Location:
    return Location.parse(f"s3://tests/bad-{uuid.uuid4().hex[:8]}")


def test_a_read_goes_on_where_the_connection_broke(proxy: FaultProxy, folder: Location) -> None:
    data = random.Random(1).randbytes(5 * MEGABYTE)
    (folder / "object").create_bytes(data)
    proxy.answered_bytes = 0
    proxy.faults.extend(
        [Fault("cut", after_bytes=2 * MEGABYTE), Fault("error"), Fault("cut", after_bytes=2 * MEGABYTE)]
    )
    assert (folder / "object").read_bytes() == data
    assert not proxy.faults
    assert proxy.answered_bytes < 7.5 * MEGABYTE  # at most the last chunk of a broken answer comes twice


def test_a_slow_answer_is_waited_for(proxy: FaultProxy, folder: Location) -> None:
    (folder / "object").create_bytes(b"x" * MEGABYTE)
    proxy.faults.append(Fault("slow"))
    assert len((folder / "object").read_bytes()) == MEGABYTE
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("kind", ["error", "lose", "cut"])
def test_a_write_whose_answer_is_lost_is_no_conflict(proxy: FaultProxy, folder: Location, kind: str) -> None:
    target = folder / "manifest.json"
    proxy.faults.append(Fault(kind, methods=("PUT",)))  # type: ignore[arg-type]
    target.create_json({"mine": 1})
    _, tag = target.store.read(target.key)
    proxy.faults.append(Fault(kind, methods=("PUT",)))  # type: ignore[arg-type]
    target.store.replace(target.key, b"two", tag)
    assert target.read_bytes() == b"two"
    proxy.faults.append(Fault(kind, methods=("PUT",)))  # type: ignore[arg-type]
    with pytest.raises(ConflictError):
        target.create_json({"theirs": 2})


def test_files_go_up_and_down_whole(proxy: FaultProxy, folder: Location, tmp_path: Path) -> None:
    source, back = tmp_path / "big", tmp_path / "back"
    source.write_bytes(random.Random(2).randbytes(20 * MEGABYTE))
    proxy.faults.extend([Fault("error", ("PUT",)), Fault("lose", ("PUT",)), Fault("error", ("POST",), status=500)])
    target = folder / "big"
    target.upload(source)
    proxy.faults.extend([Fault("cut", after_bytes=3 * MEGABYTE), Fault("error"), Fault("lose", ("HEAD",))])
    target.store.download(target.key, back)
    assert not proxy.faults
    assert back.read_bytes() == source.read_bytes()


def test_after_the_deadline_the_place_is_named(
    proxy: FaultProxy, folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "object").create_bytes(b"x")
    monkeypatch.setenv("WARREN_STORAGE_DEADLINE_S", "0.5")
    proxy.faults.extend([Fault("error")] * 50)
    with pytest.raises(StorageError, match=rf"{folder}/object: no answer from {proxy.url} within 0.5 s"):
        (folder / "object").read_bytes()
    proxy.faults.extend([Fault("error", ("GET", "HEAD"))] * 50)
    location = folder / "object"
    with pytest.raises(StorageError, match=rf"{folder}/object: no answer from {proxy.url} within 0.5 s"):
        location.retrying(lambda: pq.read_table(location.key, filesystem=location.filesystem))


def stream(root: Location, tiny_inputs: tuple[Inputs, str]) -> StreamSpec:
    samples = [colour_sample(i) for i in range(120)]
    manifest = write_dataset(root, "d", samples, per_shard=20, per_group=5)
    encoding = Encoding(*tiny_inputs, 96)
    return StreamSpec((source_of(root, manifest),), encoding, 8, seed=5, window_samples=32, epochs=1)


def batches(spec: StreamSpec, pause_s: float = 0.0) -> Iterator[list[str]]:
    reader = spec.reader(Cut(2, 1))
    for read in spec.reads():
        for parts in reader.read(read):
            time.sleep(pause_s)
            yield [key for part in parts for key in part.keys]


def test_a_stream_through_faults_loses_and_repeats_nothing(
    proxy: FaultProxy, folder: Location, tiny_inputs: tuple[Inputs, str]
) -> None:
    spec = stream(folder, tiny_inputs)
    undisturbed = list(batches(spec))
    drawn = random.Random(3)
    proxy.faults.extend(
        Fault(drawn.choice(["error", "cut", "lose", "slow"]), ("GET", "HEAD"), drawn.randrange(2000)) for _ in range(12)
    )
    assert list(batches(spec)) == undisturbed
    assert not proxy.faults
    assert sorted(key for batch in undisturbed for key in batch) == [f"sample-{i:05d}" for i in range(120)]


def test_a_killed_server_that_comes_back_is_waited_for(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_inputs: tuple[Inputs, str]
) -> None:
    with S3Server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        ensure_bucket("mortal")
        root = Location.parse("s3://mortal/x")
        spec = stream(root, tiny_inputs)
        undisturbed = list(batches(spec))
        running = batches(spec)
        seen = [next(running)]
        server.kill()
        rebirth = threading.Timer(1.0, server.start)
        rebirth.start()
        (root / "written").create_bytes(b"while away")
        seen += running
        rebirth.join()
        assert seen == undisturbed
        assert (root / "written").read_bytes() == b"while away"
