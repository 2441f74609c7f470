"""What a run is: typed, frozen, strict recipes, and the resources and environment they run with."""

from warren.config.curate import CurateConfig
from warren.config.ingest import IngestConfig
from warren.config.layers import Config
from warren.config.mixture import MixtureComponent
from warren.config.model import (
    LanguageModelConfig,
    ModelConfig,
    ModelPart,
    ProjectorConfig,
    TokenizerConfig,
    VisionTowerConfig,
)
from warren.config.names import check_name, split_dataset
from warren.config.recipe import (
    AverageConfig,
    Duration,
    EvaluateConfig,
    GateConfig,
    GuardConfig,
    LoraConfig,
    Recipe,
    ReleaseConfig,
    Section,
    StageConfig,
    ValidationConfig,
)
from warren.config.resources import Resources, ZeroStage
from warren.config.resume import Change, OnResume, changes
from warren.config.rollout import RolloutPolicy
from warren.config.tree import fingerprint, load_config

__all__ = [
    "AverageConfig",
    "Change",
    "Config",
    "CurateConfig",
    "Duration",
    "EvaluateConfig",
    "GateConfig",
    "GuardConfig",
    "IngestConfig",
    "LanguageModelConfig",
    "LoraConfig",
    "MixtureComponent",
    "ModelConfig",
    "ModelPart",
    "OnResume",
    "ProjectorConfig",
    "Recipe",
    "ReleaseConfig",
    "Resources",
    "RolloutPolicy",
    "Section",
    "StageConfig",
    "TokenizerConfig",
    "ValidationConfig",
    "VisionTowerConfig",
    "ZeroStage",
    "changes",
    "check_name",
    "fingerprint",
    "load_config",
    "split_dataset",
]
