"""Generation: the engine contract, and the default engine that fulfils it.

Modules that compute in this process import torch and transformers, so they are imported by their own names:
`transformers_engine.scheduler`, `transformers_engine.offline` and `vllm_engine.engine`. Everything exported here needs
neither.
"""

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
from warren.inference.engine_options import EngineOptions, context_limit
from warren.inference.prompts import Prompt, encode_request
from warren.inference.streams import ChoiceDelta, merge_streams
from warren.inference.transformers_engine.engine import TransformersEngine
from warren.inference.transformers_engine.process import WorkerProcess

__all__ = [
    "ChoiceDelta",
    "Completion",
    "Engine",
    "EngineBusyError",
    "EngineClosedError",
    "EngineError",
    "EngineOptions",
    "EngineStats",
    "GenerationFailedError",
    "GenerationRequest",
    "Prompt",
    "RequestRefusedError",
    "SamplingParams",
    "TokenDelta",
    "TokenLogprob",
    "TokenStream",
    "TransformersEngine",
    "WorkerProcess",
    "context_limit",
    "encode_request",
    "join_deltas",
    "merge_streams",
]
