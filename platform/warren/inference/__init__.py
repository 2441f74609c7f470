"""Generation: one engine protocol and its default engine.

What computes in the process that imports it is asked for by module (`batch`, `offline`, `choosing`, `vllm_engine`): it
takes torch and transformers with it, and whoever only asks an engine needs neither.
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
from warren.inference.limits import EngineOptions, context_limit
from warren.inference.merged_streams import ChoiceDelta, merge_streams
from warren.inference.prompts import Prompt, encode_request
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
