"""A proxy on 127.0.0.1 that forwards bytes to a server once a connection may pass."""

import contextlib
import socket
import threading


class ForwardingProxy:
    """Listens on a free port. A subclass's ``admit`` says what each side talks to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def start(self, target_port: int) -> None:
        self._target = target_port
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def admit(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        """The client's side and a connection to the server. Raises OSError or EOFError to end it."""
        raise NotImplementedError

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._target))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), client:
            near, server = self.admit(client)
            with near, server:
                threading.Thread(target=_copy, args=(server, near), daemon=True).start()
                _copy(near, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
