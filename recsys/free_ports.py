"""Unused ports of the loopback address."""

import secrets
import socket
from collections.abc import Container, Iterator
from contextlib import suppress
from typing import Final

# Below the systems' ephemeral ports, which any outgoing connection may take, and above Ray's defaults.
_FIRST_PORT: Final = 20_000
_LAST_PORT: Final = 29_999


class PortTaken(RuntimeError):
    """A port that is needed is in use."""


def free_ports(avoid: Container[int] = ()) -> Iterator[int]:
    """Yields unused ports, from a random start, so that two systems rarely compete for one. Raises PortTaken
    when none is left."""
    size = _LAST_PORT - _FIRST_PORT + 1
    first = secrets.randbelow(size)
    for step in range(size):
        port = _FIRST_PORT + (first + step) % size
        if port not in avoid and can_bind(port):
            yield port
    raise PortTaken(f"no free port from {_FIRST_PORT} to {_LAST_PORT}")


def can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False
