"""What importers of files of records have in common: how the files are found, and what a dataset of them is called."""

from dataclasses import dataclass
from typing import ClassVar, Self

from warren.config import IngestConfig
from warren.data.importers.files import find_files
from warren.data.importers.record import RecordReader


@dataclass(frozen=True)
class RecordFiles:
    """Files of records, as a configuration describes them.

    Attributes:
        SUFFIXES: Endings of the files' names.
        files: URIs of the files.
        records: Makes samples of the records.
    """

    SUFFIXES: ClassVar[tuple[str, ...]]

    name: str
    licence: str
    origin: str
    files: tuple[str, ...]
    records: RecordReader

    @classmethod
    def of(cls, config: IngestConfig) -> Self:
        """Find the files of a configuration.

        Raises:
            ConfigError: There are none.
        """
        files = tuple(file.uri for file in find_files(config.path or "", cls.SUFFIXES))
        records = RecordReader.of(config, files[0].rpartition("/")[0])
        return cls(config.name or "", config.licence, config.origin or str(config.path), files, records)
