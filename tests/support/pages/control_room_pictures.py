"""Makes the pictures of docs/how-to/control-room.md.

Usage: ``python -m tests.support.pages.control_room_pictures [STATE]``.

Each is one screen in headless Chromium, after the page has looked for a while: at the system of a state
folder, or, without one, at samples that are made up here.
"""

import math
import sys
import time
from collections import deque
from pathlib import Path

from runtime.supervision import launch_plan as plans
from serving.control_room.curves import POINTS
from serving.control_room.exposition import Samples
from tests.support.pages.control_room_stub import KEY, ControlStub
from tests.support.pages.webdriver import Browser
from tests.support.paths import ROOT

DOCS = ROOT / "docs" / "images"
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
LOOKS_S = 12.0
MOST_BYTES = 400_000
# As a laptop with 200 events a second: what each counter gains a second, and gauges.
GAINS = {
    'recsys_events_total{status="accepted"}': 196.0, "recsys_session_fold_events_total": 196.0,
    "recsys_joiner_examples_total": 62.0, "recsys_trainer_examples_total": 62.0,
    "recsys_trainer_steps_total": 3.2, "recsys_trainer_delta_bytes_total": 412_000.0,
    'recsys_requests_total{route="/v1/recommend",status="200"}': 7.0,
}  # fmt: skip
GAUGES = {
    "recsys_view_to_acknowledged_p95_ms": 912.0, "recsys_session_fold_view_to_session_p95_ms": 928.0,
    "recsys_joiner_view_to_example_p95_ms": 961.0, "recsys_trainer_view_to_learned_p95_ms": 1_390.0,
    "recsys_view_to_served_p95_ms": 1_520.0, "recsys_click_to_served_p95_ms": 640.0,
    "recsys_click_to_session_p95_ms": 28.0, "recsys_shadow_panels": 6.0,
    "recsys_trainer_judged": 4_180.0, 'recsys_part_lag{part="trainer",topic="steps"}': 1.0,
    'recsys_part_lag{part="joiner",topic="events"}': 4.0,
    'recsys_trainer_rate{label="long_view"}': 0.31, 'recsys_trainer_rate{label="like"}': 0.06,
}  # fmt: skip
# Panels by age: how old in s, examples, AUC before, learned, now, and what was lost.
PANELS = {
    "previous": (125.0, 1_024, 0.702, 0.731, 0.729, 0.002),
    "1h": (3_410.0, 1_019, 0.694, 0.726, 0.714, 0.012),
}
OF_PANELS = ("age_s", "examples", "auc_before", "auc_learned", "auc_now", "forgotten")
GAUGES |= {
    f'recsys_shadow_panel_{what}{{age="{age}"}}': value
    for age, values in PANELS.items()
    for what, value in zip(OF_PANELS, values, strict=True)
}
# Where a curve begins, where it ends, how many points that takes.
WAYS = {
    'recsys_trainer_auc{label="long_view"}': (0.53, 0.731, 90),
    'recsys_trainer_normalized_entropy{label="long_view"}': (1.04, 0.842, 120),
    'recsys_trainer_calibration{label="long_view"}': (0.76, 1.013, 60),
}


class MadeUp(ControlStub):
    """A system that learns well."""

    def start(self) -> None:
        self._began_s = time.monotonic()
        self._counts = {series: 1_000.0 * gain for series, gain in GAINS.items()}
        self.look.now |= GAUGES | {series: end for series, (_, end, _) in WAYS.items()}
        self.look.samples = self._samples  # type: ignore[method-assign]
        now_ms = time.time_ns() // 1_000_000
        for series, (begin, end, pace) in WAYS.items():
            its = [end + (begin - end) * math.exp(-n / pace) + 0.004 * math.sin(n / 8) for n in range(600)]
            points = [(now_ms - 5_000 * (600 - n), value) for n, value in enumerate(its)]
            self.painter.curves._series[series] = deque(points, maxlen=POINTS)
        super().start()

    def _samples(self) -> Samples:
        passed_s = time.monotonic() - self._began_s
        moved = {series: self._counts[series] + gain * passed_s for series, gain in GAINS.items()}
        return self.look.now | moved


def main(state: str = "", folder: Path = DOCS, scheme: str = "dark") -> None:
    """Writes ``control-desktop.png`` and ``control-phone.png``. Raises ValueError without a control room."""
    stub = None if state else MadeUp()
    url = f"{stub.url}#{KEY}" if stub else plans.control_room_url(plans.read(state)[0])
    if not url:
        raise ValueError(f"{state} has no control room: start it by `recsys demo --state {state}`")
    try:
        for name, (width, height) in SIZES.items():
            take(url, folder / f"control-{name}.png", width, height, name == "phone", scheme)
    finally:
        if stub:
            stub.stop()


def take(url: str, path: Path, width: int, height: int, phone: bool, scheme: str) -> None:
    # A window is 143 pixels higher than what it shows; an emulated phone isn't.
    with Browser(width, height + 143 * (not phone), phone=phone) as browser:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.devtools("Emulation.setEmulatedMedia", {"features": features})
        browser.open(url)
        browser.wait("return document.getElementById('room').dataset.number", 30)
        time.sleep(LOOKS_S)
        browser.screenshot(path)
        size, lines = path.stat().st_size, browser.console()
    if size > MOST_BYTES or lines:
        raise ValueError(f"{path} has {size} bytes, expected {MOST_BYTES} at most; {lines}")
    print(path, size)


if __name__ == "__main__":
    main(*sys.argv[1:2])
