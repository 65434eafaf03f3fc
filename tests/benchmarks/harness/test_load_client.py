"""The load generator: when it sends, what it takes for an answer, and how it counts a server that stalls."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.harness.load_client import (
    Client,
    Load,
    Sent,
    answer_in,
    note_of,
    poisson_times,
    post,
    summary,
)

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"degraded":[]}'


def test_gaps_are_drawn_beforehand_and_exponential() -> None:
    times = poisson_times(1_000, 20.0, seed=3)
    gaps = np.diff(times)
    assert (times == poisson_times(1_000, 20.0, seed=3)).all() and times[-1] < 20.0
    assert 19_000 < len(times) < 21_000
    assert 0.9 < gaps.std() / gaps.mean() < 1.1  # of an exponential they are equal


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ANSWER, (200, 39)),
        (ANSWER[:-1], None),
        (ANSWER[:20], None),
        (b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n", (503, 38)),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", None),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", (200, 47)),
    ],
)
def test_an_answer_is_known_by_its_length(data: bytes, found: tuple[int, int] | None) -> None:
    assert answer_in(data) == found


@contextmanager
def server(answer: Callable[[int], bytes], closes: bool = False) -> Iterator[int]:
    """Answers request by request; ``answer`` is asked for each, by its number over all connections.
    ``closes``: each connection after its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        numbers, lock = iter(range(10**9)), threading.Lock()

        def serve(line: socket.socket) -> None:
            with line:
                while line.recv(65_536):
                    with lock:
                        number = next(numbers)
                    said = answer(number)
                    line.sendall(said)
                    if closes or not said:
                        return

        def accept() -> None:
            while True:
                try:
                    line, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(line,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]


def load(port: int, seconds: float, rate: float = 0.0, clients: int = 0) -> Load:
    return Load("127.0.0.1", port, [post("h", "/p", b"{}")], seconds, rate, clients)


def test_both_loops_count_what_was_answered_and_how() -> None:
    def answer(number: int) -> bytes:
        if number % 4 == 1:
            return b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n"
        return ANSWER.replace(b"[]", b'["rank"]').replace(b"15", b"21") if number % 4 == 2 else ANSWER

    with server(answer) as port:
        for its in (load(port, 0.3, rate=200.0), load(port, 0.2, clients=2)):
            sent = Client(its).run()
            found = summary(sent)
            assert found["offered"] == len(sent.status) > 20 and found["failed"] == 0
            assert abs(found["refused"] - found["offered"] / 4) <= 2
            assert abs(found["degraded"] - found["offered"] / 4) <= 2
            assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert its.clients == sent.connections == 2


def test_a_connection_that_is_closed_is_a_failure_and_another_is_opened() -> None:
    with server(lambda number: b"" if number == 3 else ANSWER) as port:
        found = summary(Client(load(port, 0.3, rate=100.0)).run())
    assert found["failed"] == 1 and found["generator"]["connections"] > 1


def test_clients_of_a_closed_loop_outlive_their_connections() -> None:
    with server(lambda number: ANSWER, closes=True) as port:
        sent = Client(load(port, 0.5, clients=4)).run()
    answered = np.array(sent.due)[np.array(sent.status) == 200] - sent.due[0]
    assert sent.connections > 20 and answered.max() > 0.25  # four would have been all


def test_a_closed_loop_without_a_server_waits_and_tries_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    found = summary(Client(load(port, 1.2, clients=3)).run())
    assert found["offered"] == found["failed"] in (1, 2, 3)


def test_a_server_that_stalls_is_charged_for_all_that_was_due_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that counts from when it got round to sending would see one late answer, and forty quick ones."""
    monkeypatch.setattr("benchmarks.harness.load_client.MOST_CONNECTIONS", 1)

    def answer(number: int) -> bytes:
        if number == 0:
            time.sleep(0.4)
        return ANSWER

    with server(answer) as port:
        sent = Client(load(port, 0.4, rate=100.0)).run()
    took_ms = 1000 * (np.array(sent.done) - np.array(sent.due))
    assert (took_ms[:20] > 100).all() and took_ms[0] > 380


def test_latency_counts_from_the_intended_time() -> None:
    sent = Sent(due=[0.0, 0.1], sent=[0.0, 0.3], done=[0.01, 0.31], status=[200, 200], wall_s=1.0)
    found = summary(sent)
    assert found["p99_ms"] > 200 and found["generator"]["late_p99_ms"] > 190


def test_where_nobody_listens_all_stays_without_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    found = summary(Client(load(port, 0.2, rate=100.0)).run())
    assert found["offered"] == found["failed"] > 5


def test_what_is_stopped_sends_no_more_and_has_its_answers() -> None:
    began = time.monotonic()
    with server(lambda number: ANSWER) as port:
        its = load(port, 60.0, rate=200.0)
        sent = Client(its, lambda: time.monotonic() - began > 0.2).run()
    assert 5 < len(sent.status) < 200 and set(sent.status) == {200}


def test_an_answer_says_its_request_and_what_it_lacked() -> None:
    body = b'{"request_id":"r1","items":[{"item_id":"v1"}],"degraded":[%s]}'
    for told, stages in {b"": (), b'"model"': ("model",), b'"model","x:y"': ("model", "x:y")}.items():
        assert note_of(b"HTTP" + body % told, 4) == ("r1", stages)
