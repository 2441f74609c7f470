"""DeepSpeed: a quiet start, whole weights, the loss scale, and checkpoints for another number of ranks."""

import argparse
import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

_NO_COMPILE_VARIABLE = "TORCHDYNAMO_DISABLE"
_ONLY_WEIGHTS_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def import_deepspeed() -> Any:
    """Import DeepSpeed late and quietly, and without its operators where there is no GPU.

    Why: Its import takes seconds, probes compilers and devices, and talks about it. Without a GPU it would compile an
        operator that only its inference uses, under a lock file that a killed process leaves behind and that every
        later start waits for without end. It warns where torch's distributed calls are old, and where the first step
        overflows.
    Upstream: `deepspeed/ops/__init__.py` (`__compatible_ops__`) and `build_shm_op` in `deepspeed/comm/torch.py` of
        DeepSpeed 0.19; `DS_ACCELERATOR` in `deepspeed/accelerator/real_accelerator.py`; the lock file is torch's
        (https://github.com/pytorch/pytorch/issues/189245); the scheduler's warning is discussed in
        https://github.com/huggingface/transformers/issues/11106.
    If it breaks: Training works without any of it, but may hang at its start after a killed run: look for what
        compiles `ShareMemCommBuilder` now.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    import deepspeed

    if not has_gpu:
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.utils.logging.logger.setLevel("ERROR")
    import_muon_uncompiled()
    return deepspeed


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer without compiling it.

    Why: ZeRO imports Muon in any case, to ask whether it is the optimizer. Compiling its functions loads torch's
        compiler, which takes a worker 1.3 s of CPU time.
    Upstream: `deepspeed/runtime/zero/muon/muon_optimizer.py` of DeepSpeed 0.19; torch reads `TORCHDYNAMO_DISABLE` when
        a function is decorated.
    If it breaks: Leave it out: workers start 1.3 s later.
    """
    before = os.environ.get(_NO_COMPILE_VARIABLE)
    os.environ[_NO_COMPILE_VARIABLE] = "1"
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        del os.environ[_NO_COMPILE_VARIABLE]
        if before is not None:
            os.environ[_NO_COMPILE_VARIABLE] = before


def whole_state(engine: Any) -> dict[str, torch.Tensor]:
    """Gather the weights of an engine's module on rank 0; every rank must call it. Empty on other ranks in ZeRO-3.

    Why: ZeRO-3 cuts every weight in pieces. Its public calls write a file; Warren needs the tensors.
    Upstream: `DeepSpeedEngine._zero3_consolidated_16bit_state_dict` in `deepspeed/runtime/engine.py` of DeepSpeed 0.19,
        from https://github.com/deepspeedai/DeepSpeed/pull/893.
    If it breaks: Use `deepspeed.zero.GatheredParameters` module by module, as that method does.
    """
    if engine.zero_optimization_stage() == 3:
        return engine._zero3_consolidated_16bit_state_dict() or {}
    return dict(engine.module.state_dict())


def num_elements(parameter: nn.Parameter) -> int:
    """Return how many elements a parameter has when it is whole.

    Why: Between calls ZeRO-3 leaves parameters empty.
    Upstream: `ds_numel`, which `deepspeed/runtime/zero/partition_parameters.py` of DeepSpeed 0.19 sets.
    If it breaks: Count the elements before `deepspeed.initialize`.
    """
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def loss_scale(engine: Any) -> float | None:
    """Return what fp16's losses are multiplied by; None in other precisions.

    Why: The run's metrics show it, and errors name it.
    Upstream: The optimizers' property `loss_scale` in `deepspeed/runtime/zero/stage3.py`, `stage_1_and_2.py` and
        `deepspeed/runtime/fp16/` of DeepSpeed 0.19, where comments promise it to users.
    If it breaks: Read it from the optimizer's loss scaler.
    """
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


def has_overflowed(engine: Any) -> bool:
    """Tell whether the step that was just taken was left out because its gradient is not finite.

    Why: DeepSpeed leaves its schedule behind then; Warren's learning rate follows from the number of the step.
    Upstream: `overflow` of the optimizers, which `DeepSpeedEngine._take_model_step` in `deepspeed/runtime/engine.py` of
        DeepSpeed 0.19 reads in the same way.
    If it breaks: Compare `engine.skipped_steps` before and after the step.
    """
    return bool(getattr(engine.optimizer, "overflow", False))


def is_scale_exhausted(error: BaseException) -> bool:
    """Tell whether a step failed because the loss scale cannot become smaller.

    Why: DeepSpeed raises a plain `Exception` whose text advises nothing.
    Upstream: `DynamicLossScaler.update_scale` in `deepspeed/runtime/fp16/loss_scaler.py` of DeepSpeed 0.19, from
        https://github.com/deepspeedai/DeepSpeed/pull/1958.
    If it breaks: The run ends with DeepSpeed's text instead of advice. Match the new text.
    """
    return "loss scale" in str(error)


def group_settings(engine: Any) -> list[dict[str, Any]]:
    """Return the rates, decays and other settings of an engine's parameter groups, for `mend_universal_load`."""
    groups = engine.optimizer.param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def mend_universal_load(engine: Any, settings: list[dict[str, Any]], rates: Sequence[Any]) -> None:
    """Undo what DeepSpeed's load of a universal checkpoint gets wrong with several parameter groups.

    Why: In ZeRO-3 it gives every group the first one's rates and decay, and all of them one step counter, which then
        counts once a group.
    Upstream: `load_hp_checkpoint_state_from_checkpoint_dir_stage3` in `deepspeed/runtime/zero/stage3.py` of DeepSpeed
        0.19: it copies `param_groups[0]` into every group, and shares `state_step`. Groups of ZeRO-3 have lost their
        rates before: https://github.com/deepspeedai/DeepSpeed/issues/6873.
    If it breaks: If DeepSpeed mends it, this changes nothing and can go. The elastic tests compare loss curves.

    Args:
        settings: `group_settings` from before the load.
        rates: The learning rate of each group now.
    """
    for group, kept, rate in zip(engine.optimizer.param_groups, settings, rates, strict=True):
        group.update(kept, lr=rate)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


@contextlib.contextmanager
def only_tensors() -> Iterator[None]:
    """Let torch's loads inside make tensors, plain values and DeepSpeed's own small types, and nothing else.

    Why: DeepSpeed loads checkpoints with `weights_only=False`. Whoever may write into a run's folder could then run
        code in its workers.
    Upstream: `TORCH_FORCE_WEIGHTS_ONLY_LOAD` in `torch/serialization.py` of torch 2.13 overrules the caller; the types
        are those that `torch.serialization.get_unsafe_globals_in_checkpoint` finds in what DeepSpeed 0.19 writes.
    If it breaks: Resuming is refused and the message names a type. Look at what it is, and add it if it is harmless.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_ONLY_WEIGHTS_VARIABLE)
    os.environ[_ONLY_WEIGHTS_VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        del os.environ[_ONLY_WEIGHTS_VARIABLE]
        if before is not None:
            os.environ[_ONLY_WEIGHTS_VARIABLE] = before


def convert_to_universal(source: Path, target: Path) -> None:
    """Write the state that any number of ranks saved so that every number of ranks can load it.

    Why: DeepSpeed refuses to load ZeRO's partitioned optimizer state at another world size. Its converter is a
        program; its main function takes the parsed command line.
    Upstream: `main(args)` in `deepspeed/checkpoint/ds_to_universal.py` of DeepSpeed 0.19; `inject_missing_state` is of
        https://github.com/deepspeedai/DeepSpeed/pull/5608, as Warren's modules do not write what the converter asserts.
    If it breaks: Run `python -m deepspeed.checkpoint.ds_to_universal` with the same options, in its new spelling.

    Args:
        source: A folder that `save_checkpoint` wrote.
        target: A folder that does not exist.
    """
    import_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
