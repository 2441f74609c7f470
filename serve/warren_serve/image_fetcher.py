"""Fetches images by URL without giving clients access to hosts that only the server can reach.

Every hop's host must be on the allow-list, and the address is checked where the socket is made. So the checked address
is the one that is connected to, even if the name resolves to another one the next time.
"""

import asyncio
import dataclasses
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.client_exceptions import ClientError
from yarl import URL

from warren_serve.errors import ApiError, bad_request
from warren_serve.settings import ServeSettings

_MAX_URL_CHARS = 2048
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 64 * 1024
_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "warren"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class ImageSource:
    """The origin of an image.

    Attributes:
        url: The client's URL.
        param: The field of the request that has the URL.
        data: The image's bytes, once fetched; a `data:` URI is decoded elsewhere.
    """

    url: str
    param: str
    data: bytes | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the image has to be fetched."""
        return self.url[:8].lower().startswith(("http://", "https://"))


class ImageFetcher:
    """Fetches images from the hosts that the settings allow; by default from none.

    Args:
        settings: They have the hosts, networks and limits.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._hosts = tuple(_as_resolved(entry.lower()) for entry in settings.image_hosts)
        self._networks = tuple(ipaddress.ip_network(entry) for entry in settings.image_networks)
        self._timeout_s = settings.image_fetch_timeout_s
        self._max_bytes = settings.max_image_bytes

    async def fetch_all(self, sources: Sequence[ImageSource]) -> tuple[ImageSource, ...]:
        """Fetch all remote images at the same time; the first failure cancels the others.

        Raises:
            ApiError: 400, naming the field.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._filled(source)) for source in sources]
        except* ApiError as errors:
            raise errors.exceptions[0] from None
        return tuple(task.result() for task in tasks)

    async def _filled(self, source: ImageSource) -> ImageSource:
        if not source.is_remote:
            return source
        unreachable = bad_request("The image cannot be fetched from that URL.", "image_url_unreachable", source.param)
        try:
            async with asyncio.timeout(self._timeout_s):
                return dataclasses.replace(source, data=await self._fetch(source))
        except ApiError:
            raise
        except (TimeoutError, ClientError, OSError, ValueError):
            # One message for all failures: different ones would let clients map the network behind the endpoint.
            raise unreachable from None

    async def _fetch(self, source: ImageSource) -> bytes:
        url = self._checked(source.url, source.param)
        # No cookies, no proxies from the environment, and no connection that outlives the image.
        connector = aiohttp.TCPConnector(socket_factory=self._socket, force_close=True, use_dns_cache=False)
        options: Any = {"headers": _HEADERS, "cookie_jar": aiohttp.DummyCookieJar(), "auto_decompress": False}
        async with aiohttp.ClientSession(connector=connector, **options) as session:
            for _ in range(_MAX_REDIRECTS + 1):
                async with session.get(url, allow_redirects=False) as answer:
                    # Redirects are followed here and not by aiohttp, so that every target is checked.
                    if answer.status in _REDIRECTS:
                        url = self._checked(str(url.join(URL(answer.headers.get("location", "")))), source.param)
                        continue
                    if answer.status != 200:
                        raise OSError(f"status {answer.status}")
                    return await self._read(answer, source.param)
        raise OSError("too many redirects")

    async def _read(self, answer: aiohttp.ClientResponse, param: str) -> bytes:
        data = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                message = f"The image is larger than {self._max_bytes} bytes."
                raise bad_request(message, "image_too_large", param)
        return bytes(data)

    def _checked(self, text: str, param: str) -> URL:
        """Check a URL's form and host."""
        if not self._hosts:
            message = "This endpoint does not fetch URLs; send the image as data:image/…;base64,… instead."
            raise bad_request(message, "image_url_not_allowed", param)
        try:
            url = URL(text) if len(text) <= _MAX_URL_CHARS else URL()
            host, port = (url.raw_host or "").lower(), url.port
        except ValueError:
            host, port = "", None
        if not host or url.scheme not in ("http", "https") or url.user is not None or url.password is not None:
            raise bad_request("The image's URL is not a plain http(s) URL.", "invalid_image_url", param)
        names = {f"{host}:{port}"} | ({host} if url.is_default_port() else set())
        if not any(_matches(name, entry) for name in names for entry in self._hosts):
            message = "This endpoint does not fetch from that host."
            raise bad_request(message, "image_url_not_allowed", param)
        return url

    def _socket(self, target: tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]) -> socket.socket:
        """Make the socket for one numeric address, or refuse it. Nothing is resolved after this."""
        family, kind, protocol, _, where = target
        address = ipaddress.ip_address(where[0].partition("%")[0])
        if not (is_public(address) or any(address in network for network in self._networks)):
            raise OSError(f"{address} is not public")
        return socket.socket(family, kind, protocol)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet: not private, link-local, loopback, multicast or reserved.

    IPv4 addresses inside IPv6 ones (mapped, NAT64, 6to4, Teredo) are checked too.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        embedded = [one for one in inner if one is not None]
        if embedded:
            return all(is_public(one) for one in embedded)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _as_resolved(entry: str) -> str:
    """Return an entry with its host as it is resolved (IDNA), because `bücher.example` can be written in two ways."""
    wildcard, name = ("*.", entry[2:]) if entry.startswith("*.") else ("", entry)
    host, colon, port = name.partition(":")
    return f"{wildcard}{host if host.isascii() else URL.build(scheme='http', host=host).raw_host}{colon}{port}"


def _matches(name: str, entry: str) -> bool:
    if entry == "*":
        return ":" not in name  # any host, but default ports only
    return name.endswith(entry[1:]) if entry.startswith("*.") else name == entry
