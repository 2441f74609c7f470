"""The secrets of the tests' cluster and clients must be in nothing that is stored, logged or shown."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

import httpx
import psutil
import pyarrow.parquet as pq

from cluster_fixtures import SECRET_MARK, Cluster
from warren.storage import Location


def places_of_secrets(cluster: Cluster, *stored: Location, shown: Mapping[str, str] | None = None) -> list[str]:
    """Return where a secret of the nodes' environment or of a client is.

    Args:
        cluster: Its logs, metrics and command lines are searched.
        stored: Folders whose objects are searched.
        shown: Other texts to search, by name.
    """
    secrets = [SECRET_MARK.encode(), os.environ["AWS_SECRET_ACCESS_KEY"].encode()]
    logs = (cluster.head.folder / "session_latest" / "logs").rglob("*")
    places = {
        **{file.uri: _content(file) for folder in stored for file in folder.list()},
        **{str(path): path.read_bytes() for path in logs if path.is_file()},
        cluster.head.metrics_url: httpx.get(cluster.head.metrics_url, timeout=30).content,
        **{name: text.encode() for name, text in (shown or {}).items()},
        "command lines": "\0".join(_command_lines(cluster)).encode(),
    }
    assert len(places) > 10, "there is next to nothing to search"
    return [place for place, data in places.items() if any(secret in data for secret in secrets)]


def _content(file: Location) -> bytes:
    """Return a file's bytes; a compressed table's values."""
    data = file.read_bytes()
    return str(pq.read_table(io.BytesIO(data)).to_pydict()).encode() if file.name.endswith(".parquet") else data


def _command_lines(cluster: Cluster) -> Iterator[str]:
    for process in cluster.head.processes():
        with suppress(psutil.Error):  # it has ended
            yield from process.cmdline()
