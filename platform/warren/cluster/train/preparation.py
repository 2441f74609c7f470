"""What a stage needs before its workers start: everything is read and checked, and only then written."""

from dataclasses import dataclass, replace
from typing import Literal

from warren.config import Recipe, Resources, StageConfig
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.model_inputs import TrainedTokenizer
from warren.data.stream import DatasetSource, Encoding, StreamSpec
from warren.errors import CheckpointError
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.evaluation_plan import EvaluationPlan
from warren.train.initial_model import InitialModel
from warren.train.resume import begin, check_duration, go_on
from warren.train.run import Run
from warren.train.run_record import RunRecord, describe
from warren.train.stage_inputs import make_tokenizer, sources_of, write_tokenizer

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class TrainingTask:
    """Everything a worker needs; it travels to every rank.

    Attributes:
        initial_model: The model that the stage starts from; None builds it from the recipe, for `tokenizer`.
        record: The run's record with what changed since it began; not written yet.
    """

    run: Run
    recipe: Recipe
    stage: Stage
    resources: Resources
    stream: StreamSpec
    held_out: StreamSpec | None
    initial_model: InitialModel | None
    tokenizer: TrainedTokenizer | None
    record: RunRecord

    @property
    def evaluation(self) -> EvaluationPlan | None:
        """Which checkpoints are evaluated while the stage trains; None: none."""
        return EvaluationPlan.of(self.recipe, self.stage, self.stream.plan().num_steps)

    @property
    def config(self) -> StageConfig:
        """The configuration of the stage this task trains."""
        return self.recipe.require(self.stage)

    def begin(self, latest: CheckpointManifest | None) -> None:
        """Write the run's record and its tokenizer."""
        begin(self.run, self.record, latest)
        if self.tokenizer is not None:
            write_tokenizer(self.run, self.tokenizer)


def prepare(
    recipe: Recipe,
    stage: Stage,
    resources: Resources,
    run: Run,
    latest: CheckpointManifest | None,
    initial_model: InitialModel | None,
) -> TrainingTask:
    """Read and check what a stage needs; nothing is written.

    Args:
        latest: The run's newest complete checkpoint.
        initial_model: The model that the stage starts from; None builds one from the recipe.

    Raises:
        WarrenError: The run cannot start or go on; the message says why.
    """
    config = recipe.require(stage)
    root = Location(run.folder.uri.rsplit("/", 2)[0])
    sources = sources_of(config, root)
    template = config.template or recipe.require("model").template
    if initial_model is not None:
        initial_model.check_template(template)
    began_from = (initial_model.record, initial_model.step) if initial_model else ()
    began = describe(recipe, stage, resources, sources, *began_from)
    record = go_on(run, began, latest)
    _check_zero_stage(latest, resources)
    if initial_model is None:
        tokenizer, inputs = make_tokenizer(recipe, run, root, goes_on=latest is not None)
        tokenizer_json = tokenizer.json
    else:
        initial_model = _as_begun(initial_model, record, root)
        tokenizer, inputs, tokenizer_json = None, initial_model.inputs(), initial_model.tokenizer_json()
    stream = StreamSpec(
        sources=sources,
        encoding=Encoding(
            inputs.with_template(template, config.image_padding), tokenizer_json, config.max_length_tokens
        ),
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        window_samples=config.shuffle_window_samples,
        num_steps=config.duration.steps,
        epochs=config.duration.epochs,
    )
    check_duration(run, config, latest, stream)
    held_out = _held_out(config, root, stream)
    return TrainingTask(run, recipe, stage, resources, stream, held_out, initial_model, tokenizer, record)


def _check_zero_stage(latest: CheckpointManifest | None, resources: Resources) -> None:
    if latest is not None and latest.zero_stage != resources.zero_stage:
        raise CheckpointError(
            f"the checkpoint at step {latest.step} was written with ZeRO stage {latest.zero_stage}: "
            f"resume with --set resources.zero_stage={latest.zero_stage}"
        )


def _held_out(config: StageConfig, root: Location, stream: StreamSpec) -> StreamSpec | None:
    """Plan the samples to validate on: whole global batches, none twice."""
    if config.validation is None:
        return None
    name = config.validation.dataset
    manifest = read_manifest(root, name)
    num_samples = min(config.validation.num_samples, manifest.rows)
    source = DatasetSource(dataset_folder(root, name), manifest, manifest.rows)
    return replace(stream, sources=(source,), num_steps=-(-num_samples // stream.global_batch_size), epochs=None)


def _as_begun(initial_model: InitialModel, record: RunRecord, root: Location) -> InitialModel:
    """Return the initial model at the step that the first attempt took; its run may have gone on since."""
    step = record["origin_step"]
    if step == initial_model.step:
        return initial_model
    return InitialModel.of_run(Run.of(root, initial_model.record["run"]), step)
