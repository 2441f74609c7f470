"""vLLM's asynchronous engine.

vLLM is an extra with an environment of its own, so it is imported inside the functions.
"""

from typing import Any


def start_engine(**arguments: Any) -> Any:
    """Start vLLM's engine in this process's event loop, for `generate`, `errored` and `shutdown`.

    Why: Warren's endpoint checks, counts and writes answers itself, so it needs the engine below vLLM's server. The
        engine's class has no documented home.
    Upstream: `AsyncLLM` in `vllm/v1/engine/async_llm.py`; a request whose generator is closed is given up
        (https://github.com/vllm-project/vllm/pull/19225).
    If it breaks: Look in `vllm/entrypoints` for how its own server starts the engine.

    Args:
        arguments: Fields of `vllm.AsyncEngineArgs`.

    Raises:
        ImportError: vLLM is not installed here, or another version.
    """
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def delta_sampling(**fields: Any) -> Any:
    """Return vLLM's sampling parameters for answers that come in pieces of token ids, without text.

    Why: Text and stop strings come from Warren's detokeniser, so that both engines write the same for the same tokens.
    Upstream: `SamplingParams` and `RequestOutputKind.DELTA` in `vllm/sampling_params.py`.
    If it breaks: Look in `vllm/entrypoints` for how its server asks for a stream's pieces.

    Args:
        fields: Of `vllm.SamplingParams`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**fields, detokenize=False, output_kind=RequestOutputKind.DELTA)
