"""A control room over made-up samples, and how a page's numbers are read back."""

import re
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import uvicorn

from recsys.free_ports import free_ports
from recsys.process.disk_budget import Space
from runtime.supervision.part_metrics import PART_METRICS, families
from runtime.supervision.system_status import PartStatus, Status, Version
from serving.control_room.curves import Curves
from serving.control_room.exposition import Samples, samples_of
from serving.control_room.hub import Hub
from serving.control_room.picture import PictureBuilder
from serving.control_room.room_app import build_room

KEY = "stub_key-" + "k" * 34
PARTS = (
    "session-fold",
    "joiner",
    "sequencer",
    "trainer",
    "shards",
    "director",
    "shadow",
    "serve",
    "control-room",
    "counters",
)
SAYS = {
    "label": ("long_view", "like"), "table": ("items", "users"), "shard": ("0", "1"),
    "age": ("previous", "1h"), "reason": ("behind", "no_positive"),
}  # fmt: skip
FAMILIES = {"shard_step": "step", "table_rows": "rows", "table_waiting": "waiting"}
OF_REPLICA = {
    'recsys_events_total{status="accepted"}': 91_234.0, 'recsys_events_total{status="duplicate"}': 3.0,
    'recsys_events_total{status="rejected"}': 0.0,
    'recsys_requests_total{route="/v1/recommend",status="200"}': 812.0,
    "recsys_step": 1_234.0, "recsys_epoch": 2.0, "recsys_items": 2_049.0, "recsys_catalogue_offset": 2_100.0,
    "recsys_item_state_offset": 15_812.0, "recsys_delta_gaps": 0.0, "recsys_click_to_served_p95_ms": 1_483.2,
    "recsys_click_to_session_p95_ms": 38.4, "recsys_view_to_acknowledged_p95_ms": 912.4,
    "recsys_view_to_served_p95_ms": 2_380.1, "recsys_answer_p50_ms": 6.2, "recsys_answer_p99_ms": 21.9,
    "recsys_failed_share": 0.0, "recsys_degraded_share": 0.004,
    'recsys_source_recall{source="popular"}': 0.31,
}  # fmt: skip
PANELS: dict[str, Any] = {
    "app": "shop", "running": True, "served": {"line": "main", "epoch": 2, "step": 1_234},
    "lost": {}, "logs": "/srv/state/run", "letters": [], "experiments": [], "quarantined": ["a0", "a1"],
    "parts": [{"name": name, "state": "ready", "failure": ""} for name in PARTS],
    "control": {"live": None, "candidates": [], "decisions": [], "alarms": []},
}  # fmt: skip


def made_up() -> Samples:
    """Every sample that the parts can say, each another number."""
    number = iter(range(1, 10_000))
    parts = []
    for name in PARTS:
        said: dict[str, dict[str, float]] = {"counter": {}, "gauge": {}}
        for its in PART_METRICS:
            if its.part == name:
                for label in SAYS[its.label] if its.label else ("",):
                    first = FAMILIES.get(its.key, its.key)
                    key = f"{first}.{label}" if label else its.key
                    said[its.kind][key] = next(number) * 1.37
        lag = {"events": next(number), "steps": next(number)}
        parts.append(
            PartStatus(name=name, state="ready", counters=said["counter"], gauges=said["gauge"], lag=lag)
        )
    status = Status(
        state="s", running=True, ready=True, cut=Version("main", 2, 1_240), served=Version("main", 2, 1_234),
        dead_letters=0, parts=parts, load=0.42, memory_free_bytes=11_200_000_000,
        space=Space(budget=20_000_000_000, used=2_000_000_000, free=88_000_000_000),
    )  # fmt: skip
    return samples_of(families(status)) | OF_REPLICA  # type: ignore[arg-type]


class Look:
    """What is sampled: said by a test. Counters move by themselves."""

    def __init__(self) -> None:
        self.now, self.panel = made_up(), dict(PANELS)

    def samples(self) -> Samples:
        for series in self.now:
            if series.partition("{")[0].endswith("_total"):
                self.now[series] += 3.0
        return dict(self.now)

    def panels(self) -> Mapping[str, Any]:
        return self.panel


class ControlStub:
    """A control room on a port that stays the same, also where it goes away and comes back."""

    def __init__(self) -> None:
        self.port = next(free_ports())
        self.look = Look()
        self.views: dict[tuple[str, str], Any] = {}  # what is found of items and users
        self.painter = PictureBuilder(self.look, Curves(every_ms=200))
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/control"

    def start(self) -> None:
        self.hub = Hub(
            lambda: msgspec.json.encode(self.painter.build(time.time_ns() // 1_000_000)), every_s=0.2
        )
        app = build_room(self.hub, lambda: msgspec.json.encode(self.painter.curves.all()), self._inspect, KEY)
        config = uvicorn.Config(
            app, port=self.port, log_config=None, lifespan="off", timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def _inspect(self, kind: str, name: str) -> tuple[int, bytes]:
        view = self.views.get((kind, name))
        if view is None:
            return 404, msgspec.json.encode({"error": f"no {kind} {name}"})
        return 200, msgspec.json.encode(view)


UNITS = {
    "": 1.0, "ms": 1.0, "s": 1_000.0, "min": 60_000.0, "h": 3_600_000.0, "B": 1.0, "kB": 1e3, "MB": 1e6,
    "GB": 1e9, "TB": 1e12, "%": 0.01,
}  # fmt: skip
NUMBERS = """
return [...document.querySelectorAll('[data-metric]')].filter(e => e.offsetParent)
  .map(e => [e.dataset.metric, e.dataset.as, e.textContent]);
"""


def wrong_numbers(shown: list[list[str]], picture: Mapping[str, Any]) -> list[str]:
    """Those that aren't what the picture has under that name, to the digits that are shown."""
    found = []
    for series, how, text in shown:
        values = picture["rates"] if how in ("rate", "bytes/s") else picture["samples"]
        value = values.get(series)
        if value is None:
            if text != "–":
                found.append(f"{series}: {text!r}, and there is no such sample")
        elif not agrees(text, value * (1_000.0 if how == "s" else 1.0)):
            found.append(f"{series}: {text!r}, the sample is {value}")
    return found


def agrees(text: str, value: float) -> bool:
    """Whether a text with a unit says a value: within half of its last digit."""
    its = re.fullmatch(r"(-?[\d,]+(?:\.\d+)?)(?:e([+-]\d+))? ?([A-Za-z%]*)(?:/s)?", text)
    if its is None or its[3] not in UNITS:
        return False
    scale = UNITS[its[3]] * 10.0 ** int(its[2] or 0)
    digits = len(its[1].partition(".")[2])
    return abs(float(its[1].replace(",", "")) * scale - value) <= 0.5001 * scale * 10.0**-digits
