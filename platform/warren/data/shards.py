"""Shards from one piece of a source. It is a plain generator without Ray, and can be killed at any point.

This module decides whose fault an error is. Building and checking a sample depends on its record alone, so any error
there quarantines the sample, expected or not. Errors of storage (`StorageError`), wrong options (any other
`WarrenError`), missing memory and missing modules end the job.

A shard is finished when its receipt exists, and the receipt is written after the shard. A piece that is started again
skips the samples that have receipts without loading them, and writes the rest as the first attempt would have.
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
    """The result of some consecutive samples of a piece.

    Attributes:
        shard: None if none of them can be used.
        bad: The samples that cannot be used.
        is_last: Whether the piece ends here.
        piece: Identity of the piece: what it reads, with which code and options.
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
    """Limits beyond which an intact sample is unusable."""

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
        folder: The dataset's folder.
        samples_per_shard: Samples that a shard is made of, before unusable ones are left out.
        rules: Changes to images.
        options: Identifies the code and the options that make the shards.
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

        Old receipts are those of an earlier attempt whose piece read the same with the same options. Its number may
        differ, because files may have been added or removed since.
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
            # Also a piece without samples gets a receipt, which says that it is finished.
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
    """Load several samples at a time, because images may be far away; yield them in order, or why one is unusable."""
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
        Exception: `error` itself, if it is not the sample's fault.
    """
    if isinstance(error, BadSampleError):
        return str(error)
    if isinstance(error, _NOT_THE_SAMPLES):
        raise error
    _LOG.warning("%s cannot be read because of an unexpected error", storable(raw.source), exc_info=error)
    return f"it cannot be read: {type(error).__name__}: {error}"
