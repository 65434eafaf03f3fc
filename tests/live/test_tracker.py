"""The tracker of clients/typescript in a real browser: which views it measures, and that it loses none."""

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recsys.free_ports import free_ports
from tests.support.pages.tracker_site import TrackerSite
from tests.support.pages.webdriver import Browser, chromium_is_there, wait
from tests.support.paths import ROOT
from tests.support.simulation.disk_replica import DiskReplica

pytestmark = [
    pytest.mark.services,
    pytest.mark.pairs(13),
    pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm isn't installed"),
]
READY = "return document.body.dataset.ready"
HIDE_PAGE = """
Object.defineProperty(document, 'visibilityState', { value: arguments[0], configurable: true });
document.dispatchEvent(new Event('visibilitychange'));
"""
ONE_CELL = """
feed.style.display = 'block';
const cell = document.createElement('div');
cell.style.cssText = arguments[0];
feed.replaceChildren(cell);
tracker.observe(cell, { list: { request_id: 'r1', token: 't1' }, itemId: arguments[1] });
"""
SENT = "return tracker.flush().then(() => tracker.stats.waiting === 0)"
STORED = "return Object.keys(localStorage).filter((key) => key.includes(':event:')).length"
PAGES, LISTS = 20, 5  # 100 items each


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    subprocess.run(["make", "-s", "client"], cwd=ROOT, check=True, timeout=240)


@pytest.fixture(scope="module")
def browser(built: None) -> Iterator[Browser]:
    with Browser(1000, 800) as browser:
        yield browser


@pytest.fixture
def site(browser: Browser) -> Iterator[TrackerSite]:
    site = TrackerSite()
    yield site
    browser.replace_window()
    site.close()


def open_page(browser: Browser, site: TrackerSite, page: str = "tracker", **query: str) -> None:
    browser.open(f"{site.origin}/{page}.html?{urlencode({'user': 'u1', **query})}")
    browser.wait(READY)


def show_cell(browser: Browser, style: str, item_id: str = "v1") -> None:
    browser.run(ONE_CELL, style, item_id)
    browser.run("return shownFor(300)")


def received(browser: Browser, site: TrackerSite) -> list[dict[str, Any]]:
    """Events that came, once the tracker has nothing to send."""
    browser.run("return tracker.flush()")
    return site.events


def test_a_view_is_sent_when_the_item_leaves_with_the_time_it_was_visible(
    browser: Browser, site: TrackerSite
) -> None:
    open_page(browser, site, token="key")
    began_s = time.monotonic()
    show_cell(browser, "height: 200px")
    assert received(browser, site) == [], "it is still there"
    browser.run("feed.replaceChildren(); return shownFor(0)")
    longest_ms = (time.monotonic() - began_s) * 1000
    (view,) = received(browser, site)
    assert 300 <= view.pop("watch_ms") < longest_ms and len(view.pop("event_id")) == 36
    assert abs(view.pop("time_ms") - time.time() * 1000) < 5_000
    assert view == {
        "type": "engagement", "kind": "view", "user_id": "u1", "item_id": "v1", "request_id": "r1",
        "token": "t1", "surface": "feed",
    }  # fmt: skip
    assert site.calls[0]["authorization"] == "Bearer key"


@pytest.mark.parametrize(
    ("style", "views"),
    [
        ("height: 200px; margin-top: calc(100vh - 80px)", 0),  # 40 % of the item
        ("height: 200px; margin-top: calc(100vh - 120px)", 1),
        ("height: 9000px", 1),  # 9 % of the item, all of the screen
        ("height: 9000px; margin-top: 70vh", 0),
    ],
)
def test_half_of_the_item_or_of_the_screen_must_be_visible(
    browser: Browser, site: TrackerSite, style: str, views: int
) -> None:
    open_page(browser, site)
    show_cell(browser, style)
    browser.run("feed.replaceChildren(); return shownFor(0)")
    assert len(received(browser, site)) == views


def test_a_short_glance_is_no_view(browser: Browser, site: TrackerSite) -> None:
    open_page(browser, site, options='{"minVisibleMs": 60000}')
    show_cell(browser, "height: 200px")
    browser.run("feed.replaceChildren(); return shownFor(0)")
    assert received(browser, site) == []


def test_a_hidden_page_ends_the_view_at_once_and_begins_another_when_it_is_back(
    browser: Browser, site: TrackerSite
) -> None:
    open_page(browser, site, options='{"lingerMs": 60000}')
    show_cell(browser, "height: 200px")
    browser.run(HIDE_PAGE, "hidden")
    wait(lambda: site.events, "the view came")
    browser.run("return shownFor(1000)")
    began_s = time.monotonic()
    browser.run(HIDE_PAGE, "visible")
    browser.run("return shownFor(100)")
    browser.run("tracker.unobserve(feed.firstChild)")
    longest_ms = (time.monotonic() - began_s) * 1000
    first, second = received(browser, site)
    assert first["watch_ms"] >= 300 and 100 <= second["watch_ms"] < longest_ms


def test_a_list_is_reported_once_it_is_visible_in_a_page_that_is_too(
    browser: Browser, site: TrackerSite
) -> None:
    open_page(browser, site, options='{"reports": "lists"}')
    browser.run(HIDE_PAGE, "hidden")
    show_cell(browser, "height: 200px")
    assert received(browser, site) == []
    browser.run(HIDE_PAGE, "visible")
    (seen,) = received(browser, site)
    assert (seen["kind"], seen["request_id"], seen["token"]) == ("seen", "r1", "t1")
    assert seen["item_id"] == "v1" and "watch_ms" not in seen
    show_cell(browser, "height: 200px", "v2")  # of the same list
    browser.run("feed.replaceChildren(); return shownFor(0)")
    assert received(browser, site) == [seen]


def test_a_list_whose_item_leaves_a_hidden_page_is_not_reported(browser: Browser, site: TrackerSite) -> None:
    open_page(browser, site, options='{"reports": "lists"}')
    browser.run(HIDE_PAGE, "hidden")
    show_cell(browser, "height: 200px")
    browser.run("tracker.unobserve(feed.firstChild)")
    browser.run(HIDE_PAGE, "visible")
    browser.run("return shownFor(100)")
    assert received(browser, site) == []


def test_a_close_sends_the_view_of_what_is_visible_and_the_likes_that_wait(
    browser: Browser, site: TrackerSite
) -> None:
    open_page(browser, site, options='{"lingerMs": 60000}', token="key")
    show_cell(browser, "height: 200px")
    browser.run("tracker.track('like', { list: { request_id: 'r1' }, itemId: 'v1' })")
    browser.replace_window()
    wait(lambda: len(site.events) == 2, "the browser sent them after the page was closed")
    assert {event["kind"] for event in site.events} == {"view", "like"}
    assert all(call["authorization"] == "Bearer key" for call in site.calls)


def test_react_measures_what_is_mounted_under_the_item_that_it_shows(
    browser: Browser, site: TrackerSite
) -> None:
    browser.open("about:blank")
    open_page(browser, site, "react")
    browser.wait("return window.tracker && document.querySelectorAll('#feed div').length === 2")
    browser.run("for (const cell of feed.children) cell.style.height = '100px'")
    time.sleep(0.3)
    browser.run("setItems(['v1', 'v3'])")  # the second element shows another item now
    wait(lambda: len(site.events) == 1, "the view of the item that was replaced")
    time.sleep(0.2)
    browser.run("root.unmount()")
    wait(lambda: len(site.events) == 3, "the views of the others")
    time.sleep(0.3)
    assert Counter(event["item_id"] for event in site.events) == {"v1": 1, "v2": 1, "v3": 1}
    assert {event["request_id"] for event in site.events} == {"r1"}


class TrackedVisits:
    """A visitor of a site beside a real API: 100 items a screen, with what happens on the way."""

    def __init__(self, browser: Browser, site: TrackerSite, folder: Path) -> None:
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        port = next(free_ports())
        self.browser, self.site = browser, site
        self.replica = DiskReplica(folder, port, site.origin, items=300)
        key = self.replica.add_key(user_keys=[pem])
        claims = {"sub": "u1", "exp": int(time.time()) + 3_600}
        self.token = jwt.encode(claims, private, "EdDSA", headers={"kid": key.split("_")[1]})
        self.shown: list[tuple[str, str]] = []

    def open(self, lists: int) -> None:
        open_page(self.browser, self.site, api=self.replica.url, token=self.token)
        self.browser.run("return fetchLists(arguments[0])", lists)

    def show(self, *lists: int) -> None:
        for each in lists:
            items = self.browser.run("return show(arguments[0])", each)
            self.shown += [(request_id, item_id) for request_id, item_id in items]

    def go_offline(self, offline: bool = True) -> None:
        rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.browser.devtools("Network.enable", {})
        self.browser.devtools("Network.emulateNetworkConditions", rates | {"offline": offline})

    def leave(self) -> None:
        self.browser.open("about:blank")

    # --- visits of one page each ---

    def close_tab(self) -> None:
        self.show(0, 1, 2, 3, 4)
        self.browser.replace_window()

    def navigate_away(self) -> None:
        self.show(0, 1, 2, 3, 4)
        self.leave()

    def lose_the_network(self) -> None:
        self.show(0, 1)
        self.go_offline()
        self.show(2, 3)
        self.go_offline(False)
        self.show(4)
        self.leave()

    def close_offline(self) -> None:
        self.show(0, 1, 2)
        self.go_offline()
        self.show(3, 4)
        self.browser.replace_window()

    def lose_the_server(self) -> None:
        """It commits events, and ends before the page hears of it: they come again to a server that has
        forgotten their ids."""
        self.browser.wait(SENT)  # else the repeats of an older batch are all that comes
        ends = self.replica.ends()
        self.browser.run("window.losesAnswers = true")
        self.show(0, 1)
        wait(lambda: self.replica.engagements(ends), "events are committed")
        self.replica.kill()
        self.browser.run("window.losesAnswers = false")
        self.show(2, 3)
        self.replica.start()
        self.show(4)
        self.leave()
        self.replica.await_ready()

    def close_without_the_server(self) -> None:
        self.show(0)
        self.browser.run("tracker.flush()")
        self.replica.kill()
        self.show(1, 2, 3, 4)
        self.browser.replace_window()
        self.replica.start()
        self.replica.await_ready()


@pytest.mark.slow
def test_no_view_of_10_000_is_lost(browser: Browser, site: TrackerSite, tmp_path: Path) -> None:
    visits = TrackedVisits(browser, site, tmp_path / "state")
    replica = visits.replica
    replica.start()
    try:
        replica.await_ready()
        kinds: list[Callable[[], None]] = [visits.close_tab, visits.navigate_away]
        kinds += [visits.lose_the_network, visits.close_offline]
        kinds += [visits.lose_the_server, visits.close_without_the_server]
        began_s = time.monotonic()
        for page in range(PAGES):
            visits.open(LISTS)
            kinds[page % len(kinds)]()
        # What a page stores while it closes may reach the storage after the next page has read it.
        for _ in range(3):
            visits.open(0)
            browser.wait(SENT)
            if not browser.run(STORED):
                break
        took_s = time.monotonic() - began_s
        stats = browser.run("return tracker.stats")
    finally:
        replica.kill()
    events = replica.engagements()
    counted = Counter((event.request_id, event.item_id) for event in events)
    distinct = {event.event_id for event in events}
    print(json.dumps({"views": len(visits.shown), "s": round(took_s, 1), "log": len(events), **stats}))
    assert len(visits.shown) == len(set(visits.shown)) == 100 * PAGES * LISTS == 10_000
    lost = set(visits.shown) - set(counted)
    screens = {each // 100 for each, view in enumerate(visits.shown) if view in lost}
    assert not lost, f"{len(lost)} views are lost, of the screens {sorted(screens)}"
    assert set(counted) - set(visits.shown) == set(), "views are invented"
    assert len(distinct) == replica.folded_events("u1") == 10_000 < len(events)
    assert all(event.attributed and event.kind == "view" for event in events)
    assert stats["dropped"] == stats["rejected"] == 0
