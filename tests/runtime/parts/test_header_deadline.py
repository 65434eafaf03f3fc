"""The time-out for a request's header in uvicorn: half of one ends, whole ones and idle connections don't."""

import asyncio
import subprocess
import sys
from typing import Any

from runtime.parts.header_deadline import HeaderDeadline


class Timers:
    """Event loop whose timers only the test fires."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, Any]] = []

    def call_later(self, delay_s: float, action: Any) -> Any:
        timer = (delay_s, action)
        self.pending.append(timer)
        return type("Timer", (), {"cancel": lambda _: timer in self.pending and self.pending.remove(timer)})()


def test_a_deadline_runs_while_a_header_is_awaited_and_not_while_a_body_is() -> None:
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    async def steps() -> list[int]:
        from uvicorn.server import ServerState

        config = uvicorn.Config(app, lifespan="off")
        config.load()
        closed: list[bool] = []
        transport: Any = type("Transport", (asyncio.Transport,), {
            "close": lambda _: closed.append(True), "get_extra_info": lambda *_: None,
            "is_closing": lambda _: bool(closed)})()  # fmt: skip
        protocol = HeaderDeadline(config, ServerState(), {}, asyncio.get_running_loop())
        timers: Any = Timers()
        counts = []

        def note() -> None:
            counts.append(len(timers.pending))

        loop = protocol.loop
        protocol.loop = timers
        protocol.connection_made(transport)
        note()  # 1: nothing was sent yet
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\n")
        note()  # 1
        protocol.loop = loop
        protocol.data_received(b"Content-Length: 5\r\n\r\nab")
        note()  # 0: the body has its own limits
        protocol.loop = timers
        assert not closed
        protocol.connection_lost(None)
        note()
        closed.clear()
        protocol.connection_made(transport)
        delay_s, close = timers.pending[0]
        close()
        assert closed and delay_s == HeaderDeadline.header_s == 10.0
        return counts

    assert asyncio.run(steps()) == [1, 1, 0, 0]


def test_uvicorn_takes_it_where_it_was_imported_before() -> None:
    code = (
        "import wrapt, importlib\n"
        "from runtime.parts import ray_worker\n"
        "ray_worker.begin_session = ray_worker.keep_on_loopback = lambda: None\n"
        "ray_worker.begin()\n"
        "import sys; assert not {'uvicorn', 'ray.serve'} & sys.modules.keys()\n"
        "from uvicorn import Config\n"
        "config = Config(lambda: None, lifespan='off'); config.load()\n"
        "print(config.http_protocol_class.__name__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "HeaderDeadline", ran.stderr
