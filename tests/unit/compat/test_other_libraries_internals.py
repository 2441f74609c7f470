"""Contracts with pyarrow, Pillow and the libraries that read environment variables."""

import ctypes.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants
import pyarrow.fs
import pytest
import tokenizers
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from library_contracts import changed, holds
from warren.compat import environment_variables
from warren.compat.pillow import lift_pixel_limit
from warren.compat.pyarrow import is_transient


@pytest.fixture
def overloaded_server() -> Iterator[str]:
    """An S3 server that answers everything with 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _error_of(address: str) -> OSError:
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=address,
        scheme="http",
        access_key="a",
        secret_key="b",
        region="x",
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    with pytest.raises(OSError, match="AWS Error") as raised:
        filesystem.open_input_file("bucket/ACCESS_DENIED").size()
    return raised.value


def test_an_overloaded_or_absent_server_is_recognised(overloaded_server: str) -> None:
    for address in (overloaded_server, "127.0.0.1:9"):
        error = _error_of(address)
        assert is_transient(error), changed(is_transient, f"pyarrow says {error} now")


def test_pillow_opens_images_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds(Image, "MAX_IMAGE_PIXELS is None"), changed(lift_pixel_limit, "MAX_IMAGE_PIXELS has another meaning")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    lift_pixel_limit()
    assert Image.MAX_IMAGE_PIXELS is None


def test_the_libraries_read_their_variables() -> None:
    sources = {
        "TOKENIZERS_PARALLELISM": next(Path(tokenizers.__file__).parent.glob("*.so")),
        "TRANSFORMERS_VERBOSITY": Path(transformers_logging.__file__),
        "HF_HUB_DISABLE_PROGRESS_BARS": Path(huggingface_hub.constants.__file__),
    }
    assert set(sources) == set(environment_variables.QUIET_LIBRARIES)
    for name, source in sources.items():
        assert name.encode() in source.read_bytes(), f"{source.name} does not read {name} any more: QUIET_LIBRARIES"


def test_the_compute_threads_library_reads_its_variables() -> None:
    libraries = list((Path(torch.__file__).parent / "lib").glob("lib*omp*"))
    if not libraries:
        pytest.skip("this torch brings no OpenMP library along")
    text = b"".join(library.read_bytes() for library in libraries)
    for name in (*environment_variables.IDLE_THREADS_SLEEP, *environment_variables.ONE_COMPUTE_THREAD):
        assert name.removeprefix("OMP_").encode() in text, (
            f"libgomp does not read {name} any more: {environment_variables.__name__}"
        )


def test_glibc_reads_its_variable() -> None:
    loaders = [path for pattern in ("/lib*/ld-linux-*", "/lib/*/ld-linux-*") for path in Path("/").glob(pattern[1:])]
    if not loaders or ctypes.util.find_library("c") is None:
        pytest.skip("this is no glibc")
    for name in environment_variables.ONE_HEAP:
        assert any(name.encode() in loader.read_bytes() for loader in loaders), f"glibc does not read {name} any more"
