"""HAProxy as a system starts it, with a small server for a replica: slow clients, a killed replica, a killed
HAProxy, TLS. No Ray cluster."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from recsys.config.system_config import Config
from runtime.supervision import launch_plan
from runtime.supervision.processes import STATE
from runtime.supervision.ray_environment import haproxy
from serving.access.key_files import DOOR_KEY
from tests.support.paths import ROOT
from tests.support.plan_config import config_in

pytestmark = [
    pytest.mark.services,
    pytest.mark.pairs(10),
    pytest.mark.skipif(not haproxy(), reason="no HAProxy on this platform"),
]
HEADER_S, PER_SOURCE = 2.0, 64
_MANAGER = """
import asyncio, sys
import runtime.parts.haproxy_revival
from pathlib import Path
from tests.support.systems.haproxy_text import haproxy_api

async def main():
    api = haproxy_api(Path(sys.argv[1]), port=int(sys.argv[2]), replica=int(sys.argv[3]))
    await api.start()
    print(api._proc.pid, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await api.reload()
        print(api._proc.pid, flush=True)
    await api.stop()
    await asyncio.sleep(1.5)  # nothing comes back
    print(api.count_haproxy_processes(), flush=True)

asyncio.run(main())
"""


_REPLICA = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        names = "x-forwarded-for", "x-recsys-door"
        self.answer(" ".join(self.headers.get(name, "") for name in names).encode())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("content-length", 0))))

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Replica).serve_forever()
"""


@contextlib.contextmanager
def replica(port: int) -> Iterator[None]:
    """A replica that is killed at the end."""
    command = [sys.executable, "-S", "-c", _REPLICA, str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@dataclass
class Door:
    """A running HAProxy; ``replica``: the port of its only server."""

    port: int
    replica: int
    local_port: int
    folder: Path
    key: str
    manager: "subprocess.Popen[str]"
    pid: int

    def reload(self) -> int:
        assert self.manager.stdin is not None and self.manager.stdout is not None
        print(file=self.manager.stdin, flush=True)
        return int(self.manager.stdout.readline())


@contextlib.contextmanager
def door(**doors: object) -> Iterator[Door]:
    folder = Path(tempfile.mkdtemp())  # a short path, for a socket
    config = config_in(folder / "state")
    config = replace(
        config,
        doors=replace(Config().doors, header_s=HEADER_S, body_s=HEADER_S, per_source=PER_SOURCE, **doors),
    )
    config, plan = launch_plan.resolve(config)
    port = config.serve.port
    launch_plan.write(config, plan)
    (folder / "h").mkdir()
    key = (folder / "state" / "run" / DOOR_KEY).read_text()
    manager = subprocess.Popen(
        [sys.executable, "-c", _MANAGER, folder / "h", str(port), str(plan.ray.gcs)],
        env={**os.environ, STATE: config.state}, cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert manager.stdin is not None and manager.stdout is not None
    with manager:
        try:
            pid = int(manager.stdout.readline())
            yield Door(port, plan.ray.gcs, config.doors.local_port, folder / "h", key, manager, pid)
            manager.stdin.close()
            assert manager.stdout.readline() == "0\n"
        finally:
            manager.kill()
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def running() -> Iterator[Door]:
    with door() as started:
        yield started


def ask(
    port: int, method: str = "GET", body: bytes | None = None, source: str = "127.0.0.1", **headers: str
) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port, timeout=8, source_address=(source, 0))
    connection.request(method, "/v1/recommend", body, headers)
    response = connection.getresponse()
    response.read_body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def until(port: int, status: int, timeout_s: float = 30.0) -> tuple[HTTPResponse, float]:
    """The first answer with this status, and after how long."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            response = ask(port)
            if response.status == status:
                return response, time.monotonic() - began
        assert time.monotonic() - began < timeout_s, f"no answer with status {status}"
        time.sleep(0.02)


def opened(port: int, source: str, sent: bytes, count: int) -> list[socket.socket]:
    """Connections from an address that send this much."""
    connections = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), 8, (source, 0))
            connections.append(connection)
            connection.sendall(sent)
    return connections


def test_half_sent_requests_of_one_source_stop_nobody_and_end_in_time(running: Door) -> None:
    with replica(running.replica):
        until(running.port, 200)
        head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\n"
        slow = opened(running.port, "127.0.0.3", head + b"Content-Length: 1000\r\n\r\n", 200)
        half = opened(running.port, "127.0.0.4", head, 900)
        with pytest.raises(OSError):
            ask(running.port, source="127.0.0.4")  # it has its connections already
        answers = [ask(running.port, "POST", b"abc", source="127.0.0.2") for _ in range(50)]
        assert {answer.status for answer in answers} == {200}
        ended = []
        for connection in slow + half:
            connection.settimeout(HEADER_S + 5)
            with connection:
                try:
                    ended.append(connection.recv(20)[:12])
                except OSError:
                    ended.append(b"")  # refused: one too many of this source
        assert ended.count(b"HTTP/1.1 408") == 2 * PER_SOURCE and set(ended) == {b"", b"HTTP/1.1 408"}
        assert ask(running.port, source="127.0.0.4").status == 200


def test_a_body_that_is_too_large_is_refused_by_its_header(running: Door) -> None:
    with replica(running.replica):
        until(running.port, 200)
        connection = socket.create_connection(("127.0.0.1", running.port), 8)
        with connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 413"
        assert ask(running.port, "POST", b"x" * 1_000_000).status == 200


def test_http_2_is_refused(running: Door) -> None:
    """A connection of it has a hundred requests at a time, and would count as one."""
    with socket.create_connection(("127.0.0.1", running.port), 8) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 400"


def test_a_client_cannot_write_its_own_address(running: Door) -> None:
    with replica(running.replica):
        until(running.port, 200)
        written = {"X-Forwarded-For": "192.0.2.1", "X-Recsys-Door": "mine"}
        for source in ("127.0.0.1", "127.0.0.9"):
            answer = ask(running.port, source=source, **written)
            received = f"{source} {running.key}".encode()
            assert answer.read_body == received  # type: ignore[attr-defined]


def test_a_killed_single_replica_gives_503_at_once_and_answers_when_it_is_back(running: Door) -> None:
    with replica(running.replica):
        until(running.port, 200)
    # A request over a connection that is kept for the next one may end with the replica, without an answer.
    _, refused_s = until(running.port, 503)
    assert refused_s < 3  # HAProxy tries again after a second
    for _ in range(5):
        answer = ask(running.port)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert b"no replica answers" in answer.read_body  # type: ignore[attr-defined]
        time.sleep(0.1)
    with replica(running.replica):
        _, back_s = until(running.port, 200)
    print(f"answers {back_s:.2f} s after the replica's port")


def test_a_killed_haproxy_is_back_with_its_replicas_and_one_that_stops_is_not(running: Door) -> None:
    with replica(running.replica):
        until(running.port, 200)
        pid = running.reload()
        for _ in range(2):
            os.kill(pid, signal.SIGKILL)
            _, back_s = until(running.port, 200)
            print(f"HAProxy back after {back_s:.2f} s")
            time.sleep(1)  # Serve looks each half second whether it is up
            pid = running.reload()
        assert running.folder.joinpath("a.sock").stat().st_mode & 0o077 == 0


def test_tls_with_a_certificate_and_plain_http_for_the_systems_own_tools(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -out a -keyout b"
    made = subprocess.run(command.split(), cwd=tmp_path, capture_output=True)
    assert made.returncode == 0, made.stderr
    pem = tmp_path / "both.pem"
    pem.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with door(certificate=str(pem)) as tls, replica(tls.replica):
        until(tls.local_port, 200)
        context = ssl.create_default_context(cafile=str(tmp_path / "a"))
        with (
            socket.create_connection(("127.0.0.1", tls.port), 8) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wrapped.recv(12) == b"HTTP/1.1 200"
        with pytest.raises(OSError):
            ask(tls.port)
