"""Contracts with DeepSpeed: what `warren.compat.deepspeed` takes for granted. No engine is started."""

import importlib
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from library_contracts import changed, holds, parameters
from warren.compat.deepspeed import (
    convert_to_universal,
    group_settings,
    has_overflowed,
    import_deepspeed,
    import_muon_uncompiled,
    is_scale_exhausted,
    loss_scale,
    mend_universal_load,
    num_elements,
    only_tensors,
    whole_state,
)


@pytest.fixture(scope="module")
def deepspeed() -> Any:
    return import_deepspeed()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU its operators stay")
def test_no_operator_is_probed_or_compiled_without_a_gpu(deepspeed: Any) -> None:
    from deepspeed.accelerator import real_accelerator

    communication = importlib.import_module("deepspeed.comm.torch")  # `deepspeed.comm.torch` is torch, as an attribute
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    assert holds(real_accelerator, '"DS_ACCELERATOR"'), changed(import_deepspeed, "DS_ACCELERATOR is not read any more")
    assert vars(deepspeed.ops)["__compatible_ops__"] == {}
    text = "deepspeed.ops.__compatible_ops__.get(builder.NAME, False)"
    assert holds(communication.build_shm_op, text), changed(import_deepspeed, "the operator is compiled without asking")
    assert communication.build_shm_op() is None, changed(import_deepspeed, "the operator is compiled")


def test_muon_is_imported_without_being_compiled(deepspeed: Any) -> None:
    muon = importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    assert holds(muon, "@compiler.compile()"), changed(import_muon_uncompiled, "Muon is not compiled when imported")
    import_muon_uncompiled()
    assert "TORCHDYNAMO_DISABLE" not in os.environ


def test_whole_weights_are_gathered_by_the_engine(deepspeed: Any) -> None:
    name = "_zero3_consolidated_16bit_state_dict"
    engine = deepspeed.DeepSpeedEngine
    assert hasattr(engine, name), changed(whole_state, f"DeepSpeedEngine has no {name} any more")
    required = [p for p in parameters(getattr(engine, name)) if p != "exclude_frozen_parameters"]
    assert required == [], changed(whole_state, f"{name} asks for {required}")
    stage_3: Any = SimpleNamespace(zero_optimization_stage=lambda: 3, **{name: lambda: None})
    assert whole_state(stage_3) == {}  # another rank than the first
    module = nn.Linear(1, 1)
    stage_2: Any = SimpleNamespace(zero_optimization_stage=lambda: 2, module=module)
    assert set(whole_state(stage_2)) == {"weight", "bias"}


class _Runs:
    """What an attacker puts into a file: reading it calls a function."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self._target,)


def test_its_loads_make_nothing_but_tensors_and_plain_values(deepspeed: Any, tmp_path: Path) -> None:
    from deepspeed.runtime.checkpoint_engine import torch_checkpoint_engine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    assert holds(torch_checkpoint_engine, "weights_only=False"), changed(only_tensors, "it may be safe by itself now")
    file, ran = tmp_path / "state.pt", tmp_path / "ran"
    torch.save({"weights": torch.ones(2), "scaler": LossScaler(2.0)}, file)
    with only_tensors():
        assert torch.load(file, weights_only=False)["scaler"].cur_scale == 2.0
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.save(_Runs(ran), file)
    with only_tensors(), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert not ran.exists()
    torch.load(file, weights_only=False)
    assert ran.exists(), "the file does nothing, so this test shows nothing"


def test_partitioned_parameters_keep_their_size(deepspeed: Any) -> None:
    from deepspeed.runtime.zero import partition_parameters

    assert holds(partition_parameters, "param.ds_numel = param.numel()"), changed(num_elements, "ds_numel is not set")
    parameter = nn.Parameter(torch.empty(0))
    assert num_elements(parameter) == 0
    parameter.ds_numel = 6  # type: ignore[attr-defined]
    assert num_elements(parameter) == 6


def test_optimizers_show_their_loss_scale_and_overflow(deepspeed: Any) -> None:
    from deepspeed.runtime.fp16 import fused_optimizer, unfused_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for optimizer in (
        stage3.DeepSpeedZeroOptimizer_Stage3,
        stage_1_and_2.DeepSpeedZeroOptimizer,
        fused_optimizer.FP16_Optimizer,
        unfused_optimizer.FP16_UnfusedOptimizer,
    ):
        assert hasattr(optimizer, "loss_scale"), changed(loss_scale, f"{optimizer.__name__} has no loss_scale any more")
        assert holds(optimizer, "self.overflow"), changed(has_overflowed, f"{optimizer.__name__} keeps no overflow")
    text = "overflow = self.optimizer.overflow"
    assert holds(deepspeed.DeepSpeedEngine._take_model_step, text), changed(
        has_overflowed, "the engine does not read overflow of its optimizer any more"
    )
    engine: Any = SimpleNamespace(optimizer=SimpleNamespace(overflow=True), fp16_enabled=lambda: False)
    assert has_overflowed(engine)
    assert loss_scale(engine) is None


def test_a_scale_that_cannot_shrink_says_so(deepspeed: Any) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(
        init_scale=1.0,
        scale_window=1000,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        dtype=torch.float16,
    )
    with pytest.raises(Exception, match=r".") as raised:
        scaler.update_scale(overflow=True)
    assert is_scale_exhausted(raised.value), changed(is_scale_exhausted, f"DeepSpeed says {raised.value} now")
    assert not is_scale_exhausted(RuntimeError("shapes do not fit"))


def test_the_load_of_universal_checkpoints_still_needs_mending(deepspeed: Any) -> None:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    load = DeepSpeedZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3
    for text in ('["param_groups"][0].items()', "['step'] = state_step"):
        assert holds(load, text), changed(
            mend_universal_load, f"the load does not do {text} any more: it may be mended"
        )
    shared = torch.tensor(3.0)
    inner = SimpleNamespace(state={"a": {"step": shared}, "b": {"step": shared}})
    groups = [{"lr": 0.1, "params": ["a"], "weight_decay": 0.0}, {"lr": 0.2, "params": ["b"], "weight_decay": 0.5}]
    engine: Any = SimpleNamespace(optimizer=SimpleNamespace(optimizer=inner, param_groups=groups))
    settings = group_settings(engine)
    groups[1].update(groups[0], params=["b"])
    mend_universal_load(engine, settings, [0.01, 0.02])
    assert groups == [
        {"lr": 0.01, "params": ["a"], "weight_decay": 0.0},
        {"lr": 0.02, "params": ["b"], "weight_decay": 0.5},
    ]
    inner.state["a"]["step"] += 1
    assert inner.state["b"]["step"] == 3


def test_the_converter_takes_these_options(deepspeed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from deepspeed.checkpoint import ds_to_universal

    monkeypatch.setattr("sys.argv", ["x", "--input_folder", "a", "--output_folder", "b"])
    known = vars(ds_to_universal.parse_arguments())
    passed: dict[str, Any] = {}
    monkeypatch.setattr(ds_to_universal, "main", lambda arguments: passed.update(vars(arguments)))
    convert_to_universal(tmp_path / "from", tmp_path / "to")
    assert set(passed) == set(known), changed(
        convert_to_universal, f"the converter's options changed by {sorted(set(passed) ^ set(known))}"
    )
