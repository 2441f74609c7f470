"""The model that a stage starts from: another run's checkpoint, or a model folder in the LLaVA layout."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from warren.data.model_inputs import INPUTS_FILE, TOKENIZER_FILE, Inputs
from warren.data.template import get_template
from warren.errors import ConfigError, ModelError, NotFoundError
from warren.storage import FileEntry, Location, StoredFiles
from warren.storage.scratch import scratch_folder
from warren.train.checkpoint import MODEL_FOLDER
from warren.train.run import Run

_PROBES = 64  # values of each frozen tensor that go into the digest


@dataclass(frozen=True)
class InitialModel:
    """A saved model that a stage starts from, with its weights, tokenizer, template and preprocessing.

    Attributes:
        folder: The folder of its files.
        files: The files with their digests, where a checkpoint's manifest lists them.
        record: Its entry `origin` in the run's record; equal entries mean the same model.
        step: The checkpoint's step, if it is one.
    """

    folder: Location
    record: dict[str, str]
    files: tuple[FileEntry, ...] = ()
    step: int | None = None

    @classmethod
    def of_run(cls, run: Run, step: int | None = None) -> "InitialModel":
        """Start from the checkpoint of a run at `step`, or from its newest.

        Raises:
            CheckpointError: There is none.
        """
        manifest = run.newest_checkpoint() if step is None else run.checkpoints.read(step)
        model = run.checkpoints.part(manifest, MODEL_FOLDER)
        return cls(model.folder, {"run": run.name}, model.files, manifest.step)

    @classmethod
    def of_folder(cls, folder: Location) -> "InitialModel":
        """Start from a model folder.

        Raises:
            ModelError: Warren did not write it.
        """
        initial_model = cls(folder, {"model": folder.uri})
        try:
            initial_model.inputs()
        except NotFoundError:
            raise ModelError(
                f"{folder} has no {INPUTS_FILE}: a stage starts from what jobs/convert.py import or merge wrote, "
                "or from a release"
            ) from None
        return initial_model

    def inputs(self) -> Inputs:
        """Return what the model expects at its inputs."""
        return Inputs.from_json((self.folder / INPUTS_FILE).read_json())

    def tokenizer_json(self) -> str:
        """Return the text of its tokenizer."""
        return (self.folder / TOKENIZER_FILE).read_bytes().decode()

    def check_template(self, template: str) -> None:
        """Check that a recipe's template is the one that the model was trained on.

        Raises:
            ConfigError: It is another one. A model of stage 1 has learnt no template, so it takes any.
        """
        own = get_template(self.inputs().template)
        if not own.captions_only and get_template(template) != own:
            raise ConfigError(
                f"the recipe's template is {template!r}, but {self.folder} was trained on {own.name!r}: "
                f"remove finetune.template, and say --set model.template={own.name}"
            )

    def load(self) -> nn.Module:
        """Load the model in float32, with its own configuration.

        Raises:
            WarrenError: A file is missing or damaged, or the parts contradict each other.
        """
        # Imported here, because drivers and Ray Train's controller load no model.
        from warren.models import folder_of, load_bundle
        from warren.models.minicpm import check_minicpm

        with scratch_folder("initial") as scratch:
            folder = StoredFiles(self.folder, self.files).fetch(scratch) if self.files else folder_of(self.folder.uri)
            model = load_bundle(folder)[0].float()
        check_minicpm(model.config)
        for config in (model.config, model.config.text_config, model.config.vision_config):
            config.dtype = torch.float32
        return model  # type: ignore[no-any-return]


def frozen_digest(model: nn.Module) -> str:
    """Return a digest of the frozen weights, which checkpoints do not hold, from some values of each.

    A resumed run must have the frozen weights that it began with. Values are rounded, because the last bits differ
    between processors.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat: Any = parameter.detach().flatten()
            last = max(0, flat.numel() - 1)  # float32 cannot count to the last value of a large matrix
            places = torch.linspace(0, last, _PROBES if flat.numel() else 0, dtype=torch.float64).long()
            rounded = flat[places].to(torch.bfloat16).view(torch.int16).cpu().numpy()
            digest.update(f"{name} {list(parameter.shape)}".encode() + rounded.tobytes())
    return digest.hexdigest()[:16]
