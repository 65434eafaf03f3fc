"""Socket transport: one connection per worker and shard, one message each way at a time.

A server thread reads a whole request before it answers, and a client sends to all shards before it reads, so
the two sides never block in sending at the same time. Nothing is pickled. With TLS a message is one write.
"""

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from parameter_server.rpc import protocol
from parameter_server.rpc.parameter_client import Channel
from parameter_server.rpc.protocol import HEAD, Frame, Hello, ProtocolError, Refusal
from parameter_server.rpc.shard_service import ShardService
from recsys.observability.log_lines import LogThrottle

HELLO_TIMEOUT_S = 5.0  # for connecting, for the handshake of TLS, and for the whole hello
_HELLO_BYTES = 4096
_IDLE_S = 600  # longest time between two requests; the worker then connects again
_MOST_UNKNOWN = 64  # connections whose hello hasn't been accepted
_MOST = 1024
_ACCEPT_PAUSE_S = 0.1
_LOG: Final = logging.getLogger(__name__)
_BUFFER = 1 << 21  # bytes; the system may cap it
_BUFFERS_AT_ONCE = 512  # below the limit of one sendmsg
Tls = ssl.SSLContext | None


@dataclass(frozen=True)
class Address:
    """Address of a shard and the token for its hello."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port})"


def send(sock: socket.socket, frame: Frame) -> None:
    """Sends a whole message without copying its arrays; TLS, which copies them anyway, takes it as one."""
    buffers = [memoryview(buffer) for buffer in protocol.encode(frame)]
    if isinstance(sock, ssl.SSLSocket):
        sock.sendall(b"".join(buffers))
        return
    while buffers:
        sent = sock.sendmsg(buffers[:_BUFFERS_AT_ONCE])
        while sent and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if sent:
            buffers[0] = buffers[0][sent:]


def receive(sock: socket.socket) -> Frame:
    """Reads a whole message. Raises ConnectionError at the end of the stream, ProtocolError for bad data."""
    header, body = protocol.sizes(bytes(_read(sock, HEAD.size)))
    return protocol.decode(_read(sock, header), _read(sock, body))


def _receive_hello(sock: socket.socket) -> Hello:
    """Reads a hello, behind TLS's handshake, within ``HELLO_TIMEOUT_S``, however it is cut into packets."""
    deadline = time.monotonic() + HELLO_TIMEOUT_S
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(HELLO_TIMEOUT_S)
            sock.do_handshake()
        header, _ = protocol.sizes(bytes(_read(sock, HEAD.size, deadline)), _HELLO_BYTES, 0)
        return protocol.decode_hello(_read(sock, header, deadline))
    except TimeoutError:
        raise ProtocolError(f"no whole hello within {HELLO_TIMEOUT_S:g} s") from None
    except ssl.SSLEOFError:  # the peer is gone
        raise
    except ssl.SSLError as error:
        raise ProtocolError(f"TLS fails: {error}") from None


def _read(sock: socket.socket, length: int, deadline: float | None = None) -> memoryview:
    """Reads ``length`` bytes into uninitialised memory with as few wake-ups as the kernel allows."""
    view, done = np.empty(length, np.uint8).data, 0
    flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
    while done < length:
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            sock.settimeout(left_s)
        count = sock.recv_into(view[done:], 0, flags)
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
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4),
                        ("TCP_USER_TIMEOUT", 15_000)):  # fmt: skip
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _cut(sock: socket.socket) -> None:
    """Ends a connection that another thread may be reading: SSLSocket's own method would take TLS from it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class SocketServer:
    """Socket server of a shard service, with one thread per connection."""

    def __init__(self, service: ShardService, host: str = "127.0.0.1", tls: Tls = None) -> None:
        self._service, self._tls, self._throttle = service, tls, LogThrottle()
        self._listener = socket.create_server((host, 0))
        self.address = Address(host, self._listener.getsockname()[1], service.token)
        self.refused = 0  # connections with wrong or late TLS or hello, bad data, or too many
        self._unknown: dict[socket.socket, None] = {}  # before an accepted hello, the oldest first
        self._welcomed: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="shard-accept", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """Number of connections whose hello was accepted: one of each worker."""
        return len(self._welcomed)

    def close(self) -> None:
        """Stops listening, cuts all connections and releases waiting threads."""
        self._closed = True
        self._service.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = [*self._unknown, *self._welcomed]
        for sock in connections:
            _cut(sock)
        self._thread.join()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, peer = self._listener.accept()
            except OSError as error:  # closed, or out of file descriptors for a while
                if not self._closed:
                    _LOG.warning("can't accept a connection, trying again: %r", error)
                    time.sleep(_ACCEPT_PAUSE_S)
                continue
            try:
                if self._tls:  # the connection's thread shakes hands
                    sock = self._tls.wrap_socket(sock, True, do_handshake_on_connect=False)
            except OSError:  # the peer is gone again
                continue
            if self._enter(sock):
                self._begin(sock, peer[0])
            else:
                sock.close()

    def _enter(self, sock: socket.socket) -> bool:
        """Makes room for a connection: a worker greets at once, so the one that hasn't for longest is cut."""
        with self._lock:
            if len(self._welcomed) >= _MOST:
                self.refused += 1
                return False
            if len(self._unknown) >= _MOST_UNKNOWN:
                oldest = next(iter(self._unknown))
                del self._unknown[oldest]
                self.refused += 1
                _cut(oldest)
            self._unknown[sock] = None
        return True

    def _leave(self, sock: socket.socket) -> None:
        with self._lock:
            self._unknown.pop(sock, None)
            self._welcomed.discard(sock)
        sock.close()

    def _begin(self, sock: socket.socket, peer: str) -> None:
        try:
            threading.Thread(target=self._serve, args=(sock, peer), daemon=True).start()
        except RuntimeError as error:  # out of threads for a while
            _LOG.warning("can't serve a connection, its peer will retry: %r", error)
            self._leave(sock)
            time.sleep(_ACCEPT_PAUSE_S)

    def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            _prepare(sock)
            if self._welcome(sock, peer):
                while not self._closed:
                    send(sock, self._service.answer(receive(sock)))
                    self._service.publish()
        except ValueError as error:
            self._refuse(peer, str(error))
        except OSError:
            pass  # the worker is gone or idle; it will reconnect
        finally:
            self._leave(sock)

    def _welcome(self, sock: socket.socket, peer: str) -> bool:
        refusal = self._service.hello(_receive_hello(sock))
        if refusal is not None:
            self._refuse(peer, refusal.text)
            send(sock, Frame(refusal))
            return False
        # ``settimeout`` makes the socket non-blocking and each message several reads, as they are with TLS.
        sock.settimeout(_IDLE_S if self._tls else None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _IDLE_S, 0))
        with self._lock:
            self._unknown.pop(sock, None)
            self._welcomed.add(sock)
        return True

    def _refuse(self, peer: str, reason: str) -> None:
        with self._lock:
            self.refused += 1
            times = self._throttle.due("refused", time.monotonic())
        if times:
            _LOG.warning("refused a connection from %s: %s", peer, reason, extra={"times": times})


class SocketChannel(Channel):
    """One worker's connection to one shard; reconnects and sends again if the shard restarts."""

    def __init__(
        self, resolve: Callable[[], Address], hello: Callable[[str], Hello],
        give_up_s: float = 120.0, sleep: Callable[[float], None] = time.sleep, tls: Tls = None,
    ) -> None:  # fmt: skip
        """``resolve`` returns the shard's current address; ``hello`` makes the greeting from its token."""
        self._resolve, self._hello, self._tls = resolve, hello, tls
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
        except ssl.SSLCertVerificationError as error:
            expected = "expected one by parameter_server.ca_file, with the shard's address in it"
            return Frame(Refusal("hello", f"certificate: {error.verify_message}; {expected}"))
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
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_hostname=address.host)
            sock.settimeout(None)
            send(sock, Frame(self._hello(address.token)))
        except OSError:
            sock.close()
            raise
        return sock
