"""Waiting for an endpoint that rolls releases in by itself."""

import sys
import time
from collections.abc import Callable

from warren.errors import ReleaseError
from warren.rollout.state_machine import RolloutState
from warren.rollout.state_store import RolloutFiles

_POLL_S = 1.0
_WORDS = {
    "verifying": "is checked",
    "starting": "starts beside what serves and answers its questions",
    "finishing": "has all traffic, the old engines go",
    "rolling_back": "is undone",
}


def wait_until_serving(
    files: RolloutFiles, version: str, timeout_s: float, is_up: Callable[[], bool] = lambda: True
) -> None:
    """Wait until the endpoint serves a version and its rollout is over, and print every change meanwhile.

    Args:
        is_up: Tells whether the endpoint itself runs, because the stored state may be of a cluster that is gone; raises
            if there is nothing to wait for.

    Raises:
        ReleaseError: The version was undone, or does not serve in time.
    """
    deadline, shown = time.monotonic() + timeout_s, ""
    while True:
        state = files.read().state
        if (line := _line(state, version)) != shown:
            print(f"rollout: {line}", file=sys.stderr, flush=True)
        shown = line
        serving = f"{state.stable} serves" if state.stable else "nothing serves yet"
        if version in state.refused:
            raise ReleaseError(
                f"{version} was undone, {serving}: {state.refused[version]} (if the reason was outside the release: "
                f"python jobs/rollout.py retry {files.name} --endpoint {files.endpoint} --version {version})"
            )
        # `is_up` comes first, because it also raises if what is waited for can no longer happen.
        if is_up() and state.phase == "idle" and state.stable == version:
            return
        if time.monotonic() > deadline:
            raise ReleaseError(
                f"{version} does not serve after {timeout_s:g} s, {serving}; the endpoint goes on with it: "
                f"python jobs/rollout.py status {files.name} --endpoint {files.endpoint}"
            )
        time.sleep(_POLL_S)


def _line(state: RolloutState, version: str) -> str:
    """Describe a state in one line."""
    if state.phase == "idle":
        return f"{state.stable} serves" if state.stable else f"{version} waits for the endpoint"
    paused = ", paused" if state.is_paused else ""
    if state.phase == "shifting":
        return f"{state.candidate} gets traffic, step {state.step + 1}{paused}"
    reason = f": {state.reason}" if state.reason else ""
    return f"{state.candidate or state.stable} {_WORDS[state.phase]}{paused}{reason}"
