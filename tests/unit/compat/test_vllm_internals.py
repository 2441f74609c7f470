"""Contracts with vLLM: what `warren.compat.vllm` takes for granted. Run where the extra is installed."""

import pytest

from library_contracts import changed, parameters
from warren.compat.vllm import delta_sampling, start_engine


@pytest.fixture(autouse=True)
def vllm() -> None:
    pytest.importorskip("vllm", reason="the extra has an environment of its own")


def test_the_engine_is_started_and_asked_as_before() -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    wanted = {"model", "max_model_len", "max_num_seqs", "dtype", "enforce_eager", "disable_log_stats"}
    missing = wanted - set(parameters(AsyncEngineArgs))
    assert not missing, changed(start_engine, f"AsyncEngineArgs has no {sorted(missing)} any more")
    for name in ("from_engine_args", "generate", "errored", "shutdown"):
        assert hasattr(AsyncLLM, name), changed(start_engine, f"AsyncLLM has no {name} any more")
    assert parameters(AsyncLLM.generate)[:3] == ["prompt", "sampling_params", "request_id"], changed(
        start_engine, f"AsyncLLM.generate takes {parameters(AsyncLLM.generate)} now"
    )


def test_answers_come_as_deltas_of_ids() -> None:
    sampling = delta_sampling(max_tokens=3, temperature=0.0, logit_bias={7: -100.0})
    assert sampling.detokenize is False, changed(delta_sampling, "text is made although it is switched off")
    assert sampling.output_kind.name == "DELTA", changed(delta_sampling, f"pieces are {sampling.output_kind}")
