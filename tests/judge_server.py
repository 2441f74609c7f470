"""A judge for tests: an OpenAI-compatible endpoint on loopback that answers from a script."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from live import listening


@dataclass(frozen=True)
class Refusal:
    """A response that is no judgement."""

    status: int
    body: str = "busy"
    headers: Mapping[str, str] = field(default_factory=dict)


Script = Callable[[str, int], str | Refusal]
"""From a prompt and how often it was asked before to what the judge writes."""


class JudgeServer:
    """What was asked, and what is answered."""

    def __init__(self, script: Script, pause_s: float = 0.0) -> None:
        self.script, self.pause_s = script, pause_s
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.num_open = self.most_open = 0
        self.url = ""

    @property
    def prompts(self) -> list[str]:
        """The prompts in the order of their arrival."""
        return [body["messages"][0]["content"] for body in self.bodies]

    async def answer(self, request: Request) -> Response:
        """Answer one chat request."""
        body = json.loads(await request.body())
        prompt = body["messages"][0]["content"]
        num_before = self.prompts.count(prompt)
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        await asyncio.sleep(self.pause_s)
        self.num_open -= 1
        text = self.script(prompt, num_before)
        if isinstance(text, Refusal):
            return Response(text.body, text.status, text.headers)
        return JSONResponse({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


@contextmanager
def judging(script: Script, pause_s: float = 0.0) -> Iterator[JudgeServer]:
    """Start a judge; its `url` is the base URL."""
    server = JudgeServer(script, pause_s)
    app = Starlette(routes=[Route("/v1/chat/completions", server.answer, methods=["POST"])])
    with listening(app) as url:
        server.url = f"{url}/v1"
        yield server
