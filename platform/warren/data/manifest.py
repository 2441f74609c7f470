"""A dataset: immutable Parquet shards, complete once their manifest exists."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from warren.config import split_dataset
from warren.data.sample import SCHEMA, Sample
from warren.errors import ConflictError, DataError, EmptyDatasetError, NotFoundError
from warren.storage import FileEntry, Location, digest_bytes

MANIFEST = "manifest.json"
ABOUT = "about.json"
"""Licence and origin as they are known today; the manifest has them as they were when the dataset was made."""
_FORMAT = 1
_TEXT_COLUMNS = ("key", "images.list.element.path", "turns.list.element.role", "turns.list.element.text", "source")
# Images are compressed already.
_COMPRESSION: dict[str, Any] = {**dict.fromkeys(_TEXT_COLUMNS, "zstd"), "images.list.element.bytes": "none"}


@dataclass(frozen=True)
class StoredGroup:
    """A row group as it is stored, and which of its rows belong to a dataset.

    Attributes:
        file: The Parquet object.
        row_group: Its number in that object.
        dataset: The dataset in whose folder the object is; empty: the one whose manifest lists it.
        mask: One bit for each row, in hex, the lowest bit of a byte first; empty: every row.
    """

    file: FileEntry
    row_group: int
    dataset: str = ""
    mask: str = ""

    def rows(self, first: int = 0, count: int | None = None) -> np.ndarray | None:
        """Return the places of some of its rows within the stored row group; None: all of them."""
        if not self.mask:
            return None if first == 0 and count is None else np.arange(first, first + (count or 0))
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.mask), np.uint8), bitorder="little")
        return np.flatnonzero(bits)[first : None if count is None else first + count]


@dataclass(frozen=True)
class Shard:
    """One Parquet object, or the part of one that a selection takes; `row_groups` are the row counts, in order.

    Attributes:
        dataset: For a selection: the `name@version` in whose folder the object is.
        stored: For a selection: the numbers in the object of the row groups taken.
        masks: For a selection: which rows of each row group are taken (`StoredGroup.mask`).
    """

    file: FileEntry
    row_groups: tuple[int, ...]
    dataset: str = ""
    stored: tuple[int, ...] = ()
    masks: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(self.row_groups)

    @property
    def digest(self) -> str:
        """Identifies the samples: the object's digest, and the rows that are taken."""
        taken = digest_bytes(repr((self.stored, self.masks)).encode()) if self.dataset else ""
        return f"{self.file.sha256}{taken}"

    def group(self, number: int) -> StoredGroup:
        """Return where one of its row groups is stored."""
        if not self.dataset:
            return StoredGroup(self.file, number)
        return StoredGroup(self.file, self.stored[number], self.dataset, self.masks[number])

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        value = {**self.file.to_json(), "row_groups": list(self.row_groups)}
        if self.dataset:
            value |= {"dataset": self.dataset, "stored": list(self.stored), "masks": list(self.masks)}
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Shard":
        """Rebuild what `to_json` returned."""
        taken = {name: value.get(name, ()) for name in ("stored", "masks")}
        shard = cls(
            FileEntry.from_json(value),
            tuple(value["row_groups"]),
            value.get("dataset", ""),
            **{name: tuple(each) for name, each in taken.items()},
        )
        if shard.dataset:
            split_dataset(shard.dataset)
        return shard


@dataclass(frozen=True)
class Manifest:
    """The list that makes a dataset complete.

    Attributes:
        name: Dataset name, for example `easy-vqa-train`.
        version: Names this immutable content.
        shards: In order; `Order` shuffles over them.
        statistics: Counts for people (`warren.data.statistics`), and what made the dataset.
        selection: For a selection: its parents, options, counts and code (`warren.curate`); empty otherwise.
    """

    name: str
    version: str
    shards: tuple[Shard, ...]
    source: str
    licence: str
    statistics: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """Hex digest of the content: the same shards give the same digest, whatever the dataset is called."""
        return digest_bytes("\n".join(shard.digest for shard in self.shards).encode())

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        value = {
            "format": _FORMAT,
            "name": self.name,
            "version": self.version,
            "rows": self.rows,
            "bytes": sum(shard.file.bytes for shard in self.shards),
            "digest": self.digest,
            "schema": [f"{f.name}: {f.type}" for f in SCHEMA],
            "source": self.source,
            "licence": self.licence,
            "statistics": self.statistics,
            "shards": [shard.to_json() for shard in self.shards],
        }
        return {**value, "selection": self.selection} if self.selection else value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """Rebuild what `to_json` returned."""
        return cls(
            name=value["name"],
            version=value["version"],
            shards=tuple(Shard.from_json(shard) for shard in value["shards"]),
            source=value["source"],
            licence=value["licence"],
            statistics=value["statistics"],
            selection=value.get("selection", {}),
        )


def dataset_folder(root: Location, reference: str) -> Location:
    """Return the folder of `name@version` below a storage root.

    Raises:
        ConfigError: The reference is not of that form.
    """
    name, version = split_dataset(reference)
    return root / "datasets" / name / version


def root_of(folder: Location) -> Location:
    """Return the storage root that a dataset's folder lies below."""
    return Location(folder.uri.rsplit("/", 3)[0])


def folder_of(folder: Location, group: StoredGroup) -> Location:
    """Return the folder of a row group's object.

    Args:
        folder: Of the dataset whose manifest lists it.
    """
    if not group.dataset:
        return folder
    return dataset_folder(root_of(folder), group.dataset)


def read_manifest(root: Location, reference: str) -> Manifest:
    """Read a complete dataset's manifest.

    Raises:
        NotFoundError: There is no such dataset, or its ingest has not finished.
        EmptyDatasetError: It holds no sample.
    """
    folder = dataset_folder(root, reference)
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_json())
    except NotFoundError:
        raise NotFoundError(
            f"no dataset {reference!r}: {folder / MANIFEST} does not exist; run jobs/ingest.py, or let it finish"
        ) from None
    if manifest.rows == 0:
        raise EmptyDatasetError(f"dataset {reference!r} at {folder} holds no samples")
    return described(folder, manifest)


def described(folder: Location, manifest: Manifest) -> Manifest:
    """Return a manifest with the licence and origin of `about.json`; old datasets have no such file."""
    try:
        about = (folder / ABOUT).read_json()
    except NotFoundError:
        return manifest
    return replace(manifest, source=about["source"], licence=about["licence"])


def write_about(folder: Location, manifest: Manifest) -> None:
    """Write licence and origin to a file that may be corrected later: they are not part of the content."""
    (folder / ABOUT).put_json({"source": manifest.source, "licence": manifest.licence})


def write_manifest(root: Location, manifest: Manifest) -> Location:
    """Write a manifest: from here on the dataset exists, and never changes.

    Raises:
        DataError: A dataset of that name and version exists with other content.
    """
    target = dataset_folder(root, f"{manifest.name}@{manifest.version}") / MANIFEST
    try:
        target.create_json(manifest.to_json())
    except ConflictError:
        present = Manifest.from_json(target.read_json())
        if present.digest != manifest.digest:
            raise DataError(
                f"{target} exists with other content ({present.rows} rows, {present.digest[:12]}… there; "
                f"{manifest.rows} rows, {manifest.digest[:12]}… here); give the new data another version"
            ) from None
    return target


def write_shard(folder: Location, path: str, samples: Iterable[Sample], samples_per_row_group: int) -> Shard:
    """Write samples as one Parquet object. The same samples give the same bytes.

    Pages carry checksums, so a later read of a few row groups still finds damage. An object that holds these bytes
    already is left alone; one that holds others is replaced.
    """
    table = pa.Table.from_pylist([sample.to_row() for sample in samples], schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=samples_per_row_group,
        compression=_COMPRESSION,
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = buffer.getvalue()
    (folder / path).put_bytes(data)
    full, rest = divmod(table.num_rows, samples_per_row_group)
    row_groups = (samples_per_row_group,) * full + ((rest,) if rest else ())
    return Shard(FileEntry(path, len(data), digest_bytes(data)), row_groups)
