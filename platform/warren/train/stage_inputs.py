"""The inputs of a stage: the manifests of its datasets, and the tokenizer of its run."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict

from warren.config import Recipe, StageConfig
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.mixture import samples_per_epoch
from warren.data.model_inputs import Inputs, TrainedTokenizer
from warren.data.sample import IMAGE_MARK
from warren.data.stream import DatasetSource, iter_samples
from warren.data.template import get_template
from warren.errors import ConfigError
from warren.storage import Location
from warren.train.run import Run

TOKENIZER = "tokenizer.json"
_TOKENIZER_SAMPLES = 20_000


def sources_of(config: StageConfig, root: Location) -> tuple[DatasetSource, ...]:
    """Return the datasets of a stage, and how many samples of each make an epoch."""
    manifests = [read_manifest(root, component.name) for component in config.mixture]
    counts = samples_per_epoch(config.mixture, [manifest.rows for manifest in manifests])
    folders = [dataset_folder(root, component.name) for component in config.mixture]
    return tuple(DatasetSource(*each) for each in zip(folders, manifests, counts, strict=True))


def make_tokenizer(recipe: Recipe, run: Run, root: Location, goes_on: bool) -> tuple[TrainedTokenizer, Inputs]:
    """Return the language model's tokenizer or train one; a resumed run reads the one that it began with."""
    from warren.models import inputs_of

    tokenizer = TrainedTokenizer(**(run.folder / TOKENIZER).read_json()) if goes_on else _first_tokenizer(recipe, root)
    return tokenizer, inputs_of(recipe.require("model"), tokenizer)


def write_tokenizer(run: Run, tokenizer: TrainedTokenizer) -> None:
    """Write the tokenizer for the attempts that go on with the run."""
    (run.folder / TOKENIZER).put_json(asdict(tokenizer))


def _first_tokenizer(recipe: Recipe, root: Location) -> TrainedTokenizer:
    from warren.models import folder_of, read_tokenizer, train_tokenizer

    model = recipe.require("model")
    source = model.language_model
    if source.pretrained is not None:
        folder = folder_of(source.pretrained, weights=False)
        return read_tokenizer(folder, source.eos_token, source.pad_token, source.bos_token)[0]
    vocab_size = model.tokenizer.train_vocab_size
    if vocab_size is None:
        raise ConfigError("model.tokenizer.train_vocab_size is required for a language model without 'pretrained'")
    return train_tokenizer(_texts(recipe, root), vocab_size)


def _texts(recipe: Recipe, root: Location) -> Iterator[str]:
    """Yield the texts that a tokenizer is trained on: the samples of the recipe's stages, in their templates."""
    for config in filter(None, (recipe.pretrain, recipe.finetune)):
        template = get_template(config.template or recipe.require("model").template)
        for source in sources_of(config, root):
            for sample in itertools.islice(iter_samples(source.folder, source.manifest), _TOKENIZER_SAMPLES):
                for segment in template.training(sample.turns, eos="", system=sample.system):
                    yield segment.text.replace(IMAGE_MARK, "")
