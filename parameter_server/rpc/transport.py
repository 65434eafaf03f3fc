"""Socket transport: one connection per worker and shard, one message each way at a time.

A server thread reads a whole request before it answers, and a client sends to all shards before it reads, so
the two sides never block in sending at the same time. Nothing is pickled.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from parameter_server.rpc.parameter_client import Channel
from parameter_server.rpc.protocol import (
    HEAD,
    Frame,
    Hello,
    ProtocolError,
    decode,
    encode,
    sizes,
)
from parameter_server.rpc.shard_service import ShardService

HELLO_TIMEOUT_S = 5.0
_HELLO_BYTES = 4096
_ACCEPT_PAUSE_S = 0.1
_LOG: Final = logging.getLogger(__name__)
_BUFFER = 1 << 21  # bytes; the system may cap it
_BUFFERS_AT_ONCE = 512  # below the limit of one sendmsg


@dataclass(frozen=True)
class Address:
    """Address of a shard and the token for its hello."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port})"


def send(sock: socket.socket, frame: Frame) -> None:
    """Sends a whole message without copying its arrays."""
    buffers = [memoryview(buffer) for buffer in encode(frame)]
    while buffers:
        sent = sock.sendmsg(buffers[:_BUFFERS_AT_ONCE])
        while sent and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if sent:
            buffers[0] = buffers[0][sent:]


def receive(
    sock: socket.socket, max_header: int | None = None, max_body: int | None = None
) -> Frame:
    """Reads a whole message. Raises ConnectionError at the end of the stream, ProtocolError for bad data."""
    limits = () if max_header is None or max_body is None else (max_header, max_body)
    header, body = sizes(bytes(_read(sock, HEAD.size)), *limits)
    return decode(_read(sock, header), _read(sock, body))


def _read(sock: socket.socket, length: int) -> memoryview:
    """Reads ``length`` bytes into uninitialised memory with as few wake-ups as the kernel allows."""
    view, done = np.empty(length, np.uint8).data, 0
    while done < length:
        count = sock.recv_into(view[done:], 0, socket.MSG_WAITALL)
        if count == 0:
            raise ConnectionError(f"the peer closed the connection after {done} of {length} bytes")
        done += count
    return view


def _prepare(sock: socket.socket) -> None:
    """Sends small messages at once and detects a dead peer machine within half a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # most messages of a step fit
        sock.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class SocketServer:
    """Socket server of a shard service, with one thread per connection."""

    def __init__(self, service: ShardService, host: str = "127.0.0.1", port: int = 0) -> None:
        self._service = service
        self._listener = socket.create_server((host, port))
        self.address = Address(host, self._listener.getsockname()[1], service.token)
        self.refused = 0  # connections with a wrong hello or unreadable data
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="shard-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening, cuts all connections and releases waiting threads."""
        self._closed = True
        self._service.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for sock in connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:  # closed, or out of file descriptors for a while
                if not self._closed:
                    _LOG.warning("can't accept a connection, trying again: %r", error)
                    time.sleep(_ACCEPT_PAUSE_S)
                continue
            with self._lock:
                self._connections.add(sock)
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        try:
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()
        except RuntimeError as error:  # out of threads for a while
            _LOG.warning("can't serve a connection, its peer will retry: %r", error)
            sock.close()
            with self._lock:
                self._connections.discard(sock)
            time.sleep(_ACCEPT_PAUSE_S)

    def _serve(self, sock: socket.socket) -> None:
        try:
            _prepare(sock)
            if self._welcome(sock):
                while not self._closed:
                    send(sock, self._service.answer(receive(sock)))
                    self._service.publish()
        except ProtocolError:
            self._refuse()
        except OSError:
            pass  # the worker is gone; it will reconnect
        finally:
            sock.close()
            with self._lock:
                self._connections.discard(sock)

    def _welcome(self, sock: socket.socket) -> bool:
        sock.settimeout(HELLO_TIMEOUT_S)
        refusal = self._service.hello(receive(sock, _HELLO_BYTES, 0).message)
        if refusal is not None:
            self._refuse()
            send(sock, Frame(refusal))
            return False
        sock.settimeout(None)
        return True

    def _refuse(self) -> None:
        with self._lock:
            self.refused += 1


class SocketChannel(Channel):
    """One worker's connection to one shard; reconnects and sends again if the shard restarts."""

    def __init__(
        self,
        resolve: Callable[[], Address],
        hello: Callable[[str], Hello],
        give_up_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``resolve`` returns the shard's current address; ``hello`` makes the greeting from its token."""
        self._resolve, self._hello = resolve, hello
        self._give_up_s, self._sleep = give_up_s, sleep
        self._sock: socket.socket | None = None
        self._frame: Frame | None = None

    def send(self, frame: Frame) -> None:
        self._frame = frame
        try:
            if self._sock is None:
                self._sock = self._connect()
            send(self._sock, frame)
        except OSError:
            self.close()  # ``receive`` connects and sends again

    def _attempt(self) -> Frame | str:
        assert self._frame is not None, "receive without send"
        try:
            if self._sock is None:
                self._sock = self._connect()
                send(self._sock, self._frame)
            return receive(self._sock)
        except (OSError, ProtocolError) as error:
            return repr(error)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connect(self) -> socket.socket:
        address = self._resolve()
        sock = socket.create_connection((address.host, address.port), timeout=HELLO_TIMEOUT_S)
        try:
            _prepare(sock)
            sock.settimeout(None)
            send(sock, Frame(self._hello(address.token)))
        except OSError:
            sock.close()
            raise
        return sock
