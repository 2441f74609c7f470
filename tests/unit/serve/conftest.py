"""The endpoint without Ray: a tiny random model behind its real routes, and the same routes on a scripted engine."""

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.inference import EngineError, GenerationRequest, TokenDelta
from warren.inference.testing import ScriptedEngine, save_random_model
from warren.release import Lineage, Release
from warren.train.golden_maker import make_cases
from warren_serve.api import create_api
from warren_serve.backend import LocalBackend
from warren_serve.image_decoder import ImageDecoder
from warren_serve.service import ChatService, OneRelease, ServedRelease, load_backend
from warren_serve.settings import ServeSettings

RELEASE = Release("tiny", "v7", 1_700_000_000, Lineage(run="run-1", step=9), {"exact_match": 0.5}, ())
SMALL: dict[str, Any] = {
    "release": "unused",
    "num_slots": 2,
    "max_body_bytes": 600_000,
    "max_messages": 9,
    "max_images": 2,
    "max_image_pixels": 10_000,
    "max_text_chars": 5_000,
    "max_new_tokens": 64,
    "default_max_new_tokens": 8,
    "max_choices": 3,
    "body_timeout_s": 0.5,
    "request_timeout_s": 5.0,
    "stream_interval_s": 0.0,
}
Script = Callable[[GenerationRequest], Sequence[TokenDelta | EngineError]]


class Caller:
    """Sends requests to an application in this process."""

    def __init__(self, service: ChatService) -> None:
        self.service = service
        self.app = create_api(service)

    def http(self) -> httpx.AsyncClient:
        # An error that escapes the application fails the test: `raise_app_exceptions` is the default.
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://endpoint")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.http() as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def chat(self, **body: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}]} | body
        return self.request("POST", "/v1/chat/completions", json=body)

    def raw(self, content: bytes, **headers: str) -> httpx.Response:
        headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.request("POST", "/v1/chat/completions", content=content, headers=headers)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    save_random_model(folder)
    for path, data in make_cases(folder, "digest").files().items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def fetch(tiny_folder: Path) -> Callable[[str, Path], Release]:
    def copy(uri: str, target: Path) -> Release:
        shutil.copytree(tiny_folder, target, dirs_exist_ok=True)
        return RELEASE

    return copy


@pytest.fixture(scope="session")
def endpoint(fetch: Callable[[str, Path], Release]) -> Iterator[Caller]:
    """The routes on a real engine."""
    settings = ServeSettings.parse(SMALL)
    backend = load_backend(settings, 1, fetch)
    service = ChatService(backend, OneRelease(ServedRelease(RELEASE, backend.prompts)), settings)
    yield Caller(service)
    service.close()


class _SharedDecoder(ImageDecoder):
    """Outlives the backends that use it: starting its processes takes longer than most tests."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def decoder() -> Iterator[ImageDecoder]:
    shared = _SharedDecoder(1, SMALL["max_image_pixels"], 5.0)
    yield shared
    ImageDecoder.close(shared)


@pytest.fixture
def scripted(tiny_folder: Path, decoder: ImageDecoder) -> Iterator[Callable[..., tuple[Caller, ScriptedEngine]]]:
    """Return a function that puts the routes on an engine that answers from a script."""
    services = []

    def make(script: Script, settings: dict[str, Any] | None = None, **engine_options: Any) -> Any:
        parsed = ServeSettings.parse(SMALL | (settings or {}))
        tokenizer = tokenizer_from_json((tiny_folder / "tokenizer.json").read_text())
        engine = ScriptedEngine(script, Inputs.load(tiny_folder), tokenizer, **engine_options)
        backend = LocalBackend(engine, RELEASE.version, parsed, decoder)
        service = ChatService(backend, OneRelease(ServedRelease(RELEASE, backend.prompts)), parsed)
        services.append(service)
        return Caller(service), engine

    yield make
    for service in services:
        service.close()
