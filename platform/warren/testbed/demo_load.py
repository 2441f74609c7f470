"""Questions to an endpoint at a constant pace, while a release rolls in: the demo shows that none of them fails."""

import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_MAX_RUNNING = 16


class DemoLoad:
    """Asks the same questions over and over, every second one as a stream, through the official OpenAI client.

    Args:
        url: Of the endpoint.
        messages: One user message for each question.
        every_s: Time between two requests, however long they take.

    Attributes:
        answers: Number of whole answers by the release's version.
        failures: What went wrong with the others.
    """

    def __init__(self, url: str, messages: Sequence[Any], every_s: float = 0.15) -> None:
        from openai import OpenAI  # an extra's package

        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        self._messages, self._every_s = messages, every_s
        self._stopped = threading.Event()
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="warren-demo-load")
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []

    def __enter__(self) -> "DemoLoad":
        self._model = self._client.models.list().data[0].id
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()

    def summary(self) -> str:
        """Say what became of the requests."""
        by_version = ", ".join(f"{count} by {version}" for version, count in sorted(self.answers.items()))
        return f"{sum(self.answers.values())} answers ({by_version}), {len(self.failures)} failed requests"

    def _run(self) -> None:
        with ThreadPoolExecutor(_MAX_RUNNING) as pool:
            for number in itertools.count():
                if self._stopped.wait(self._every_s):
                    return
                pool.submit(self._ask, self._messages[number % len(self._messages)], number % 2 == 0)

    def _ask(self, message: Any, is_stream: bool) -> None:
        try:
            version = self._streamed(message) if is_stream else self._whole(message)
            with self._counting:
                self.answers[version] += 1
        except Exception as error:  # of any type: it is what the demo counts
            with self._counting:
                self.failures.append(repr(error))

    def _whole(self, message: Any) -> str:
        reply = self._client.chat.completions.create(model=self._model, messages=[message], temperature=0, max_tokens=8)
        return reply.system_fingerprint or ""

    def _streamed(self, message: Any) -> str:
        stream = self._client.chat.completions.create(
            model=self._model, messages=[message], temperature=0, max_tokens=8, stream=True
        )
        chunks = list(stream)
        if not chunks[-1].choices or chunks[-1].choices[0].finish_reason is None:
            raise RuntimeError("the stream ended without a finish reason")
        return chunks[-1].system_fingerprint or ""
