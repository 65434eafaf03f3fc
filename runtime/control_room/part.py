"""The part ``control-room``: serves the page at ``/control``, where ``control_room.port`` is set."""

import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec
import uvicorn

from recsys.clock import is_due, machine_ms
from recsys.config.system_config import Config
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop, run_folder
from runtime.control_room.connections import Connections, RoomConnection
from runtime.control_room.system_watch import SystemWatch
from runtime.supervision.launch_plan import CONTROL_KEY
from serving.access.hosts import host_is_allowed
from serving.control_room.curves import Curves
from serving.control_room.hub import Hub
from serving.control_room.picture import PictureBuilder
from serving.control_room.room_app import build_room, is_key

_START_S: Final = 10.0
_IDLE_MS: Final = 15_000  # between two points of the curves while no page is open


def run(config: Config, stop: Stop) -> None:
    """Serves until asked to stop. Raises RuntimeError where the port can't be bound."""
    with closing(open_log(config)) as log:
        room = ControlRoom(config, SystemWatch(config, log), stop)
        host = config.control_room.host
        server = uvicorn.Server(
            uvicorn.Config(
                room.app, host=host, port=config.control_room.port, http=room.protocol,
                log_config=None, access_log=False, ws="none", lifespan="off",
                timeout_graceful_shutdown=1, server_header=False,
            )
        )  # fmt: skip
        thread = threading.Thread(target=server.run, name="http", daemon=True)
        thread.start()
        try:
            _await_start(server, thread)
            port = server.servers[0].sockets[0].getsockname()[1]
            stop.heartbeat.address("control_room", f"http://{host}:{port}/control")
            while not stop.wait(1.0):
                if not thread.is_alive():
                    raise RuntimeError("the server of the control room has ended")
                room.beat()
        finally:  # a part that fails starts again in this process, on the same port
            server.should_exit = True
            thread.join(5)


class ControlRoom:
    """Connects one system's data with the hub and the HTTP app."""

    def __init__(self, config: Config, watch: SystemWatch, stop: Stop) -> None:
        self._watch, self._stop = watch, stop
        self._builder, self._lock = PictureBuilder(watch, Curves()), threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._reported, self._observed_ms = 0, 0
        self.hub = Hub(self.render)
        key = (run_folder(config.state) / CONTROL_KEY).read_text().strip()
        self._connections = Connections()
        self.protocol: Any = partial(
            RoomConnection,
            connections=self._connections,
            is_key=partial(is_key, key=key),
            header_s=config.doors.header_s,
        )
        # Its page needs no key, so names are always checked.
        access = replace(config.access, mode="open")
        serve = replace(config.serve, host=config.control_room.host)
        checked = replace(config, access=access, serve=serve)
        is_allowed = partial(host_is_allowed, config=checked)
        self.app = build_room(self.hub, self.curves, watch.inspect, key, is_allowed)

    def render(self) -> bytes:
        """Builds the next picture, as JSON."""
        began_s = time.thread_time()
        with self._lock:
            picture = self._encoder.encode(self._builder.build(machine_ms()))
        took_ms = 1000 * (time.thread_time() - began_s)
        self._stop.heartbeat.gauge("picture_ms", round(took_ms, 2))
        return picture

    def curves(self) -> bytes:
        """History of the curves, as JSON. Doesn't wait for a picture."""
        return msgspec.json.encode(self._builder.curves.all())

    def beat(self) -> None:
        """Reports open pages, pictures and ended connections; continues the curves while no page is open."""
        beat, pictures = self._stop.heartbeat, self.hub.pictures
        beat.gauge("pages", self.hub.pages)
        beat.add("pictures", pictures - self._reported)
        self._reported = pictures
        beat.gauge("connections_ended", self._connections.ended)
        now_ms = machine_ms()
        if not self.hub.pages and is_due(now_ms, self._observed_ms + _IDLE_MS, _IDLE_MS):
            self._observed_ms = now_ms
            with self._lock:
                self._builder.observe(now_ms)


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    """Returns once the server listens. uvicorn ends its thread where the port is taken."""
    until_s = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until_s:
            where = f"{server.config.host}:{server.config.port}"
            raise RuntimeError(f"control_room can't listen on {where}: choose another control_room.port")
        time.sleep(0.02)
