"""One piece of a source becomes shards. No Ray here: it is a plain generator that can be killed anywhere.

Here is the border between a sample's errors and everybody else's. Building and checking a sample is a function of its
record, so whatever that raises quarantines the sample, foreseen or not. What storage raises (a `StorageError`), a wrong
option (any other `WarrenError`) and a machine without memory or a module end the job.

A shard is finished when its receipt exists, and the receipt is written behind the shard. A piece that is started again
passes over what has receipts without loading it, so nothing is done twice, and writes the rest as it would have been.
"""

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from warren.data.batch import Quarantined
from warren.data.images import decode_image
from warren.data.importers import Importer, Piece, Raw
from warren.data.manifest import Shard, write_shard
from warren.data.printable import storable
from warren.data.sample import Sample
from warren.data.statistics import Statistics
from warren.errors import BadSampleError, NotFoundError, WarrenError
from warren.storage import Location

_LOADS_AHEAD = 16
_LOADING_THREADS = 8
_NOT_THE_SAMPLES = (WarrenError, MemoryError, ImportError, NameError)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """What became of one run of a piece's samples.

    Attributes:
        shard: None if none of them can be used.
        bad: Those that cannot be used.
        is_last: The piece ends here.
    """

    shard: Shard | None
    bad: tuple[Quarantined, ...]
    statistics: Statistics
    is_last: bool

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return {
            "shard": self.shard.to_json() if self.shard else None,
            "bad": [[bad.key, bad.source, bad.reason] for bad in self.bad],
            "statistics": self.statistics.to_json(),
            "is_last": self.is_last,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Receipt":
        """Rebuild what `to_json` returned."""
        return cls(
            shard=Shard.from_json(value["shard"]) if value["shard"] else None,
            bad=tuple(Quarantined(*entry) for entry in value["bad"]),
            statistics=Statistics.from_json(value["statistics"]),
            is_last=value["is_last"],
        )


@dataclass(frozen=True)
class Limits:
    """What makes a sample unusable, beyond being broken."""

    max_pixels: int
    max_characters: int

    def check(self, sample: Sample) -> list[tuple[int, int]]:
        """Return the (width, height) of a sample's pictures if all of it can be used.

        Raises:
            BadSampleError: It cannot.
        """
        sample.check()
        length = sum(len(turn.text) for turn in sample.turns) + len(sample.system or "")
        if length > self.max_characters:
            raise BadSampleError(f"the conversation has {length} characters; at most {self.max_characters} are taken")
        return [decode_image(image, self.max_pixels).size for image in sample.images]


@dataclass(frozen=True)
class ShardMaker:
    """Reads, checks and writes pieces.

    Attributes:
        folder: Of the dataset.
        samples_per_shard: Candidates a shard is made of; it holds those that can be used.
    """

    importer: Importer
    folder: Location
    limits: Limits
    samples_per_shard: int
    samples_per_row_group: int

    def make(self, number: int, piece: Piece) -> Iterator[Receipt]:
        """Finish piece `number`: yield the receipts of all its shards, old and new, in order."""
        for part in itertools.count():
            receipt = self._present(number, part)
            if receipt is None:
                yield from self._write_from(number, part, piece)
                return
            yield receipt
            if receipt.is_last:
                return

    def forget(self, number: int, part: int) -> None:
        """Let the next attempt do a shard, and those behind it in its piece, anew."""
        receipt = self._receipt(number, part)
        receipt.store.delete(receipt.key)

    def _present(self, number: int, part: int) -> Receipt | None:
        try:
            return Receipt.from_json(self._receipt(number, part).read_json())
        except NotFoundError:
            return None

    def _write_from(self, number: int, part: int, piece: Piece) -> Iterator[Receipt]:
        raws = itertools.islice(self.importer.read(piece), part * self.samples_per_shard, None)
        with ThreadPoolExecutor(_LOADING_THREADS) as pool:
            loaded = _load_ahead(pool, raws)
            following = next(loaded, None)
            while following is not None or part == 0:
                batch = [] if following is None else [following]
                batch += itertools.islice(loaded, self.samples_per_shard - 1)
                following = next(loaded, None)  # whether there is more decides `is_last`
                yield self._write(number, part, batch, is_last=following is None)
                if following is None:
                    return
                part += 1

    def _write(self, number: int, part: int, batch: list[tuple[Raw, Sample | str]], is_last: bool) -> Receipt:
        statistics, good, bad = Statistics(), [], []
        for raw, sample in batch:
            try:
                sizes_px = self.limits.check(sample) if isinstance(sample, Sample) else []
            except Exception as error:
                sample = reason_of(error, raw)
            if isinstance(sample, Sample):
                statistics.add(sample, sizes_px)
                good.append(sample)
            else:
                bad.append(Quarantined(storable(raw.key), storable(raw.source), storable(sample)))
                statistics.add_bad(bad[-1])
        path = f"shard-{number:06d}-{part:04d}.parquet"
        shard = write_shard(self.folder, path, good, self.samples_per_row_group) if good else None
        receipt = Receipt(shard, tuple(bad), statistics, is_last)
        target = self._receipt(number, part)
        target.put_json(receipt.to_json())
        return receipt

    def _receipt(self, number: int, part: int) -> Location:
        return receipts_folder(self.folder) / f"{number:06d}-{part:04d}.json"


def receipts_folder(folder: Location) -> Location:
    """Return where a dataset's receipts are until its manifest exists."""
    return folder / "receipts"


def _load_ahead(pool: ThreadPoolExecutor, raws: Iterator[Raw]) -> Iterator[tuple[Raw, Sample | str]]:
    """Load samples in order, some at a time: pictures may be far away. A reason stands for a sample that is bad."""
    waiting: list[tuple[Raw, Future[Sample | str]]] = []
    for raw in raws:
        waiting.append((raw, pool.submit(_load, raw)))
        if len(waiting) >= _LOADS_AHEAD:
            first, loaded = waiting.pop(0)
            yield first, loaded.result()
    for raw, loaded in waiting:
        yield raw, loaded.result()


def _load(raw: Raw) -> Sample | str:
    try:
        return raw.load()
    except Exception as error:
        return reason_of(error, raw)


def reason_of(error: Exception, raw: Raw) -> str:
    """Return why a sample cannot be used.

    Args:
        error: What building or checking it raised.
        raw: The sample.

    Raises:
        Exception: `error` itself, if it is not the sample's.
    """
    if isinstance(error, BadSampleError):
        return str(error)
    if isinstance(error, _NOT_THE_SAMPLES):
        raise error
    _LOG.warning("%s cannot be read: an error that nothing foresaw", storable(raw.source), exc_info=error)
    return f"it cannot be read: {type(error).__name__}: {error}"
