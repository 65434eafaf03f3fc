"""The API as the control room asks it: an API that says nothing costs a moment, and is asked once."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from runtime.control_room.api_client import ApiConnection


@pytest.fixture
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
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
    yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
    server.close()
    for one in taken:
        one.close()


def test_one_that_does_not_answer_is_asked_once(
    silent: tuple[str, list[socket.socket]],
) -> None:
    url, taken = silent
    door, began_s = ApiConnection(url, 0.2), time.monotonic()
    assert door.text("/metrics") == ""
    assert time.monotonic() - began_s < 0.35 and len(taken) == 1


def test_several_paths_share_a_time(silent: tuple[str, list[socket.socket]]) -> None:
    url, taken = silent
    door, began_s = ApiConnection(url, 5.0), time.monotonic()
    until_s = began_s + 0.2
    assert door.text("/v1/status", until_s) == door.text("/metrics", until_s) == ""
    assert time.monotonic() - began_s < 0.35 and len(taken) == 1


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
    assert ApiConnection(f"http://127.0.0.1:{server.getsockname()[1]}", 0.3).text("/metrics") == ""
    assert time.monotonic() - began_s < 1.0
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
    door = ApiConnection(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert door.text("/a") == "ok"
    time.sleep(0.05)
    assert door.text("/a") == "ok"
    server.close()
