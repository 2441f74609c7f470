"""The parts of a checkpoint that other jobs read: the servable model and, with LoRA, the adapters alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from warren.config import StageConfig
from warren.data.model_inputs import Inputs
from warren.models.adapters import merged_state, save_adapter
from warren.models.head import folded_state
from warren.models.llava_layout import save_model
from warren.train.checkpoint import ADAPTER_FOLDER, MODEL_FOLDER


@dataclass(frozen=True)
class Servable:
    """Writes a model in training in the layout that evaluation, release and serving read.

    Attributes:
        model: Only its configuration and its adapters' settings are read; `write` takes the weights.
        initial_model_uri: URI of the model that the stage started from; None if it was built from the recipe.
    """

    model: nn.Module
    stage: StageConfig
    inputs: Inputs
    tokenizer_json: str
    initial_model_uri: str | None = None

    def write(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Write the model with its adapters merged, and the adapters beside it.

        Args:
            state: The model's full state, by in-memory names.
            folder: An existing local folder.
        """
        config: Any = self.model.config
        plain = dict(state)
        if self.stage.lora is not None:
            (folder / ADAPTER_FOLDER).mkdir()
            save_adapter(state, self.model, self.stage.trainable, self.initial_model_uri, folder / ADAPTER_FOLDER)
            plain = merged_state(state, self.stage.lora)
        (folder / MODEL_FOLDER).mkdir()
        save_model(folded_state(plain, config), config, self.inputs, self.tokenizer_json, folder / MODEL_FOLDER)
