"""Configuration: typed, frozen and strict recipes, and the resources and environment that jobs run with."""

from warren.config.benchmark import BenchmarkConfig
from warren.config.curate import CurateConfig
from warren.config.ingest import IngestConfig
from warren.config.layered_config import Config
from warren.config.loading import fingerprint, load_config
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
    SanityPrompt,
    Section,
    StageConfig,
    ValidationConfig,
)
from warren.config.resources import Resources, ZeroStage
from warren.config.resume import Change, OnResume, changes
from warren.config.rollout import RolloutPolicy

__all__ = [
    "AverageConfig",
    "BenchmarkConfig",
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
    "SanityPrompt",
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
