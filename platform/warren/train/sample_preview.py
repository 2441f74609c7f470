"""A preview of raw pairs before they are ingested: the first samples, as a stage would train on them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from warren.config import IngestConfig, Recipe, StageConfig
from warren.data.image_rules import ImageRules
from warren.data.importers import Importer, importers
from warren.data.manifest import Manifest
from warren.data.model_inputs import tokenizer_from_json
from warren.data.sample import IMAGE_MARK
from warren.data.shards import Receipt, SampleLimits, ShardMaker
from warren.data.statistics import Statistics
from warren.data.stream import Encoding, iter_samples
from warren.data.template import get_template
from warren.errors import BadSampleError, ConfigError, CorruptDataError, WarrenError
from warren.storage import Location
from warren.storage.scratch import scratch_folder
from warren.train.sample_page import PreviewedSample, shown_sample, write_page

_SHOWN = 10
_NAMED = 5  # unusable samples that are listed in the terminal; the page lists more
_STAND_IN_VOCAB = 1000
_ANY_LENGTH = 1 << 30


@dataclass
class DatasetPreview:
    """The preview of one dataset.

    Attributes:
        name: `name@version`.
        notes: Remarks for the reader of the report.
        statistics: The samples as ingest would count them.
        refused: Samples that ingest takes and training could not use, by reason.
        cut: Samples that training would cut to `max_length_tokens`.
        bad: Source and reason of those that ingest would quarantine.
    """

    name: str
    notes: list[str] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    refused: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    max_length_tokens: int = 0
    shown: list[PreviewedSample] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the counts as text."""
        totals = self.statistics.totals
        read = totals["samples"] + totals["quarantined"]
        lines = [f"{self.name}: {read:,} samples read, {totals['quarantined']:,} of them quarantined"]
        lines += [f"  {count:,} × {reason}" for reason, count in self.statistics.reasons.most_common()]
        lines += [f"  {source}: {reason}" for source, reason in self.bad[:_NAMED]]
        if self.refused or self.cut:
            length = f"{self.max_length_tokens:,} tokens"
            lines.append(f"  in training {self.cut:,} are cut to {length}, {self.refused.total():,} cannot be used")
        lines += [f"  {count:,} × {reason}" for reason, count in self.refused.most_common()]
        return lines + [f"  note: {note}" for note in self.notes]


def preview_samples(recipe: Recipe, limit: int, report: Location) -> str:
    """Read the first samples of every dataset of a recipe's source and write a page that shows some of them.

    Nothing else is written and no cluster is needed: the samples are ingested into a scratch folder.

    Args:
        recipe: Its `ingest` section names the source; its model and stages say how samples are encoded.
        limit: Samples to read of each dataset.
        report: The folder of the page.

    Returns:
        The counts, for the terminal.

    Raises:
        ConfigError: The recipe has no `ingest` section or no model, or `limit` is below 1.
    """
    if limit < 1:
        raise ConfigError(f"--limit {limit}: at least 1 sample is read")
    config = recipe.require("ingest")
    previews = []
    for importer in importers(config):
        with scratch_folder("preview") as scratch:
            previews.append(_preview_dataset(recipe, config, importer, limit, Location(str(scratch))))
    write_page(report / "index.html", [(preview.lines(), preview.shown, preview.bad) for preview in previews])
    return "\n".join(
        [line for preview in previews for line in preview.lines()] + [f"samples are shown in {report}/index.html"]
    )


def _preview_dataset(
    recipe: Recipe, config: IngestConfig, importer: Importer, limit: int, scratch: Location
) -> DatasetPreview:
    preview = DatasetPreview(f"{importer.name}@{config.version}")
    receipts = list(_first(config, importer, limit, scratch, preview.notes))
    for receipt in receipts:
        preview.statistics.merge(receipt.statistics)
        preview.bad += [(bad.source, bad.reason) for bad in receipt.bad]
    shards = tuple(receipt.shard for receipt in receipts if receipt.shard)
    manifest = Manifest(importer.name, config.version, shards, importer.origin, importer.licence)
    if manifest.rows:
        _encode(recipe, scratch, manifest, preview)
    return preview


def _first(
    config: IngestConfig, importer: Importer, limit: int, scratch: Location, notes: list[str]
) -> Iterator[Receipt]:
    """Make shards of the first samples; a damaged file adds a note, and the next one is read."""
    limits = SampleLimits(config.max_pixels, config.max_characters)
    rules = ImageRules(config.exif_orientation, config.alpha)
    for number, piece in enumerate(importer.pieces(limit)):
        maker = ShardMaker(importer, scratch, limits, limit, config.samples_per_row_group, rules)
        try:
            receipt = next(maker.make(number, piece))  # of at most `limit` samples
        except CorruptDataError as error:
            notes.append(str(error))
            continue
        yield receipt
        limit -= receipt.statistics.totals["samples"] + receipt.statistics.totals["quarantined"]
        if limit <= 0:
            return


def _encode(recipe: Recipe, folder: Location, manifest: Manifest, preview: DatasetPreview) -> None:
    stage = _stage(recipe, preview.name)
    encoding = _encoding(recipe, stage, _texts(folder, manifest), preview.notes)
    tokenizer = tokenizer_from_json(encoding.tokenizer_json)
    preview.max_length_tokens = encoding.max_length_tokens
    step = max(1, manifest.rows // _SHOWN)
    for number, sample in enumerate(iter_samples(folder, manifest)):
        try:
            whole = encoding.inputs.encode_sample(sample, tokenizer, _ANY_LENGTH)
            encoded = encoding.inputs.encode_sample(sample, tokenizer, encoding.max_length_tokens)
        except BadSampleError as error:
            preview.refused[str(error)] += 1
            continue
        preview.cut += len(encoded.input_ids) < len(whole.input_ids)
        if number % step == 0 and len(preview.shown) < _SHOWN:
            preview.shown.append(shown_sample(sample, encoded, encoding.inputs, tokenizer))


def _stage(recipe: Recipe, dataset: str) -> StageConfig:
    """Return the stage that trains on a dataset; the last stage if none does."""
    stages = [stage for stage in (recipe.finetune, recipe.pretrain) if stage is not None]
    if not stages or recipe.model is None:
        raise ConfigError(
            f"recipe {recipe.name!r} has no model and stage to show the samples for: extend one that has, "
            "for example `extends: demo`"
        )
    named = [stage for stage in stages if any(component.name == dataset for component in stage.mixture)]
    return (named or stages)[0]


def _encoding(recipe: Recipe, stage: StageConfig, texts: Iterable[str], notes: list[str]) -> Encoding:
    """Return the encoding of samples; a tokenizer that cannot be read is replaced, and a note says so."""
    from warren.models import folder_of, inputs_of, read_tokenizer

    source = recipe.require("model").language_model
    if source.pretrained is None:
        notes.append("tokens are those of a tokenizer made of these samples; training makes one of the whole dataset")
        tokenizer = _stand_in(recipe, texts)
    else:
        try:
            folder = folder_of(source.pretrained, weights=False)
            tokenizer = read_tokenizer(folder, source.eos_token, source.pad_token, source.bos_token)[0]
        except WarrenError as error:
            notes.append(f"another tokenizer stands in for the model's, so numbers of tokens differ: {error}")
            tokenizer = _stand_in(recipe, texts)
    template = stage.template or recipe.require("model").template
    inputs = inputs_of(recipe.require("model"), tokenizer).with_template(template, stage.image_padding)
    return Encoding(inputs, tokenizer.json, stage.max_length_tokens)


def _stand_in(recipe: Recipe, texts: Iterable[str]) -> Any:
    """Train a tokenizer that has the model's end-of-sequence token."""
    from warren.models import train_tokenizer

    tokenizer = train_tokenizer(texts, recipe.require("model").tokenizer.train_vocab_size or _STAND_IN_VOCAB)
    eos = recipe.require("model").language_model.eos_token or get_template(recipe.require("model").template).eos_token
    return tokenizer if eos is None else replace(tokenizer, eos_token=eos)


def _texts(folder: Location, manifest: Manifest) -> Iterator[str]:
    for sample in iter_samples(folder, manifest):
        yield from (turn.text.replace(IMAGE_MARK, "") for turn in sample.turns)
