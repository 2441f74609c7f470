"""The provenance of a dataset: the ingest's format, options and source files, so that changes are noticed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from warren.config import IngestConfig
from warren.data.importers.fingerprints import file_fingerprint, label
from warren.storage import Location, digest_bytes

PROVENANCE = "provenance.json"
INGEST_FORMAT = 2
"""Increased when the code makes other samples or shards from the same source and options."""

_THREADS = 16
_NAMED = 3  # changes that a message names; it counts the others


@dataclass(frozen=True)
class Provenance:
    """Everything that decides the samples of a dataset.

    Attributes:
        format: `INGEST_FORMAT` of the code that made it.
        options: The `ingest` section without defaults and without what does not change the samples.
        files: Source files by name, each with its fingerprint. Images that they name are not among them.
    """

    format: int
    options: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def of(cls, config: IngestConfig, files: Sequence[str]) -> "Provenance":
        """Return the provenance of a source as it is now."""
        with ThreadPoolExecutor(_THREADS) as pool:
            fingerprints = list(pool.map(file_fingerprint, files))
        return cls(
            INGEST_FORMAT,
            config.content_options,
            {label(file, files): text for file, text in zip(files, fingerprints, strict=True)},
        )

    @property
    def code_and_options(self) -> str:
        """A digest of everything but the files."""
        return digest_bytes(repr((self.format, sorted(self.options.items()))).encode())

    def write(self, folder: Location) -> None:
        """Write it beside a dataset's manifest."""
        (folder / PROVENANCE).put_json(asdict(self))

    @classmethod
    def read(cls, folder: Location) -> "Provenance":
        """Read the provenance of a stored dataset.

        Raises:
            NotFoundError: It was made before format 2.
        """
        value = (folder / PROVENANCE).read_json()
        return cls(value["format"], value["options"], value["files"])

    def changes_since(self, past: "Provenance") -> list[str]:
        """Return the differences, one line each; none if the source would give the same dataset."""
        differences = [] if self.format == past.format else [f"Warren's ingest format: {past.format} → {self.format}"]
        differences += [
            f"ingest.{name}: {past.options.get(name, 'default')} → {self.options.get(name, 'default')}"
            for name in sorted(self.options.keys() | past.options.keys())
            if self.options.get(name) != past.options.get(name)
        ]
        names = sorted(self.files.keys() | past.files.keys())
        files = [_change(name, past.files.get(name), self.files.get(name)) for name in names]
        changed = [text for text in files if text]
        differences += changed[:_NAMED]
        if len(changed) > _NAMED:
            differences.append(f"and {len(changed) - _NAMED} more source files")
        return differences


def _change(name: str, before: str | None, now: str | None) -> str:
    if before == now:
        return ""
    if before is None or now is None:
        return f"{name} {'is new' if before is None else 'is gone'}"
    old, new = before.split("-")[0], now.split("-")[0]
    return f"{name} changed ({old} → {new} bytes)" if old != new else f"{name} changed"
