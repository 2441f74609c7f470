"""Releases: immutable published models with lineage, aliases with a history, the gate, and the registry of them all."""

from warren.release.aliases import (
    ALIASES,
    Alias,
    AliasMove,
    locate_release,
    move_alias,
    read_alias,
    read_history,
    resolve_release,
)
from warren.release.deployments import deployment_marker, read_deployment, read_deployments, write_deployment
from warren.release.garbage_collection import RemovalPlan, gc, plan_gc
from warren.release.gate import (
    AnswerShares,
    CandidateFacts,
    EngineProbe,
    ProbedAnswer,
    StableComparison,
    check_gate,
    judge,
)
from warren.release.lineage import (
    Decontamination,
    EvaluationReference,
    Lineage,
    ParentModel,
    TrainingDataset,
)
from warren.release.registry import Difference, Pin, Registry
from warren.release.release import GoldenWriter, Release, fetch_release, publish, read_release, release_folder
from warren.release.verdict import GateCheck, GateOverride, GateVerdict, read_verdict, write_accepted, write_refused

__all__ = [
    "ALIASES",
    "Alias",
    "AliasMove",
    "AnswerShares",
    "CandidateFacts",
    "Decontamination",
    "Difference",
    "EngineProbe",
    "EvaluationReference",
    "GateCheck",
    "GateOverride",
    "GateVerdict",
    "GoldenWriter",
    "Lineage",
    "ParentModel",
    "Pin",
    "ProbedAnswer",
    "Registry",
    "Release",
    "RemovalPlan",
    "StableComparison",
    "TrainingDataset",
    "check_gate",
    "deployment_marker",
    "fetch_release",
    "gc",
    "judge",
    "locate_release",
    "move_alias",
    "plan_gc",
    "publish",
    "read_alias",
    "read_deployment",
    "read_deployments",
    "read_history",
    "read_release",
    "read_verdict",
    "release_folder",
    "resolve_release",
    "write_accepted",
    "write_deployment",
    "write_refused",
]
