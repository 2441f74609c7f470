"""One piece of a source becomes shards. No Ray here: it is a plain generator that can be killed anywhere.

Here is the border between a sample's errors and everybody else's. Building and checking a sample is a function of its
record, so whatever that raises quarantines the sample, foreseen or not. What storage raises (a `StorageError`), a wrong
option (any other `WarrenError`) and a machine without memory or a module end the job.

A shard is finished when its receipt exists, and the receipt is written behind the shard. A piece that is started again
passes over what has receipts without loading it, so nothing is done twice, and writes the rest as it would have been.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from warren.data.batch import Quarantined
from warren.data.image_rules import ImageRules
from warren.data.images import decode_image
from warren.data.importers import Importer, Piece, Raw
from warren.data.importers.fingerprints import label
from warren.data.manifest import Shard, write_shard
from warren.data.printable import storable
from warren.data.sample import Sample
from warren.data.statistics import Statistics
from warren.errors import BadSampleError, NotFoundError, WarrenError
from warren.storage import Location, digest_bytes

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
        piece: Identifies the piece by what it reads and by what is made of it.
    """

    shard: Shard | None
    bad: tuple[Quarantined, ...]
    statistics: Statistics
    is_last: bool
    piece: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return {
            "shard": self.shard.to_json() if self.shard else None,
            "bad": [[bad.key, bad.source, bad.reason] for bad in self.bad],
            "statistics": self.statistics.to_json(),
            "is_last": self.is_last,
            "piece": self.piece,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Receipt":
        """Rebuild what `to_json` returned."""
        return cls(
            shard=Shard.from_json(value["shard"]) if value["shard"] else None,
            bad=tuple(Quarantined(*entry) for entry in value["bad"]),
            statistics=Statistics.from_json(value["statistics"]),
            is_last=value["is_last"],
            piece=value["piece"],
        )


@dataclass(frozen=True)
class SampleLimits:
    """What makes a sample unusable, beyond being broken."""

    max_pixels: int
    max_characters: int

    def check(self, sample: Sample) -> list[tuple[int, int]]:
        """Return the (width, height) of a sample's images if all of it can be used.

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
        rules: What is done to images.
        options: Identifies the code and the options that shards are made with.
    """

    importer: Importer
    folder: Location
    limits: SampleLimits
    samples_per_shard: int
    samples_per_row_group: int
    rules: ImageRules = field(default_factory=ImageRules)
    options: str = ""

    def make(self, number: int, piece: Piece) -> Iterator[Receipt]:
        """Finish piece `number`: yield the receipts of all its shards, old and new, in order.

        Old are those of an earlier attempt with the same options, whose piece read the same. Its number may have been
        another: files may have come or gone since.
        """
        identity = self._identity(piece)
        for part in itertools.count():
            receipt = self._present(identity, part)
            if receipt is None:
                yield from self._write_from(number, part, piece, identity)
                return
            yield receipt
            if receipt.is_last:
                return

    def _identity(self, piece: Piece) -> str:
        name = label(piece.path, self.importer.files) if piece.path in self.importer.files else ""
        facts = [self.options, name, piece.start, piece.stop, piece.rows, self.importer.fingerprint(piece)]
        return digest_bytes(json.dumps(facts).encode())[:32]

    def _present(self, identity: str, part: int) -> Receipt | None:
        try:
            return Receipt.from_json(self._receipt(identity, part).read_json())
        except NotFoundError:
            return None

    def _write_from(self, number: int, part: int, piece: Piece, identity: str) -> Iterator[Receipt]:
        raws = itertools.islice(self.importer.read(piece), part * self.samples_per_shard, None)
        with ThreadPoolExecutor(_LOADING_THREADS) as pool:
            loaded = _load_ahead(pool, raws)
            following = next(loaded, None)
            while following is not None or part == 0:
                batch = [] if following is None else [following]
                batch += itertools.islice(loaded, self.samples_per_shard - 1)
                following = next(loaded, None)  # whether there is more decides `is_last`
                name = f"{number:06d}-{part:04d}-{identity[:8]}"
                receipt = self._write(name, batch, identity, is_last=following is None)
                self._receipt(identity, part).put_json(receipt.to_json())
                yield receipt
                if following is None:
                    return
                part += 1

    def _write(self, name: str, batch: list[tuple[Raw, Sample | str]], identity: str, is_last: bool) -> Receipt:
        statistics, good, bad = Statistics(), [], []
        for raw, sample in batch:
            try:
                if isinstance(sample, Sample):
                    sizes_px = self.limits.check(sample)
                    sample = self.rules.apply(sample)
            except Exception as error:
                sample = reason_of(error, raw)
            if isinstance(sample, Sample):
                statistics.add(sample, sizes_px)
                good.append(sample)
            else:
                bad.append(Quarantined(storable(raw.key), storable(raw.source), storable(sample)))
                statistics.add_bad(bad[-1])
        shard = write_shard(self.folder, f"shard-{name}.parquet", good, self.samples_per_row_group) if good else None
        return Receipt(shard, tuple(bad), statistics, is_last, identity)

    def _receipt(self, identity: str, part: int) -> Location:
        return receipts_folder(self.folder) / f"{identity}-{part:04d}.json"


def receipts_folder(folder: Location) -> Location:
    """Return where a dataset's receipts are until its manifest exists."""
    return folder / "receipts"


def _load_ahead(pool: ThreadPoolExecutor, raws: Iterator[Raw]) -> Iterator[tuple[Raw, Sample | str]]:
    """Load samples in order, some at a time: images may be far away. A reason stands for a sample that is bad."""
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
