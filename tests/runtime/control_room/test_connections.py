"""The control room's connections: a new one takes the place of an older one, and no address has them all."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from recsys.config.part_configs import ControlRoomConfig
from recsys.config.safety_config import DoorsConfig
from recsys.free_ports import free_ports
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Stop
from runtime.control_room.connections import Connections
from runtime.control_room.part import run
from runtime.supervision import launch_plan
from tests.support.plan_config import config_in

ADDRESS, OTHER, KEY = "127.0.0.1", "127.0.0.2", "k" * 32
HEADER_S = 2.0
_ANSWER_S = 20.0


class Place:
    """A connection of which only the test says whether it may end."""

    def __init__(self) -> None:
        self.may_end, self.is_open = True, True

    def end(self) -> None:
        self.is_open = False


def entered(connections: Connections, address: str, count: int) -> list[Place]:
    places = [Place() for _ in range(count)]
    for place in places:
        connections.enter(place, address)
    return places


def test_the_oldest_connection_that_may_end_of_an_address_makes_room_for_its_newest() -> None:
    connections = Connections(most=10, of_address=3)
    (other,), places = entered(connections, OTHER, 1), entered(connections, ADDRESS, 3)
    places[0].may_end = False
    places += entered(connections, ADDRESS, 1)
    assert [place.is_open for place in places] == [True, False, True, True] and other.is_open
    assert connections.ended == 1


def test_where_all_are_full_the_address_with_the_most_makes_room() -> None:
    connections = Connections(most=4, of_address=3)
    places, other = entered(connections, ADDRESS, 3), entered(connections, OTHER, 1)
    other += entered(connections, OTHER, 1)
    assert [place.is_open for place in places] == [False, True, True]
    assert all(place.is_open for place in other)


def test_a_connection_that_finds_no_place_is_refused() -> None:
    connections = Connections(most=2, of_address=2)
    for place in (places := entered(connections, ADDRESS, 2)):
        place.may_end = False
    for address in (ADDRESS, OTHER):
        (refused,) = entered(connections, address, 1)
        assert not refused.is_open and all(place.is_open for place in places)
    connections.leave(places[0], ADDRESS)
    (newest,) = entered(connections, OTHER, 1)
    assert newest.is_open and connections.ended == 2


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Port of a running room."""
    port = next(free_ports())
    doors = DoorsConfig(header_s=HEADER_S)
    there = config_in(tmp_path, control_room=ControlRoomConfig(port=port), doors=doors)
    config, plan = launch_plan.resolve(there)
    launch_plan.write(config, plan)
    (tmp_path / "run" / launch_plan.CONTROL_KEY).write_text(KEY)
    with contextlib.closing(open_log(config)) as log:
        create_topics(log, config)
    stop = Stop()
    part = threading.Thread(target=run, args=(config, stop))
    part.start()
    try:
        while "control_room" not in stop.heartbeat.now().addresses:
            assert part.is_alive()
            stop.wait(0.02)
        yield port
    finally:
        stop.set()
        part.join()


def ask(port: int, path: str = "/healthz") -> HTTPResponse:
    connection = HTTPConnection(ADDRESS, port, timeout=_ANSWER_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
    return response


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "sent"),
    [
        (1000, b"GET /control HTTP/1.1\r\nHost: x\r\n"),
        (300, b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nab"),
        (80, b"GET /control HTTP/1.1\r\nHost: x\r\n\r\n" * 500),
    ],
    ids=["half a header", "half a body", "answers that nobody reads"],
)
def test_no_number_of_connections_of_one_address_closes_the_room(port: int, count: int, sent: bytes) -> None:
    assert ask(port).status == 200
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            connection = opened.enter_context(socket.create_connection((ADDRESS, port), _ANSWER_S))
            with contextlib.suppress(OSError):  # it has made room already
                connection.sendall(sent)
        for _ in range(5):
            assert ask(port).status == 200


@pytest.mark.slow
def test_a_header_has_its_time_and_an_open_page_as_much_as_it_wants(port: int) -> None:
    with (
        socket.create_connection((ADDRESS, port), _ANSWER_S) as half,
        contextlib.closing(HTTPConnection(ADDRESS, port, timeout=_ANSWER_S)) as page,
    ):
        page.request("GET", "/control/api/stream", headers={"Authorization": f"Bearer {KEY}"})
        stream = page.getresponse()
        half.sendall(b"GET /control HTTP/1.1\r\nHost: x\r\n")
        assert half.recv(1) == b""
        with contextlib.ExitStack() as opened:
            for _ in range(100):
                opened.enter_context(socket.create_connection((ADDRESS, port), _ANSWER_S))
            names = [next(line for line in stream if line.startswith(b"event:")) for _ in range(6)]
        assert stream.status == 200 and names[0] == b"event: curves\n" != names[5]
