"""Clients of an endpoint over several nodes: streams all the time, each to a pod that is ready."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from pods.pod import RunningPod

_EVERY_S = 1.0
_TIMEOUT_S = 150.0
_SERVE_PORT = 8000


@dataclass(frozen=True)
class Asked:
    """What became of one request.

    Attributes:
        entry: Name of the pod whose proxy took it.
        outcome: `whole`, `cut` (an accepted stream that did not end as it should), `refused` (an error as an answer) or
            `unreachable`.
        started: When, by `time.monotonic`.
    """

    entry: str
    outcome: str
    started: float


class Traffic:
    """Requests at a constant pace, whatever becomes of the earlier ones, from entering to leaving."""

    def __init__(self, entries: Callable[[], Sequence[RunningPod]], model: str, key: str) -> None:
        self._entries, self._model, self._key = entries, model, key
        self._pool, self._stopped = ThreadPoolExecutor(32), threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.asked: list[Asked] = []

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)  # what waits for a thread was never sent

    def count(self, outcome: str, entries: Sequence[RunningPod] | None = None, since: float = 0.0) -> int:
        """Count the requests with an outcome, perhaps only those that entered by certain pods or after some time."""
        names = None if entries is None else {pod.name for pod in entries}
        return sum(
            one.outcome == outcome and one.started >= since and (names is None or one.entry in names)
            for one in list(self.asked)
        )

    def _send(self) -> None:
        for number in itertools.count():
            if self._stopped.wait(_EVERY_S):
                return
            if ready := self._entries():
                self._pool.submit(self._ask, ready[number % len(ready)])

    def _ask(self, pod: RunningPod) -> None:
        started = time.monotonic()
        body = {
            "model": self._model,
            "stream": True,
            "max_tokens": 200,
            "messages": [{"role": "user", "content": "what is there?"}],
        }
        self.asked.append(Asked(pod.name, self._outcome(pod.place.address, body), started))

    def _outcome(self, address: str, body: dict[str, object]) -> str:
        url, accepted = f"http://{address}:{_SERVE_PORT}/v1/chat/completions", False
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            with httpx.stream("POST", url, json=body, headers=headers, timeout=_TIMEOUT_S, trust_env=False) as answer:
                if answer.status_code != 200:
                    return "refused"
                accepted = True
                lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        except httpx.HTTPError:
            return "cut" if accepted else "unreachable"
        return "whole" if lines[-1:] == ["[DONE]"] and all(map(_is_no_error, lines[:-1])) else "cut"


def _is_no_error(line: str) -> bool:
    return "error" not in json.loads(line)
