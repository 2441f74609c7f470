"""Ray Data's scheduling loop, its splitter and its actors."""

import logging
import time
from typing import Any

import ray
import ray.data
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.stats import get_or_create_stats_actor

_STEP_S = 0.02


class Pace(ExecutionCallback):  # type: ignore[misc]
    """Lets Ray Data's scheduling loop take a step every 20 ms at most.

    Why: The loop waits for outputs of its tasks, but outputs that it may not take yet, because the ranks have enough,
        do not let it wait. While training is slower than reading, it would keep one core busy.
    Upstream: `StreamingExecutor._scheduling_loop_step` and `DataContext.custom_execution_callback_classes` of Ray 2.60;
        the loop's cost is tracked in https://github.com/ray-project/ray/issues/63544.
    If it breaks: Leave it out: runs are right without it, and use one core more.
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def on_execution_step(self, executor: object) -> None:
        """Sleep until the next step is due."""
        del executor
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._next_s = time.monotonic() + _STEP_S


def deal_rows_in_turn(stream: ray.data.Dataset) -> None:
    """Make every row a block of its own, so that a split deals the rows to its consumers in turn; and pace the stream.

    Why: Every rank must get its own share of every global batch, in order. Ray Data has no split by row number. Its
        splitter gives each block to the consumer with the fewest rows so far; blocks of one row in their order make
        that a round robin. The training loop checks every step that it was one.
    Upstream: `OutputSplitter._select_next_output_index` in
        `ray/data/_internal/execution/operators/output_splitter.py` of Ray 2.60, described as balanced round robin in
        https://github.com/ray-project/ray/pull/32675; order is kept since
        https://github.com/ray-project/ray/pull/36919 and, with locality hints, since
        https://github.com/ray-project/ray/pull/52005.
    If it breaks: The loop ends the run with an error before it trains on a wrong share. Deal the shares out in the
        reading tasks instead, one dataset a rank.

    Args:
        stream: Its last operation makes the rows. Changed in place.
    """
    stream.context.target_max_block_size = 1
    stream.context.custom_execution_callback_classes = [Pace]


def recount_resources(timeout_s: float) -> None:
    """Have Ray count at once what the nodes offer.

    Why: It does so every 20 s only. A run whose node was lost would start workers on that node again.
    Upstream: `_AutoscalingCoordinatorActor.get_reserved_resources` in
        `ray/data/_internal/cluster_autoscaler/default_autoscaling_coordinator.py` of Ray 2.60, which Ray Train's
        scaling policies ask; the argument was called `force` when
        https://github.com/ray-project/ray/pull/66001 added it.
    If it breaks: Leave the call out: after the loss of a node a run starts some seconds later.

    Args:
        timeout_s: How long the answer may take.

    Raises:
        RayError: There was no answer.
    """
    coordinator = get_or_create_autoscaling_coordinator()
    ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=timeout_s)


def start_lasting_actors() -> None:
    """Start the two actors that Ray Data keeps for as long as a cluster lives, and wait for them.

    Why: A measurement of data loading must not count their start.
    Upstream: `get_or_create_autoscaling_coordinator` and `get_or_create_stats_actor` of Ray 2.60;
        `__ray_ready__` is every actor's in `ray/actor.py`.
    If it breaks: Drain a small dataset before the measurement instead.
    """
    actors = get_or_create_autoscaling_coordinator(), get_or_create_stats_actor()
    ray.get([actor.__ray_ready__.remote() for actor in actors])


def quieten_data() -> None:
    """Drop Ray Data's progress reports, and keep what a map function raises.

    Why: Its bars are about its own operators, and it logs every exception that it also raises. An exception is
        replaced by one of its own, which does not say what it was.
    Upstream: `DataContext` in `ray/data/context.py` of Ray 2.60, and the logger `ray.data`.
    If it breaks: Look for the fields that took these ones' places; `raise_original_map_exception` matters, as errors
        of samples are told apart by their type.
    """
    context: Any = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
