"""What a run is: typed, frozen, strict recipes, and the resources and environment they run with."""

from warren.config.ingest import IngestConfig
from warren.config.mixture import MixtureComponent
from warren.config.model import (
    LanguageModelConfig,
    ModelConfig,
    Part,
    ProjectorConfig,
    TokenizerConfig,
    VisionTowerConfig,
)
from warren.config.recipe import (
    AverageConfig,
    Duration,
    EvaluateConfig,
    GateConfig,
    GuardConfig,
    LoraConfig,
    Recipe,
    ReleaseConfig,
    StageConfig,
    ValidationConfig,
)
from warren.config.resources import Resources
from warren.config.resume import Change, OnResume, changes
from warren.config.tree import Config, fingerprint, load_config

__all__ = [
    "AverageConfig",
    "Change",
    "Config",
    "Duration",
    "EvaluateConfig",
    "GateConfig",
    "GuardConfig",
    "IngestConfig",
    "LanguageModelConfig",
    "LoraConfig",
    "MixtureComponent",
    "ModelConfig",
    "OnResume",
    "Part",
    "ProjectorConfig",
    "Recipe",
    "ReleaseConfig",
    "Resources",
    "StageConfig",
    "TokenizerConfig",
    "ValidationConfig",
    "VisionTowerConfig",
    "changes",
    "fingerprint",
    "load_config",
]
