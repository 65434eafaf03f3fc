"""The API as the system's own tools ask it: an API that says nothing costs a moment, and is asked once."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config.system_config import ServeConfig
from runtime.supervision.api_client import ApiConnection
from tests.support.plan_config import config_in


def connection_to(server: socket.socket, timeout_s: float = 2.0) -> ApiConnection:
    config = config_in(Path("none"))
    return ApiConnection(replace(config, serve=ServeConfig(port=server.getsockname()[1])), timeout_s)


@pytest.fixture
def silent() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """Takes connections and doesn't answer."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=take, daemon=True).start()
    yield server, taken
    server.close()
    for one in taken:
        one.close()


def test_one_that_does_not_answer_is_asked_once(silent: tuple[socket.socket, list[socket.socket]]) -> None:
    server, taken = silent
    door, began_s = connection_to(server, 1.0), time.monotonic()
    assert door.text("/metrics") == ""
    assert time.monotonic() - began_s < 1.9 and len(taken) == 1


def test_several_paths_share_a_time(silent: tuple[socket.socket, list[socket.socket]]) -> None:
    server, taken = silent
    door, began_s = connection_to(server, 5.0), time.monotonic()
    until_s = began_s + 1.0
    assert door.text("/v1/status", until_s) == door.text("/metrics", until_s) == ""
    assert time.monotonic() - began_s < 1.9 and len(taken) == 1


def test_one_that_drips_is_not_waited_for() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        its, _ = server.accept()
        its.recv(4096)
        its.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        try:
            for _ in range(100):
                its.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=drip, daemon=True).start()
    began_s = time.monotonic()
    assert connection_to(server, 0.3).text("/metrics") == ""
    assert time.monotonic() - began_s < 4.0  # all of it comes in five seconds
    server.close()


def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer_once_each() -> None:
        for _ in range(2):
            its, _ = server.accept()
            its.recv(4096)
            its.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            its.close()

    threading.Thread(target=answer_once_each, daemon=True).start()
    door = connection_to(server)
    assert door.text("/a") == "ok"
    time.sleep(0.05)
    assert door.text("/a") == "ok"
    server.close()


def test_an_answer_that_is_no_object_is_empty() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer(body: bytes) -> None:
        taken, _ = server.accept()
        taken.recv(4096)
        taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        taken.close()

    for body, value in ((b'{"a":1}', {"a": 1}), (b"[1]", {}), (b"no JSON", {})):
        thread = threading.Thread(target=answer, args=(body,), daemon=True)
        thread.start()
        assert connection_to(server).json_object("/v1/status") == value
    server.close()
