"""Generation: one engine protocol, its default engine, and the way batch jobs use it."""

from warren.inference.batch import Batch
from warren.inference.choosing import Chooser
from warren.inference.engine import (
    Completion,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineStats,
    GenerationFailedError,
    GenerationRequest,
    RequestRefusedError,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
    TokenStream,
    join_deltas,
)
from warren.inference.gathering import Item, gathered
from warren.inference.limits import EngineOptions, context_limit
from warren.inference.offline import OfflineGenerator, completion_of, generate_all
from warren.inference.prompts import Prompt, encode_request
from warren.inference.transformers_engine import TransformersEngine
from warren.inference.vllm_engine import VllmEngine

__all__ = [
    "Batch",
    "Chooser",
    "Completion",
    "Engine",
    "EngineBusyError",
    "EngineClosedError",
    "EngineError",
    "EngineOptions",
    "EngineStats",
    "GenerationFailedError",
    "GenerationRequest",
    "Item",
    "OfflineGenerator",
    "Prompt",
    "RequestRefusedError",
    "SamplingParams",
    "TokenDelta",
    "TokenLogprob",
    "TokenStream",
    "TransformersEngine",
    "VllmEngine",
    "completion_of",
    "context_limit",
    "encode_request",
    "gathered",
    "generate_all",
    "join_deltas",
]
