"""The control room of a live system, held to what Prometheus would scrape of it at the same time."""

import urllib.request

from runtime.parts.metrics import text
from runtime.supervision import launch_plan as plans
from serving.control_room.exposition import Samples, name_of, parse
from tests.support.pages.control_room_stub import NUMBERS, wrong_numbers
from tests.support.pages.webdriver import Browser, chromium_is_there
from tests.support.systems.live_system import LiveSystem

# What no two scrapes can agree on: how long ago, how long just now.
MOVES_BOTH_WAYS = ("_ms", "_s", "_lag", "_waiting", "_pending", "_ratio", "_bytes", "_pages")


def scrape(system: LiveSystem) -> Samples:
    """Of the parts and of the replica, as Prometheus asks for them."""
    with urllib.request.urlopen(f"{system.url}/metrics", timeout=30) as answer:
        return parse(text(system.state).decode()) | parse(answer.read().decode())


def check_control_page(system: LiveSystem) -> None:
    """Under load: every number on a frozen page is a sample of its picture, every sample lies between two
    scrapes around it, and the console is clean. Without a browser nothing is looked at."""
    if not chromium_is_there():
        return
    with Browser(1440, 900) as browser:
        before = scrape(system)
        browser.open(plans.control_room_url(system.config))
        browser.wait("return document.getElementById('room').dataset.number > 2", 30)
        browser.press("p")
        shown = browser.run(NUMBERS)
        picture = browser.run("return document.getElementById('room').picture")
        after = scrape(system)
        assert len(shown) > 60 and wrong_numbers(shown, picture) == []
        assert outside(picture["samples"], before, after) == []
        assert browser.console() == []


def outside(samples: dict[str, float], before: Samples, after: Samples) -> list[str]:
    """Samples that stand still between two scrapes and are others in the picture; counters beyond them."""
    found = []
    for series, value in samples.items():
        old, new = before.get(series), after.get(series)
        if old is None or new is None or value is None:
            continue
        counts = name_of(series).endswith(("_total", "_count", "_sum"))
        still = old == new and not name_of(series).endswith(MOVES_BOTH_WAYS)
        if (counts and not old <= value <= new) or (still and not counts and value != old):
            found.append(f"{series} is {value} in the picture, {old} before it and {new} after it")
    return found
