"""The DeepSpeed engine; its JSON comes from the typed configuration."""

import contextlib
import io
import math
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from warren.compat.deepspeed import (
    convert_to_universal,
    group_settings,
    has_overflowed,
    import_deepspeed,
    is_scale_exhausted,
    loss_scale,
    mend_universal_load,
    num_elements,
    only_tensors,
    whole_state,
)
from warren.compat.torch import set_group_timeouts
from warren.config import Resources, StageConfig
from warren.data.batch import Cut
from warren.errors import CheckpointError, TrainingError
from warren.train.optimization import cosine_schedule, optimizer

STATE_TAG = "state"
_OPTIMIZER_BYTES = 12  # of one parameter: a master copy and two moments, in float32
_NEVER = 10**9
_BUCKET_ELEMENTS = 1 << 24
"""Gradients that one all-reduce adds up: 32 MiB in bf16, about as much as in torch's DDP. One or two buffers of this
size are in memory; with DeepSpeed's default of 5e8, each would take a gigabyte."""
_DEEPSPEEDS_NAMES = {"optimizer": "optimizer", "weights": "param"}
# The loss scale halves with every gradient that overflows, and doubles after a thousand steps without.
_FP16 = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1}


def deepspeed_config(stage: StageConfig, resources: Resources, cut: Cut) -> dict[str, Any]:
    """Write DeepSpeed's JSON for a stage."""
    place = {"device": "cpu", "pin_memory": resources.gpus_per_worker > 0}
    offload = {f"offload_{_DEEPSPEEDS_NAMES[part]}": place for part in resources.offload}
    return {
        "train_micro_batch_size_per_gpu": resources.micro_batch_size,
        "gradient_accumulation_steps": cut.num_micro_batches,
        "gradient_clipping": stage.max_grad_norm,
        "bf16": {"enabled": resources.precision == "bf16"},
        "fp16": _FP16 if resources.precision == "fp16" else {"enabled": False},
        "zero_optimization": {
            "stage": resources.zero_stage,
            "overlap_comm": resources.gpus_per_worker > 0,
            "contiguous_gradients": True,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "stage3_gather_16bit_weights_on_model_save": True,
            **offload,
        },
        # torch's own AdamW, on CPU and GPU alike: DeepSpeed's CPU Adam must be compiled and rounds differently.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }


class TrainingEngine:
    """One rank's DeepSpeed engine: it takes micro-batches and makes one optimizer step of them.

    Args:
        objective: The module to train; its forward returns the loss.
        cut: How the global batch is cut.
        num_steps: Length of the schedule.
        universal: Whether `load` reads a state that `to_universal` wrote.

    Attributes:
        forward_done: When the last forward ended, by `time.perf_counter`; later times include waiting for other ranks.
    """

    def __init__(
        self,
        objective: nn.Module,
        stage: StageConfig,
        resources: Resources,
        cut: Cut,
        num_steps: int,
        universal: bool = False,
    ) -> None:
        deepspeed = import_deepspeed()
        built = optimizer(objective.model, stage)  # type: ignore[arg-type]
        config = deepspeed_config(stage, resources, cut)
        if universal:
            # Set for such a load only: DeepSpeed would read every checkpoint as a universal one.
            config["checkpoint"] = {"load_universal": True}
        self._universal = universal
        self._gate = built
        self._schedule = torch.optim.lr_scheduler.LambdaLR(built, cosine_schedule(num_steps, stage.warmup_fraction))
        with contextlib.redirect_stdout(io.StringIO()):  # its builders print their progress
            self._engine, *_ = deepspeed.initialize(
                model=objective,
                optimizer=built,
                lr_scheduler=self._schedule,
                config=config,
                dist_init_required=False,
            )
        set_group_timeouts(resources.group_timeout_s)  # of the groups that DeepSpeed made, too
        self._scale = cut.world_size * cut.num_micro_batches
        self.forward_done = 0.0

    @property
    def device(self) -> torch.device:
        """Where this rank trains."""
        return torch.device(self._engine.device)

    def forward_backward(self, batch: dict[str, Any], num_supervised_tokens: int, is_last: bool) -> torch.Tensor:
        """Add one micro-batch's share of the global batch's gradient.

        DeepSpeed averages over ranks and micro-batches; multiplying by their number leaves the token-weighted mean
        over the whole global batch, however it is cut.

        Args:
            is_last: Whether it is this rank's last one of the global batch; with packing, batches differ in number.

        Returns:
            The micro-batch's summed loss divided by the global token count, detached.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # A batch without supervised tokens has a loss of zero, not 0/0.
        share: torch.Tensor = self._engine(**batch) / max(1, num_supervised_tokens)
        self.forward_done = time.perf_counter()
        self._engine.backward(share * self._scale)
        if not is_last:
            self._engine.step()  # only counts the micro-batch
        return share.detach()

    def evaluate(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return a micro-batch's summed loss without changing anything; every rank must call it equally often."""
        self._engine.eval()
        with torch.no_grad():
            loss: torch.Tensor = self._engine(**batch)
        self._engine.train()
        return loss

    def step(self, skip: bool = False) -> tuple[float, float]:
        """Take the optimizer step, or skip it; the schedule advances in both cases.

        A gradient that is not finite is never applied. ZeRO notices one by the norm over all ranks; without ZeRO every
        rank has the whole gradient and notices it itself.

        Args:
            skip: Drop the gradient instead.

        Returns:
            The gradient norm before clipping (NaN or infinite if the step was skipped because of it), and the largest
            learning rate of the step.
        """
        learning_rate = float(max(self._engine.get_lr()))
        norm = self._own_norm() if self._engine.zero_optimization_stage() == 0 else None
        self._gate.closed = skip or (norm is not None and not math.isfinite(norm))
        self._step()
        self._gate.closed = False
        if has_overflowed(self._engine):
            self._schedule.step()  # DeepSpeed does not after an overflow, but the rate must depend on the step alone
            norm = math.inf
        return float(self._engine.get_global_grad_norm()) if norm is None else norm, learning_rate

    @property
    def loss_scale(self) -> float | None:
        """The factor of the loss in fp16, so that small gradients do not vanish; None in other precisions."""
        return loss_scale(self._engine)

    def _step(self) -> None:
        scale = self.loss_scale
        try:
            self._engine.step()
        except Exception as error:
            if scale is None or not is_scale_exhausted(error):
                raise
            raise TrainingError(
                f"the gradient overflows fp16 even at a loss scale of {scale:g}: lower the learning rate, or train in "
                "bf16 or fp32 (resources.precision), in a new run (--run)"
            ) from None

    def _own_norm(self) -> float:
        """Return the norm that DeepSpeed does not keep without ZeRO."""
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def state_bytes(self) -> int:
        """Return roughly how much `save` writes on one rank, with the servable model."""
        parameters = list(self._engine.module.parameters())
        sizes = [num_elements(p) * p.element_size() for p in parameters]
        trained = sum(num_elements(p) for p in parameters if p.requires_grad)
        # Without ZeRO every rank writes the whole optimizer state.
        shares = dist.get_world_size() if self._engine.zero_optimization_stage() else 1
        return int(2 * sum(sizes) + _OPTIMIZER_BYTES * trained // shares)

    def model_state(self) -> dict[str, torch.Tensor]:
        """Gather the model's full weights on rank 0; every rank must call it. Empty on the other ranks."""
        return {name.removeprefix("model."): tensor for name, tensor in whole_state(self._engine).items()}

    def save(self, folder: Path) -> None:
        """Write this rank's share of what trains, optimizer and schedule below `folder`; every rank must call it.

        Frozen weights are left out, because a resumed stage takes them from the model that it started from.
        """
        self._engine.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, from a folder that holds every rank's files; frozen weights stay as they are.

        Raises:
            CheckpointError: A file holds something else than tensors and plain values.
        """
        settings = group_settings(self._engine)
        with contextlib.redirect_stdout(io.StringIO()), refused_as_checkpoint(STATE_TAG), only_tensors():
            self._engine.load_checkpoint(str(folder), tag=STATE_TAG, load_module_strict=False)
        if self._universal:
            mend_universal_load(self._engine, settings, self._schedule.get_last_lr())


@contextlib.contextmanager
def refused_as_checkpoint(name: str) -> Iterator[None]:
    """Explain why torch refuses a file of a checkpoint that would run code.

    Args:
        name: Of the file or part.

    Raises:
        CheckpointError: It holds something else than tensors and plain values.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), str(error).strip())
        raise CheckpointError(
            f"the checkpoint's part {name!r} is refused, because it holds more than tensors and plain values, which "
            f"could run code ({reason[:200]}): find out who wrote it; an older checkpoint, or another run, can go on"
        ) from None


def to_universal(folder: Path) -> None:
    """Convert the state in `folder` in place, so that any number of ranks can load it.

    DeepSpeed refuses to load ZeRO's partitioned optimizer state at another world size; its universal layout has one
    file a parameter instead.

    Raises:
        CheckpointError: A file holds something else than tensors and plain values.
    """
    source, target = folder / STATE_TAG, folder / "universal"
    with refused_as_checkpoint(STATE_TAG), only_tensors():
        convert_to_universal(source, target)
    shutil.rmtree(source)
    target.rename(source)
