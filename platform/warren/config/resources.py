"""Resources of a job: workers, parallelism and speed. All but `precision` leave the loss curve unchanged."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from warren.config.layered_config import Config
from warren.config.resume import OnResume

ZeroStage = Literal[0, 1, 2, 3]
_GROUP_SPARE_S = 60.0


class Resources(Config):
    """What a cluster gives to a job. Numbers are for each worker unless their names say otherwise."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt]  # a pair [min, max] makes the run elastic
    elastic_check_s: float = Field(default=60.0, gt=0)  # how often an elastic run looks for room to grow
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0.0)
    zero_stage: ZeroStage = 2
    precision: Annotated[Literal["fp32", "bf16", "fp16"], OnResume.FIXED] = "fp32"  # fp16 has a dynamic loss scale
    offload: tuple[Literal["optimizer", "weights"], ...] = ()  # in host memory: optimizer from ZeRO 1, weights at 3
    micro_batch_size: int = Field(default=8, gt=0)
    packing: bool = False  # several samples in one sequence; micro_batch_size then counts full-length sequences
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile: a slower first step, faster others; losses agree up to rounding
    data_cpus_per_task: float = Field(default=1.0, gt=0)
    num_evaluators: int = Field(default=1, gt=0)
    cpus_per_replica: float = Field(default=1.0, gt=0)
    gpus_per_replica: float = Field(default=0.0, ge=0.0)
    max_failures: int = Field(default=3, ge=0)
    max_preemptions: int = Field(default=100, ge=0)  # restarts because nodes are taken away; no failures
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    hang_timeout_s: float = Field(default=1800.0, gt=0)  # a rank without progress for so long is restarted
    peak_tflops_per_worker: float | None = Field(default=None, gt=0)  # for MFU; None: the data sheet's, of known GPUs

    @model_validator(mode="after")
    def _ascending(self) -> "Resources":
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"num_workers: {list(self.num_workers)} is not [fewest, most]")
        return self

    @model_validator(mode="after")
    def _offload_has_parts(self) -> "Resources":
        for part, fewest in (("optimizer", 1), ("weights", 3)):
            if part in self.offload and self.zero_stage < fewest:
                raise ValueError(
                    f"offload: [{part}] needs zero_stage {fewest} or more, which cuts it into parts, "
                    f"not {self.zero_stage}"
                )
        return self

    @model_validator(mode="after")
    def _compiled_layers_are_whole(self) -> "Resources":
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile: true needs zero_stage 2 or less: ZeRO-3 gathers weights inside the layers")
        return self

    @model_validator(mode="after")
    def _fp16_scales_its_loss(self) -> "Resources":
        if self.precision == "fp16" and self.zero_stage == 0:
            raise ValueError(
                "precision: fp16 needs zero_stage 1 or more: without ZeRO, DeepSpeed 0.19 divides gradients by a loss "
                "scale that it never multiplied them by"
            )
        return self

    @property
    def group_timeout_s(self) -> float:
        """How long a rank waits in a collective: longer than `hang_timeout_s`, so that a hanging rank reports first."""
        return self.hang_timeout_s + _GROUP_SPARE_S

    @property
    def min_workers(self) -> int:
        """The smallest number of workers that a run trains with."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The largest number of workers that a run trains with."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers
