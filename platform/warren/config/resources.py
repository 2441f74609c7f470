"""The resources: how many workers, how cut, how fast. They change speed and memory, never the loss curve."""

from typing import Literal

from pydantic import Field

from warren.config.tree import Config


class Resources(Config):
    """What one cluster gives to a job. Numbers are per worker unless named otherwise."""

    num_workers: int = Field(gt=0)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0.0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch_size: int = Field(default=8, gt=0)
    gradient_checkpointing: bool = False
    data_cpus_per_task: float = Field(default=1.0, gt=0)
    num_evaluators: int = Field(default=1, gt=0)
    cpus_per_replica: float = Field(default=1.0, gt=0)
    gpus_per_replica: float = Field(default=0.0, ge=0.0)
    max_failures: int = Field(default=3, ge=0)
    hang_timeout_s: float = Field(default=1800.0, gt=0)  # a rank that stands still so long is ended and restarted
    peak_tflops_per_worker: float | None = Field(default=None, gt=0)  # for MFU; None: the data sheet's, for known GPUs
