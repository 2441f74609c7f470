"""Images from the web. Whatever a server does, a download ends at its deadline.

Timeouts of a socket start anew with every byte, and `Retry-After` is a server's wish. So one deadline covers name
resolution, connecting, redirects, pauses and the body. aiohttp can keep it: what is late is cancelled and its
connection closed.
"""

import asyncio
import atexit
import email.utils
import os
import threading
import time
from functools import lru_cache

import aiohttp

from warren.data.printable import shown
from warren.errors import BadSampleError

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_PASSING = (429, 500, 502, 503, 504)
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=30.0)
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 20
_CLOSING_S = 2.0
_HEADERS = {"accept": "image/*,*/*;q=0.5", "accept-encoding": "identity", "user-agent": "warren"}


def download(url: str, stop_s: float, deadline_s: float, max_bytes: int) -> bytes:
    """Return what a URL holds.

    Args:
        url: http or https.
        stop_s: Latest time of arrival, by `time.monotonic()`.
        deadline_s: The time allowed in all, for the error message.
        max_bytes: Larger files are refused.

    Raises:
        BadSampleError: The server does not have it, is away, or is too slow.
    """
    loop, session = _client(os.getpid())
    fetching = _fetch(session, url, stop_s, max_bytes)
    try:
        return asyncio.run_coroutine_threadsafe(fetching, loop).result()
    except aiohttp.ClientError as error:
        reason = str(error) or type(error).__name__
    except TimeoutError:
        reason = f"it was not here within {deadline_s:g} s (ingest.download_deadline_s)"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise BadSampleError(f"the image at {shown(url)!r} cannot be fetched: {reason}")


async def _fetch(session: aiohttp.ClientSession, url: str, stop_s: float, max_bytes: int) -> bytes:
    async with asyncio.timeout(stop_s - time.monotonic()):
        for attempt in range(_ATTEMPTS):
            pause_s = _FIRST_PAUSE_S * 2**attempt
            is_last = attempt == _ATTEMPTS - 1
            try:
                async with session.get(url, max_redirects=_MAX_REDIRECTS, timeout=_TIMEOUT) as response:
                    if response.status == 200:
                        return await _body(response, max_bytes)
                    retry_after_s = _retry_after_s(response)
                    if is_last or response.status not in _PASSING or retry_after_s > stop_s - time.monotonic():
                        hint = f", try again in {retry_after_s:g} s" if retry_after_s else ""
                        raise BadSampleError(
                            f"the image at {shown(url)!r} cannot be fetched: HTTP {response.status}{hint}"
                        )
                    pause_s = max(pause_s, retry_after_s)
            except (
                aiohttp.InvalidURL,
                aiohttp.TooManyRedirects,
                aiohttp.ClientSSLError,
                aiohttp.NonHttpUrlClientError,
            ):
                raise
            except (aiohttp.ClientError, TimeoutError, OSError):
                if is_last:
                    raise
            await asyncio.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        data += chunk
        if len(data) > max_bytes:
            raise BadSampleError(f"the image has more than {max_bytes} bytes")
    return bytes(data)


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    """Return the seconds that a server asks to wait, 0 if it asks for nothing or nonsense."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


@lru_cache(maxsize=1)
def _client(_process: int) -> tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession]:
    """Start this process's event loop in a thread of its own; the threads that load samples wait for its results."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="downloads", daemon=True).start()

    async def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar())

    opened = asyncio.run_coroutine_threadsafe(session(), loop).result()
    atexit.register(lambda: asyncio.run_coroutine_threadsafe(opened.close(), loop).result(_CLOSING_S))
    return loop, opened
