"""The pace of Ray Data's scheduling loop."""

import time

from ray.data._internal.execution.execution_callback import ExecutionCallback

_STEP_S = 0.02


class Pace(ExecutionCallback):  # type: ignore[misc]
    """Lets the loop take a step every 20 ms at most.

    The loop waits for outputs of its tasks, but outputs that it may not take yet, because the ranks have enough, do not
    let it wait: while training is slower than reading, it would keep one core busy (Ray 2.60).
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def on_execution_step(self, executor: object) -> None:
        """Sleep until the next step is due."""
        del executor
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._next_s = time.monotonic() + _STEP_S
