"""The part ``control-room``: the page at ``/control``, where ``control_room.port`` is set."""

import logging
import threading
import time
from typing import Final

import msgspec
import uvicorn

from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop, run_folder
from runtime.control_room.system_watch import Watch
from runtime.supervision import launch_plan as plans
from serving.control_room.curves import EVERY_MS, Curves
from serving.control_room.hub import Hub
from serving.control_room.picture import Painter
from serving.control_room.room_app import build_room

_START_S: Final = 10.0
_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Serves until asked to stop. Raises RuntimeError where its port can't be had."""
    log = open_log(config)
    room = Room(config, Watch(config, log), stop)
    its = config.control_room
    server = uvicorn.Server(
        uvicorn.Config(
            room.app, host=its.host, port=its.port, log_config=None, access_log=False, ws="none",
            lifespan="off", timeout_graceful_shutdown=1, limit_concurrency=256, server_header=False,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, name="http", daemon=True)
    thread.start()
    _await(server, thread)
    port = server.servers[0].sockets[0].getsockname()[1]
    stop.heartbeat.address("control_room", f"http://{its.host}:{port}/control")
    while not stop.wait(1.0):
        if not thread.is_alive():
            raise RuntimeError("the server of the control room has ended")
        room.beat()
    server.should_exit = True
    thread.join(5)
    log.close()


class Room:
    """Pictures of one system, and who is told them."""

    def __init__(self, config: Config, watch: Watch, stop: Stop) -> None:
        self._watch, self._stop = watch, stop
        self._painter, self._lock = Painter(watch, Curves()), threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._told, self._noted_ms = 0, 0
        self.hub = Hub(self.paint)
        key = (run_folder(config.state) / plans.CONTROL_KEY).read_text().strip()
        self.app = build_room(self.hub, self.curves, watch.inspect, key)

    def paint(self) -> bytes:
        """The next picture, as JSON."""
        began_s = time.thread_time()
        with self._lock:
            painted = self._encoder.encode(self._painter.paint(wall_ms()))
        took_ms = 1000 * (time.thread_time() - began_s)
        self._stop.heartbeat.gauge("picture_ms", round(took_ms, 2))
        return painted

    def curves(self) -> bytes:
        """Those of the past, as JSON. Waits for no picture."""
        return msgspec.json.encode(self._painter.curves.all())

    def beat(self) -> None:
        """Tells how many look; where nobody does, the curves go on by themselves."""
        beat, pictures = self._stop.heartbeat, self.hub.pictures
        beat.gauge("pages", self.hub.pages)
        beat.add("pictures", pictures - self._told)
        self._told = pictures
        now_ms = wall_ms()
        if not self.hub.pages and now_ms - self._noted_ms >= EVERY_MS:
            self._noted_ms = now_ms
            with self._lock:
                self._painter.curves.tell(self._watch.quiet(), now_ms)


def _await(server: uvicorn.Server, thread: threading.Thread) -> None:
    """Until it listens. uvicorn ends its thread where the port is taken."""
    until_s = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until_s:
            where = f"{server.config.host}:{server.config.port}"
            raise RuntimeError(
                f"control_room can't listen on {where}: choose another control_room.port"
            )
        time.sleep(0.02)
