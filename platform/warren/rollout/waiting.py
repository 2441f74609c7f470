"""Waiting for an endpoint that rolls releases in by itself."""

import sys
import time

from warren.errors import ReleaseError
from warren.rollout.records import RolloutFiles

_POLL_S = 1.0


def wait_until_serving(files: RolloutFiles, version: str, timeout_s: float, poll_s: float = _POLL_S) -> None:
    """Wait until the endpoint serves a version and its rollout is over, and print every change meanwhile.

    Raises:
        ReleaseError: The version was undone, or does not serve in time.
    """
    deadline, shown = time.monotonic() + timeout_s, ""
    while True:
        state = files.read().state
        if version in state.refused:
            raise ReleaseError(f"{version} was undone, {state.stable} serves: {state.refused[version]}")
        if state.phase == "idle" and state.stable == version:
            return
        step = f" {state.step + 1}" if state.phase == "shifting" else ""
        if (line := f"rollout: {state.candidate or version} {state.phase}{step}") != shown:
            print(line, file=sys.stderr)
        shown = line
        if time.monotonic() > deadline:
            raise ReleaseError(f"{version} does not serve after {timeout_s:g} s; {state.stable} serves")
        time.sleep(poll_s)
