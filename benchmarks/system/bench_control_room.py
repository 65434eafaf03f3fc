"""``recsys bench control-room``: processor time of the control room, with and without open pages.

It attaches to a running system over the same stream as pages use; the measured process is the part alone,
with all of its threads.
"""

import http.client
import threading
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file

PART: Final = "control-room"
_SETTLE_S: Final = 3.0


def measure_control_room(state: Path, seconds: int, pages: int) -> dict[str, Any]:
    """Shares of one core. Raises ValueError when the system runs without a control room."""
    config, _ = plans.read(state)
    url = plans.control_room_url(config)
    running = run_file.read(state)
    parts = (
        [part for part in running.parts if part.name == PART and part.process] if running else []
    )
    if not url or not parts or parts[0].process is None:
        raise ValueError(
            f"{state} runs without a control room: `recsys demo --state {state}` has one, `recsys up` where "
            "control_room.port is set"
        )
    process = psutil.Process(parts[0].process.pid)
    measured: dict[str, Any] = {"nobody looks": _share(process, seconds)}
    for count in sorted({1, pages}):
        looking = [Page(url) for _ in range(count)]
        time.sleep(_SETTLE_S)
        before = [page.pictures for page in looking]
        share = _share(process, seconds)
        seen = [page.pictures - past for page, past in zip(looking, before, strict=True)]
        for page in looking:
            page.close()
        measured[f"{count} pages look" if count > 1 else "1 page looks"] = share | {
            "pictures_per_s": round(sum(seen) / len(seen) / seconds, 3),
            "bytes_per_picture": round(
                sum(p.bytes for p in looking) / sum(p.pictures for p in looking)
            ),
        }
    measured["resident_mb"] = round(process.memory_info().rss / 2**20, 1)
    return measured


def _share(process: psutil.Process, seconds: int) -> dict[str, Any]:
    def used_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, began = used_s(), time.monotonic()
    time.sleep(seconds)
    return {"share_of_a_core": round((used_s() - before) / (time.monotonic() - began), 4)}


class Page:
    """Reads the stream in a thread as a page does, without drawing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        self._connection.request(
            "GET", "/control/api/stream", headers={"authorization": f"Bearer {parts.fragment}"}
        )
        self._answer = self._connection.getresponse()
        if self._answer.status != 200:
            raise ValueError(f"the control room answered {self._answer.status}, expected 200")
        self.pictures, self.bytes = 0, 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        sock = self._connection.sock
        if sock is not None:
            sock.shutdown(2)
        self._thread.join(5)
        self._connection.close()

    def _read(self) -> None:
        name = b""
        try:
            for line in self._answer:
                if line.startswith(b"event: "):
                    name = line[7:].strip()
                elif line.startswith(b"data: ") and name == b"picture":
                    self.bytes += len(line)
                    self.pictures += 1
        except (OSError, http.client.HTTPException, ValueError):
            return  # closed
