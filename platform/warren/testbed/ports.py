"""Ports that are free now and stay so: above Ray's worker range, below the ephemeral one."""

import random
import socket

_LOWEST, _HIGHEST = 20_000, 31_999
_TRIES = 200


def free_port(taken: set[int] | None = None, highest: int = _HIGHEST, also: int = 0) -> int:
    """Return a loopback port that nobody listens on, and add it to `taken`.

    Args:
        taken: Ports given out already.
        highest: The largest port to return.
        also: Offset of a second port that must be free too, 0 for none.
    """
    taken = taken if taken is not None else set()
    for _ in range(_TRIES):
        port = random.randint(_LOWEST, highest)
        ports = {port, port + also}
        if not ports & taken and all(_is_free(p) for p in ports):
            taken |= ports
            return port
    raise OSError(f"no free port between {_LOWEST} and {highest}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
