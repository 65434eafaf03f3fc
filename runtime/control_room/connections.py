"""The control room's connections: few of an address, and the newest stay.

Half a request, or an answer that nobody reads, holds a connection at no cost to its client. So a new one
takes the place of the oldest that isn't an open page: without the key, no number of them closes the room.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from runtime.parts.header_deadline import HeaderDeadline
from serving.access.caller import network_of

_MOST: Final = 256
_OF_ADDRESS: Final = 64  # a browser opens six, and a proxy one for each page


class Connection(Protocol):
    """An open connection."""

    @property
    def may_end(self) -> bool:
        """Whether it may make room for a new one."""

    def end(self) -> None:
        """Closes it at once, without sending what the client hasn't read."""


class Connections:
    """Open connections by address: ``most`` of all, ``of_address`` of one. ``ended`` counts those that made
    room, and new ones for which there was none. Pure."""

    def __init__(self, most: int = _MOST, of_address: int = _OF_ADDRESS) -> None:
        self._most, self._of_address = most, of_address
        self._open: dict[str, dict[Connection, None]] = {}  # oldest first
        self.ended = 0

    def enter(self, connection: Connection, address: str) -> None:
        """Adds a new connection. Where there are too many it ends another one, or itself."""
        if crowded := self._crowded(address):
            self.ended += 1
            leaving = next((each for each in self._open[crowded] if each.may_end), connection)
            leaving.end()
            if leaving is connection:
                return
            self.leave(leaving, crowded)
        self._open.setdefault(address, {})[connection] = None

    def leave(self, connection: Connection, address: str) -> None:
        """Removes a connection, if it is there."""
        own = self._open.get(address, {})
        own.pop(connection, None)
        if not own:
            self._open.pop(address, None)

    def _crowded(self, address: str) -> str:
        """The address whose connection must make room for one of ``address``; empty if there is room."""
        if len(self._open.get(address, {})) >= self._of_address:
            return address
        if sum(map(len, self._open.values())) < self._most:
            return ""
        return max(self._open, key=lambda each: len(self._open[each]))


class RoomConnection(HeaderDeadline):
    """uvicorn's HTTP protocol, within the limits of ``connections``. ``is_key`` judges Authorization."""

    def __init__(
        self, *arguments: Any, connections: Connections, is_key: Callable[[str], bool], header_s: float,
        **named: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, **named)
        self._connections, self._is_key, self.header_s = connections, is_key, header_s
        self._address, self._has_key = "", False

    @property
    def may_end(self) -> bool:
        return not self._has_key or self.cycle.response_complete or self.flow.write_paused

    def end(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "", 32, 64)
        self._connections.enter(self, self._address)

    def on_headers_complete(self) -> None:
        authorization = dict(self.headers).get(b"authorization", b"")
        self._has_key = self._is_key(authorization.decode("latin-1"))
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self, self._address)
        super().connection_lost(exc)
