"""The feed page in a real browser, against a stub of the API: what a person does is what the server hears."""

import base64
import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.support.pages.feed_page import CURRENT, READY, Page
from tests.support.pages.feed_stub import WEB, FeedStub
from tests.support.pages.webdriver import Browser, chromium_is_there, wait

pytestmark = pytest.mark.pairs(20)

in_a_browser = [
    pytest.mark.services,
    pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed"),
]
ITEMS = "return [...document.querySelectorAll('.card')].map(card => card.dataset.item)"
FOCUSED = """
const { activeElement: on } = document;
return on.closest('.card')?.dataset.item ?? on.dataset.kind ?? on.dataset.act ?? on.className"""
# The page offers to undo for five seconds, in which a busy machine may not get through the controls: here for
# as long as the test says.
HOLD_OFFER = """
const { setTimeout, clearTimeout } = window;
window.offers = new Map();
window.setTimeout = (act, ms, ...rest) => {
    if (ms !== 5_000) return setTimeout(act, ms, ...rest);
    const id = -1 - Math.random();
    offers.set(id, act);
    return id; };
window.clearTimeout = id => offers.delete(id) || clearTimeout(id);"""
END_OFFER = "for (const act of offers.values()) act(); offers.clear();"
# The time watched stands still: a slow machine would make a long view of it.
STOP_WATCHING = "const now_ms = performance.now(); performance.now = () => now_ms;"
HIDE_PAGE = """
Object.defineProperty(document, 'visibilityState', { value: arguments[0], configurable: true });
document.dispatchEvent(new Event('visibilitychange'));
"""


@pytest.fixture(scope="module")
def desktop() -> Iterator[Browser]:
    with Browser(1440, 900) as browser:
        yield browser


@pytest.fixture(scope="module")
def phone() -> Iterator[Browser]:
    with Browser(390, 844, phone=True) as browser:
        yield browser


@pytest.fixture
def stub() -> Iterator[FeedStub]:
    stub = FeedStub()
    yield stub
    stub.close()


@pytest.fixture
def page(desktop: Browser, stub: FeedStub) -> Iterator[Page]:
    """A page whose console must be clean at the end: a refused request is the browser's own line."""
    page = Page(desktop, stub)
    yield page
    unclean = [line for line in desktop.console() if not re.search(r"status of (503|409)", line)]
    desktop.open("about:blank")
    assert unclean == []


def test_the_page_needs_no_other_host() -> None:
    files = {path.name for path in WEB.iterdir()}
    for name in files:
        text = (WEB / name).read_text()
        outside = set(re.findall(r"https?://[^\s'\"]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, f"{name} names {outside}"
        for imported in re.findall(r'from "\./([^"]+)"|/static/([^"]+)"', text):
            assert set(imported) & files, f"{name} needs {imported}"


class TestDesktop:
    pytestmark = in_a_browser

    def test_a_view_is_sent_when_the_item_leaves_with_the_time_it_was_on_screen(self, page: Page) -> None:
        began_ms = time.time() * 1000
        first = page.start()
        time.sleep(1.0)
        assert not page.stub.events, "nothing has left the screen yet"
        left_ms = time.time() * 1000
        page.move()
        view = page.told("view", first)
        ended_ms = time.time() * 1000
        assert 900 <= view["watch_ms"] <= ended_ms - began_ms
        assert view["request_id"] == "r1" and view["type"] == "engagement"
        assert left_ms - 50 <= view["time_ms"] <= ended_ms + 50
        assert [e["item_id"] for e in page.stub.of_kind("view")] == [first], "the others weren't shown"

    def test_the_arrows_and_the_letters_move_both_ways(self, page: Page) -> None:
        first = page.start()
        second = page.move("ArrowDown")
        assert page.move("ArrowUp") == first
        assert page.move("j") == second
        assert page.move("k") == first
        time.sleep(0.3)
        views = [event["item_id"] for event in page.stub.of_kind("view")]
        assert len(views) == len(set(views)), "an item that comes back is not shown a second time"

    def test_a_pause_and_a_hidden_page_stop_the_clock(self, page: Page) -> None:
        began_s = time.monotonic()
        first = page.start()
        time.sleep(0.3)
        page.browser.press(" ")
        page.browser.wait("return document.querySelector('.card.here.paused')")
        paused_s = time.monotonic()
        time.sleep(1.5)
        paused_ms = (time.monotonic() - paused_s) * 1000
        page.browser.press(" ")
        page.browser.run(HIDE_PAGE, "hidden")
        elapsed_ms = (time.monotonic() - began_s) * 1000
        view = page.told("view", first)
        assert 200 <= view["watch_ms"] <= elapsed_ms - paused_ms
        time.sleep(0.5)
        page.browser.run(HIDE_PAGE, "visible")
        page.move()
        time.sleep(0.3)
        assert len([e for e in page.stub.of_kind("view") if e["item_id"] == first]) == 1
        assert not page.stub.of_kind("skip"), "the page went away, nobody skipped"

    def test_a_like_is_said_once_and_the_unseen_tail_is_asked_for_again(self, page: Page) -> None:
        first = page.start()
        before = page.browser.run(ITEMS)
        asked = len(page.stub.requests)
        page.browser.press("l")
        page.browser.press("l")
        page.told("like", first)
        wait(lambda: len(page.stub.requests) > asked, "the tail was asked for again")
        assert page.stub.requests[-1]["exclude_ids"] == [first]
        wait(lambda: page.browser.run(ITEMS) != before, "the tail changed")
        assert page.current == first
        assert len(page.stub.of_kind("like")) == 1
        assert (
            page.browser.run("return document.querySelector('.rail [data-kind=like]').ariaPressed") == "true"
        )

    def test_the_next_page_is_there_before_it_is_needed(self, page: Page) -> None:
        seen = [page.start()]
        for _ in range(12):
            seen.append(page.move())
        assert len(set(seen)) == 13
        more = page.stub.requests[1]
        assert set(seen[:4]) <= set(more["exclude_ids"]) and 5 <= more["n"] <= 8
        assert (
            page.browser.run("return document.querySelector('.card.here').nextElementSibling.className")
            == "card"
        )

    def test_not_interested_hides_and_moves_on_and_the_list_is_asked_for_again(self, page: Page) -> None:
        first = page.start()
        page.browser.run(HOLD_OFFER)
        asked, at_ms = len(page.stub.requests), time.time() * 1000
        page.browser.press("h")
        wait(lambda: page.browser.run(CURRENT) not in (first, None), "moved on")
        moved_ms = time.time() * 1000
        assert not page.stub.of_kind("hide"), "it can still be undone"
        page.browser.run(END_OFFER)
        assert at_ms - 50 <= page.told("hide", first)["time_ms"] <= moved_ms + 50
        wait(lambda: len(page.stub.requests) > asked, "the tail was asked for again")
        page.told("view", first)
        assert not page.stub.of_kind("skip"), "hiding says more than skipping"

    def test_not_interested_can_be_undone_and_then_counts_for_nothing(self, page: Page) -> None:
        first = page.start()
        page.browser.run(HOLD_OFFER)
        page.browser.press("h")
        wait(lambda: page.browser.run(CURRENT) not in (first, None), "moved on")
        page.browser.run("document.querySelector('.undo').click()")
        wait(lambda: page.browser.run(CURRENT) == first, "it is back")
        assert not page.browser.run("return document.querySelector('.card.hidden')")
        assert page.browser.run("return document.querySelector('.undo').hidden")
        page.browser.run(END_OFFER)
        time.sleep(0.5)
        assert not page.stub.of_kind("hide") and not page.stub.of_kind("skip")

    def test_a_hidden_item_is_said_before_the_page_goes(self, page: Page) -> None:
        first = page.start()
        page.browser.press("h")
        page.browser.run(HIDE_PAGE, "hidden")
        page.told("hide", first)

    def test_tab_goes_through_the_controls_of_the_card_alone_and_says_nothing(self, page: Page) -> None:
        first = page.start()
        page.browser.run(HOLD_OFFER)
        page.browser.run(STOP_WATCHING)
        page.browser.press("h")
        second = wait(lambda: (now := page.browser.run(CURRENT)) not in (first, None) and now, "moved on")
        focused = []
        for _ in range(14):
            page.browser.press("Tab")
            focused.append(page.browser.run(FOCUSED))
        assert {"like", "hide", "undo", "follow", "share", "next", second} <= set(focused)
        assert page.current == second and not {first} & set(focused)
        for _ in range(60):
            page.browser.press("Tab")
        time.sleep(0.5)
        assert page.current == second
        assert {event["kind"] for event in page.stub.events} <= {"view", "hide"}
        assert {event["item_id"] for event in page.stub.events} == {first}

    def test_the_keyboard_alone_likes_hides_and_undoes(self, page: Page) -> None:
        first = page.start()
        page.browser.run(HOLD_OFFER)

        def reach(act: str) -> None:
            for _ in range(20):
                if page.browser.run(FOCUSED) == act:
                    return
                page.browser.press("Tab")
            raise AssertionError(f"Tab doesn't reach {act}")

        reach("like")
        page.browser.press("Enter")
        page.told("like", first)
        reach("hide")
        page.browser.press("Enter")
        wait(lambda: page.browser.run(CURRENT) not in (first, None), "moved on")
        reach("undo")
        page.browser.press("Enter")
        wait(lambda: page.browser.run(CURRENT) == first, "it is back")
        page.browser.run("document.querySelector('.card.here .caption').focus()")
        second = page.move()
        assert page.browser.run(FOCUSED) == "stage", "the focus leaves with the card"
        page.browser.press("Tab")
        assert page.browser.run(FOCUSED) == second
        assert not page.stub.of_kind("hide")

    def test_own_pictures_are_shown_from_safe_addresses_alone(self, page: Page) -> None:
        sources = "return [...document.querySelectorAll('.media')].map(m => m.getAttribute('src'))"
        page.stub.fields = {"image": "/picture.png", "title": "Own"}
        page.start()
        assert not page.browser.run("return document.querySelectorAll('.card.here .art').length")
        address = f"{page.stub.url}/picture.png"
        assert set(page.browser.run(sources)) == {address}
        page.stub.fields = {"image": "http://elsewhere.example/x.png"}
        page.start()
        assert page.browser.run(sources) == []
        page.stub.fields = {"image": "javascript:alert(1)"}
        page.start()
        assert page.browser.run(sources) == []

    def test_a_video_plays_with_its_card_and_a_lost_picture_is_drawn(self, page: Page) -> None:
        page.stub.fields = {"video": "/static/lost.webm", "author": "sour bread", "topic": None}
        page.browser.open(page.stub.url)
        page.browser.wait(READY)
        page.browser.wait("return !document.querySelector('.card.here .media')")
        assert page.browser.run("return document.querySelector('.card.here .emblem').textContent") == "SB"
        assert page.browser.run("return document.querySelector('.card.here .art') !== null")
        page.browser.console()  # that the file is missing

    @pytest.mark.parametrize("tag", ["_private", "draft_", "_", "  "])
    def test_an_item_with_any_tag_is_drawn(self, page: Page, tag: str) -> None:
        page.stub.fields = {"tags": [tag], "topic": None}
        assert page.start()

    def test_what_is_no_token_is_ignored(self, page: Page) -> None:
        for given in ("x", "a.b.c", "e30.e30.c2ln"):  # the last names no user
            page.browser.open("about:blank")
            page.browser.open(f"{page.stub.url}/#token={given}")
            page.browser.wait(READY)
            assert page.browser.run("return sessionStorage.length") == 0

    def test_an_author_who_is_blocked_is_shown_no_more(self, page: Page) -> None:
        first = page.start()
        asked = len(page.stub.requests)
        page.browser.press("b")
        wait(lambda: page.stub.preferences, "the wish was sent")
        author = f"a{int(first[1:]) % 90}"
        viewer = page.stub.requests[0]["user_id"]
        assert page.stub.preferences == [
            {"user_id": viewer, "field": "author", "value": author, "wish": "block"}
        ]
        wait(lambda: page.browser.run(CURRENT) not in (first, None), "moved on")
        assert len(page.stub.requests) > asked, "the unseen tail was asked for again"
        later = page.browser.run(ITEMS)
        assert not [item for item in later[later.index(first) + 1 :] if f"a{int(item[1:]) % 90}" == author]

    def test_a_user_token_goes_with_each_call_and_into_no_address(self, page: Page) -> None:
        claims = base64.urlsafe_b64encode(json.dumps({"sub": "ü/42"}).encode()).rstrip(b"=")
        token = f"e30.{claims.decode()}.c2ln"
        page.browser.open(f"{page.stub.url}/#token={token}")
        page.browser.wait(READY)
        assert page.browser.run("return location.href") == f"{page.stub.url}/"
        page.move()
        page.told("view")
        page.browser.run(HIDE_PAGE, "hidden")
        page.browser.run("location.reload()")
        page.browser.wait(READY)
        page.move()
        assert {request["user_id"] for request in page.stub.requests} == {"ü/42"}
        assert {event["user_id"] for event in page.stub.events} == {"ü/42"}
        assert page.stub.callers == {f"Bearer {token}"}
        assert not [path for path in page.stub.paths if "token=" in path or "e30" in path]
        assert page.browser.run("return document.querySelector('.fresh').hidden")
        assert "e30" not in str(page.browser.run("return Object.values(localStorage)"))

    def test_a_wrong_clock_is_set_right_by_the_servers(self, page: Page) -> None:
        wrong = "const now = Date.now; Date.now = () => now() + 86_400_000;"
        before = page.browser.devtools("Page.addScriptToEvaluateOnNewDocument", {"source": wrong})
        try:
            first = page.start()
        finally:
            page.browser.devtools("Page.removeScriptToEvaluateOnNewDocument", before)
        page.browser.press("l")
        ahead_ms = page.told("like", first)["time_ms"] - time.time() * 1000
        assert abs(ahead_ms) < 3_000, "the server refuses events from the future"

    def test_events_of_another_tab_or_user_stay_stored_for_them(self, page: Page) -> None:
        claims = base64.urlsafe_b64encode(json.dumps({"sub": "u42"}).encode()).rstrip(b"=")
        page.start()
        kept = [{"event_id": "e1", "user_id": "u41", "kind": "like", "item_id": "v1"}]
        page.browser.run("localStorage['feed.outbox'] = arguments[0]", json.dumps(kept))
        page.browser.open("about:blank")
        page.browser.open(f"{page.stub.url}/#token=e30.{claims.decode()}.c2ln")
        page.browser.wait(READY)
        page.browser.press("l")
        page.told("like")
        stored = "return JSON.parse(localStorage['feed.outbox']).map(event => event.user_id)"
        wait(lambda: "u42" not in page.browser.run(stored), "the own event is forgotten")
        assert "u41" in page.browser.run(stored)
        assert {event["user_id"] for event in page.stub.of_kind("like")} == {"u42"}

    def test_sharing_following_and_looking_closer_name_the_item(self, page: Page) -> None:
        first = page.start()
        page.browser.press("s")
        page.browser.press("f")
        page.browser.run("document.querySelector('.card.here .caption').click()")
        for kind in ("share", "follow", "click"):
            assert page.told(kind, first)["request_id"] == "r1"

    def test_a_feed_that_ended_goes_on_once_there_are_new_items(self, page: Page) -> None:
        page.stub.items, page.stub.duration_ms = 1, 900
        page.browser.open(page.stub.url)
        first = page.current
        page.told("long_view", first)
        asked = len(page.stub.requests)
        wait(lambda: len(page.stub.requests) > asked, "the tail was asked for, and there is none")
        page.stub.items = 4
        wait(lambda: len(page.browser.run(ITEMS)) > 1, "new items")

    def test_a_long_title_leaves_the_caption_free(self, page: Page) -> None:
        page.stub.title = "Donaudampfschifffahrtsgesellschaft" * 4 + " and so on" * 40
        page.start()
        inside = """
        const box = (name) => document.querySelector(`.card.here ${name}`).getBoundingClientRect();
        const [title, caption, card] = ['.title', '.caption', '.cover'].map(box);
        return title.bottom <= caption.top + 1 && title.right <= card.right;"""
        page.browser.wait(inside, 5)

    def test_a_long_view_is_said_while_it_goes_on(self, page: Page) -> None:
        page.stub.duration_ms = 900
        first = page.start()
        assert page.told("long_view", first)["watch_ms"] >= 540
        assert page.current == first and not page.stub.of_kind("view")

    def test_lost_answers_and_a_server_that_is_away_lose_no_event(self, page: Page) -> None:
        first = page.start()
        page.stub.lose_answers = 1
        page.browser.press("l")
        wait(lambda: len(page.stub.events) >= 2, "the like was sent again")
        assert len(page.stub.of_kind("like")) == 1, "under the same id"
        page.stub.refusing = True
        page.browser.press("s")
        second = page.move()
        page.browser.wait("return document.querySelector('.banner').checkVisibility()")
        assert page.current == second, "the place is kept"
        page.stub.refusing = False
        page.told("share", first)
        page.told("view", first)
        page.browser.wait("return !document.querySelector('.banner').checkVisibility()")
        ids = [event["event_id"] for event in page.stub.taken.values()]
        assert all(re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", one) for one in ids)

    def test_a_page_that_is_left_says_what_was_watched(self, page: Page) -> None:
        first = page.start()
        time.sleep(0.5)
        page.browser.open("about:blank")
        assert page.told("view", first)["watch_ms"] >= 400

    def test_a_start_without_a_server_waits_and_comes_good(self, page: Page) -> None:
        page.stub.refusing = True
        page.browser.open(page.stub.url)
        page.browser.wait("return document.querySelector('.end').dataset.state === 'failed'")
        page.stub.refusing = False
        page.browser.run("document.querySelector('[data-act=retry]').click()")
        page.browser.wait(READY)

    def test_the_drawer_says_what_was_learned_and_why(self, page: Page) -> None:
        page.start()
        text = "return document.querySelector('[data-part={}]').textContent"
        page.browser.press("l")
        page.browser.wait("return document.querySelectorAll('.bars li').length > 0")
        reached, page.stub.learns = "return document.querySelector('.way').dataset.reached", False
        page.move()
        page.browser.wait(f"{reached} === 'session'")
        time.sleep(1.2)
        assert page.browser.run(reached) == "session", "other steps have learned other views"
        page.stub.learns = True
        page.browser.wait(f"{reached} === 'model'")
        assert re.fullmatch(r"48,\d{3}", page.browser.run(text.format("step")))
        assert page.browser.run(text.format("line")) == "main"
        page.move()
        why = page.browser.run(text.format("why"))
        assert "propensity" in why and "Long view" in why and "Why it is here" in why
        page.browser.press("d")
        page.browser.wait("return document.querySelector('.drawer').inert")
        page.browser.press("d")

    def test_a_new_viewer_starts_cold(self, page: Page) -> None:
        first = page.start()
        old = page.stub.requests[-1]["user_id"]
        page.browser.press("l")
        page.told("like", first)
        page.browser.run("document.querySelector('[data-act=new-viewer]').click()")
        wait(lambda: page.stub.requests[-1]["user_id"] != old, "somebody else asks")
        assert page.told("view", first)["user_id"] == old
        page.browser.wait(READY)
        page.browser.wait("return document.querySelectorAll('.bars li').length === 0")
        asked = [request for request in page.stub.requests if request["user_id"] != old]
        assert [request["exclude_ids"] for request in asked] == [[]], "one page, of everything"

    def test_a_title_is_text_and_never_markup(self, page: Page) -> None:
        page.stub.title = "<img src=x onerror=alert(1)>"
        page.start()
        assert page.browser.run("return document.querySelectorAll('.card img').length") == 0
        assert "<img" in page.browser.run("return document.querySelector('.title').textContent")

    def test_a_degraded_answer_says_so_quietly(self, page: Page) -> None:
        page.stub.degraded = ["session"]
        page.start()
        assert (
            page.browser.run("return document.querySelector('.degraded').textContent")
            == "without your history"
        )


class TestPhone:
    pytestmark = in_a_browser

    def test_a_finger_swipes_and_two_taps_like(self, phone: Browser, stub: FeedStub) -> None:
        page = Page(phone, stub)
        first = page.start()
        time.sleep(0.4)

        def tapped_twice() -> bool:
            phone.tap(190, 420, times=2)
            return bool(stub.of_kind("like"))

        wait(tapped_twice, "two quick taps like")
        assert page.told("like", first)["request_id"] == "r1"
        phone.swipe(190, 700, 150)
        wait(lambda: phone.run(CURRENT) not in (first, None), "the swipe moved on")
        page.told("view", first)
        assert page.stub.requests[0]["context"] == {"device": "phone"}
        assert phone.console() == []

    def test_after_a_like_a_line_says_what_came_of_it(self, phone: Browser, stub: FeedStub) -> None:
        page = Page(phone, stub)
        page.start()
        for _ in range(8):  # not each answer of the stub has more of a topic that was liked once
            values = phone.run(
                "return [...document.querySelectorAll('.card.here .chip')].map(c => c.textContent)"
            )
            phone.press("l")
            time.sleep(0.8)
            line = phone.run("return document.querySelector('.toast span').textContent")
            if line.startswith("More"):
                break
            page.move()
        more = re.fullmatch(r"More (.+): \d of the next 6", line)
        assert more and more[1] in values
        assert (
            phone.run("return [...document.querySelectorAll('h1')].filter(h => h.checkVisibility()).length")
            == 1
        )

    def test_text_of_twice_the_size_fits(self, phone: Browser, stub: FeedStub) -> None:
        page = Page(phone, stub)
        page.start()
        phone.run("document.documentElement.style.fontSize = '200%'")
        phone.press("h")
        phone.wait("return !document.querySelector('.undo').hidden")
        boxes = """
        return ['.toast', '.undo', '.card.here .caption', '.rail', '.glance'].map(selector => {
            const box = document.querySelector(selector).getBoundingClientRect();
            return [box.left, box.right]; })"""
        time.sleep(0.6)
        assert all(left >= -1 and right <= 391 for left, right in phone.run(boxes))
        size = "return getComputedStyle(document.querySelector('.card.here .chip')).fontSize"
        assert phone.run(size) == "26px"

    def test_the_feed_stays_whole_above_the_open_drawer(self, phone: Browser, stub: FeedStub) -> None:
        page = Page(phone, stub)
        first = page.start()
        phone.run("document.querySelector('.glance').click()")
        boxes = """const box = (s) => document.querySelector(s).getBoundingClientRect();
        return [box('.screen').bottom, box('.drawer').top, box('.card.here').top,
            document.body.scrollWidth];"""
        wait(lambda: phone.run(boxes)[1] < 400, "the sheet came up")
        bottom, top, card, width = phone.run(boxes)
        assert bottom <= top + 1 and abs(card) < 1 and width == 390
        assert page.current == first
        page.move()
        phone.run("document.querySelector('.shut').click()")
        phone.wait("return document.querySelector('.drawer').inert")
        assert phone.console() == []
