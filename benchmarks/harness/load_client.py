"""A load generator over kept-alive connections: an open loop at a rate, or a closed loop of some clients.

The open loop draws its send times beforehand (Poisson), and latency counts from the intended time instead of
the actual one: a server that stalls is charged for every request that was due meanwhile (Tene calls the
opposite "coordinated omission"). When no connection is free, another is opened; when none can be opened, the
request stays without an answer. Sockets are raw and polled with select(2), whose timeout has microseconds
where that of epoll has milliseconds. It imports numpy and no project code, so a process of its own starts at
once.
"""

import gc
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST_CONNECTIONS: Final = 512
_AFTER_S: Final = 10.0  # wait for late answers
_WHOLE: Final = b'"degraded":[]'
_NO_ITEMS: Final = b'"items":[]'
_REQUEST: Final = b'"request_id":"'
_DEGRADED: Final = b'"degraded":['


@dataclass(frozen=True)
class Load:
    """Requests and their target. ``rate`` requests a second, or as fast as ``clients`` of them are
    answered."""

    host: str
    port: int
    requests: Sequence[bytes]  # complete requests, sent in turn: see ``post``
    seconds: float
    rate: float = 0.0
    clients: int = 0
    seed: int = 0
    noted: bool = False  # keep request id and skipped stages of each answer


@dataclass
class Sent:
    """All requests of a run, by number; times in seconds of one clock. ``status`` 0: no answer came."""

    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    degraded: int = 0  # answers with skipped stages
    empty: int = 0  # answers without items
    # With ``noted``: request id and skipped stages of each answer, in order of arrival.
    notes: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    connections: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0


def post(host: str, path: str, body: bytes) -> bytes:
    """Bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def poisson_times(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Send times in seconds from the start, with independent exponential gaps."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, int(rate * seconds * 1.5) + 50)
    times = np.cumsum(gaps)
    due: NDArray[np.float64] = times[times < seconds]
    return due


def answer_in(data: bytes) -> tuple[int, int] | None:
    """(status, begin of the body) of a complete answer; None while it is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, body = data[:end].lower(), end + 4
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        stop = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : stop if stop >= 0 else end])
        whole = len(data) >= body + length
    else:  # in chunks
        whole = data.endswith(b"0\r\n\r\n")
    return (int(data[9:12]), body) if whole else None


def note_of(data: bytes, body: int) -> tuple[str, tuple[str, ...]]:
    """(request id, skipped stages) of a complete answer with 200, whose body begins at ``body``."""
    at = data.find(_REQUEST, body)
    request = data[at + len(_REQUEST) : data.find(b'"', at + len(_REQUEST))] if at >= 0 else b""
    at = data.rfind(_DEGRADED)
    stages = data[at + len(_DEGRADED) : data.find(b"]", at)] if at >= body else b""
    return request.decode(), tuple(stage for stage in stages.decode().split('"') if stage.strip(","))


def summary(sent: Sent) -> dict[str, Any]:
    """Rates and latencies of requests answered with 200; processor time and lateness of the generator."""
    status, due = np.array(sent.status), np.array(sent.due)
    done, began = np.array(sent.done), np.array(sent.sent)
    good = status == 200
    took_ms = 1000 * (done[good] - due[good])
    late_ms = 1000 * (began - due)
    passed = float(done[good].max() - due[0]) if good.any() else sent.wall_s
    figures: dict[str, Any] = {
        "requests_per_s": round(float(good.sum()) / passed, 1),
        "offered": len(status),
        "refused": int(np.isin(status, (429, 503)).sum()),
        "failed": int((~good & ~np.isin(status, (429, 503))).sum()),
        "degraded": sent.degraded,
    }
    for p in (50, 95, 99):
        figures[f"p{p}_ms"] = round(float(np.percentile(took_ms, p)), 3) if good.any() else None
    figures["generator"] = {
        "cores_busy": round(sent.cpu_s / sent.wall_s, 3),
        "us_a_request": round(1e6 * sent.cpu_s / max(1, len(status)), 1),
        "late_p99_ms": round(float(np.percentile(late_ms, 99)), 3) if len(late_ms) else None,
        "connections": sent.connections,
    }
    return figures


class _Line:
    """One connection, with the number of its open request."""

    __slots__ = ("socket", "buffer", "number")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=5.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.buffer, self.number = b"", -1

    @property
    def open(self) -> bool:
        """Whether an idle connection is usable. The server may have closed it, which is no failure of the
        next request; every HTTP client checks this."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False


class Client:
    """Sends one load, until ``stopped`` returns True. Can't be reused."""

    def __init__(self, load: Load, stopped: Callable[[], bool] = lambda: False) -> None:
        self._load, self._sent, self._stopped = load, Sent(), stopped
        self._poll = select.epoll()
        self._lines: dict[int, _Line] = {}
        self._idle: list[_Line] = []
        self._waiting = 0

    def run(self) -> Sent:
        """Sends all requests, waits some seconds for the answers, and closes the connections."""
        gc.disable()
        began, cpu = time.perf_counter(), time.process_time()
        try:
            if self._load.rate:
                self._open(began)
            else:
                self._closed(began)
        finally:
            gc.enable()
            for line in self._lines.values():
                line.socket.close()
            self._poll.close()
        sent = self._sent
        sent.wall_s, sent.cpu_s = time.perf_counter() - began, time.process_time() - cpu
        return sent

    def _open(self, began: float) -> None:
        due = (began + poisson_times(self._load.rate, self._load.seconds, self._load.seed)).tolist()
        number, until = 0, began + self._load.seconds + _AFTER_S
        while number < len(due) or self._waiting:
            now = time.perf_counter()
            if now > until:
                break
            if number < len(due) and self._stopped():
                del due[number:]
                until = now + _AFTER_S
            while number < len(due) and due[number] <= now:
                try:
                    line = self._free_line()
                except OSError:
                    self._begin(due[number])  # no connection possible
                else:
                    if line is None:
                        break  # it stays due, and its latency grows
                    self._send(line, due[number])
                number += 1
            wait_s = max(0.0, due[number] - time.perf_counter()) if number < len(due) else 0.5
            self._receive(wait_s)
        for at in due[number:]:  # due requests for which no connection was free
            self._begin(at)

    def _closed(self, began: float) -> None:
        until = began + self._load.seconds
        while (now := time.perf_counter()) < until or (self._waiting and now < until + _AFTER_S):
            # Also clients whose connection the server closed.
            while self._waiting < self._load.clients and time.perf_counter() < until:
                try:
                    line = self._free_line()
                except OSError:
                    self._begin(time.perf_counter())  # no connection possible: again after the wait
                    break
                assert line is not None
                self._send(line, time.perf_counter())
            self._receive(0.5)

    def _free_line(self) -> _Line | None:
        while self._idle:
            line = self._idle.pop()
            if line.open:
                return line
            self._drop(line)
        if len(self._lines) >= MOST_CONNECTIONS:
            return None
        line = _Line(self._load.host, self._load.port)
        self._lines[line.socket.fileno()] = line
        self._poll.register(line.socket.fileno(), select.EPOLLIN)
        self._sent.connections += 1
        return line

    def _begin(self, due: float) -> int:
        """Adds a request without an answer; returns its number."""
        sent = self._sent
        sent.due.append(due)
        sent.sent.append(time.perf_counter())
        sent.done.append(0.0)
        sent.status.append(0)
        return len(sent.due) - 1

    def _send(self, line: _Line, due: float) -> None:
        requests = self._load.requests
        line.number = self._begin(due)
        self._waiting += 1
        try:
            line.socket.send(requests[line.number % len(requests)])
        except OSError:
            self._drop(line)

    def _receive(self, wait_s: float) -> None:
        select.select([self._poll], [], [], wait_s)
        for number, _ in self._poll.poll(0):
            line = self._lines[number]
            try:
                data = line.socket.recv(65_536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                self._take(line, line.buffer + data if line.buffer else data)
            else:
                self._drop(line)

    def _take(self, line: _Line, data: bytes) -> None:
        answer = answer_in(data)
        if answer is None:
            line.buffer = data
            return
        status, body = answer
        sent, number = self._sent, line.number
        sent.done[number], sent.status[number] = time.perf_counter(), status
        if status == 200:
            sent.degraded += data.find(_WHOLE, body) < 0
            sent.empty += data.find(_NO_ITEMS, body) >= 0
            if self._load.noted:
                sent.notes.append(note_of(data, body))
        line.buffer, line.number = b"", -1
        self._waiting -= 1
        self._idle.append(line)

    def _drop(self, line: _Line) -> None:
        """Removes a connection that the server closed. Its request stays without an answer."""
        if line.number >= 0:
            self._waiting -= 1
        if line in self._idle:
            self._idle.remove(line)
        self._poll.unregister(line.socket)
        del self._lines[line.socket.fileno()]
        line.socket.close()


def offer(load: Load, messages: Any) -> None:
    """Main function of a process: sends a load and reports the summary."""
    from benchmarks.harness.worker_processes import reporting_errors

    with reporting_errors(messages, 0):
        messages.put(("load", 0, summary(Client(load).run())))


def offer_until(load: Load, messages: Any, stop: Any) -> None:
    """Main function of a process: sends a load until stopped and reports all requests."""
    from benchmarks.harness.worker_processes import reporting_errors

    with reporting_errors(messages, 0):
        messages.put(("load", 0, Client(load, stop.is_set).run()))
