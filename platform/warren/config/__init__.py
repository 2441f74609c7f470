"""What a run is: typed, frozen, strict recipes, and the resources and environment they run with."""

from warren.config.ingest import IngestConfig
from warren.config.recipe import (
    Duration,
    EvaluateConfig,
    GateConfig,
    LanguageModelConfig,
    ModelConfig,
    ProjectorConfig,
    Recipe,
    ReleaseConfig,
    StageConfig,
    TokenizerConfig,
    VisionTowerConfig,
)
from warren.config.resources import Resources
from warren.config.tree import Config, fingerprint, load_config

__all__ = [
    "Config",
    "Duration",
    "EvaluateConfig",
    "GateConfig",
    "IngestConfig",
    "LanguageModelConfig",
    "ModelConfig",
    "ProjectorConfig",
    "Recipe",
    "ReleaseConfig",
    "Resources",
    "StageConfig",
    "TokenizerConfig",
    "VisionTowerConfig",
    "fingerprint",
    "load_config",
]
