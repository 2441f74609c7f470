"""Importers of raw pairs. A format is one class that implements `Importer`, and one entry here."""

from collections.abc import Callable, Sequence

from warren.config import IngestConfig
from warren.config.ingest import Source
from warren.data.importers.bunny_json import BunnyJson
from warren.data.importers.csv_jsonl import TextTable
from warren.data.importers.easy_vqa import easy_vqa
from warren.data.importers.importer import Importer, Piece, Raw
from warren.data.importers.parquet import Parquet
from warren.data.importers.webdataset import WebDataset

_FORMATS: dict[Source, Callable[[IngestConfig], Sequence[Importer]]] = {
    "bunny-json": lambda config: [BunnyJson.of(config)],
    "easy-vqa": lambda config: easy_vqa(config.path, config.limit_images, config.questions_per_conversation),
    "parquet": lambda config: [Parquet.of(config)],
    "table": lambda config: [TextTable.of(config)],
    "webdataset": lambda config: [WebDataset.of(config)],
}


def importers(config: IngestConfig) -> Sequence[Importer]:
    """Return one importer for each dataset of a configuration.

    Raises:
        ConfigError: Its files do not exist, or lack a column that it names.
    """
    return _FORMATS[config.source](config)


__all__ = ["Importer", "Piece", "Raw", "importers"]
