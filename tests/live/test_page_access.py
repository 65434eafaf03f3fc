"""The pages of the examples for all: no finding of axe-core in light and dark, on a desktop and a phone and
with text of 200 %; nothing to scroll sideways, and a visible focus."""

from collections.abc import Iterator

import pytest

from tests.support.pages.axe import findings, is_wide, needs_axe, scheme
from tests.support.pages.example_stub import ExampleStub
from tests.support.pages.feed_page import READY
from tests.support.pages.feed_stub import FeedStub
from tests.support.pages.webdriver import Browser, chromium_is_there

pytestmark = [
    pytest.mark.services,
    pytest.mark.pairs(9),
    pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed"),
    needs_axe(),
]
LISTED = "return document.querySelectorAll('ol [data-item]').length === arguments[0]"
LARGE = "document.documentElement.style.fontSize = '200%'"
OUTLINE = "return getComputedStyle(document.activeElement).outlineStyle"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(params=SIZES)
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with Browser(*SIZES[request.param], phone=request.param == "phone") as browser:
        yield browser


def check(browser: Browser, state: str) -> None:
    assert findings(browser) == [], state
    assert not is_wide(browser), state


@pytest.mark.parametrize("name", ["news", "shop"])
def test_an_examples_page_is_for_all(browser: Browser, name: str) -> None:
    stub = ExampleStub(name)
    try:
        for colours in ("light", "dark"):
            scheme(browser, colours)
            browser.open(stub.url)
            browser.wait(LISTED.replace("arguments[0]", "12"))
            check(browser, f"list, {colours}")
            for _ in range(3):
                browser.press("Tab")
                assert browser.run(OUTLINE) == "solid"
            browser.press("Enter")
            browser.wait("return document.body.dataset.reported")
            browser.wait(LISTED.replace("arguments[0]", "8" if name == "shop" else "12"))
            check(browser, f"item, {colours}")
            browser.run(LARGE)
            check(browser, f"item at 200 %, {colours}")
        kinds = [event["kind"] for event in stub.events if event["kind"] != "seen"]
        assert len(kinds) == 2 and browser.console() == []
    finally:
        stub.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_feed_is_for_all(browser: Browser, colours: str) -> None:
    stub = FeedStub()
    try:
        scheme(browser, colours)
        browser.open(stub.url)
        browser.wait(READY)
        browser.wait("return !document.querySelector('.card.here .spinner')")
        check(browser, "feed")
        browser.press("h")
        check(browser, "with the undo")
        if browser.run("return document.body.dataset.drawer") == "closed":
            browser.press("d")
        check(browser, "with the drawer")
        browser.press("?")
        check(browser, "with the help")
        browser.press("Escape")
        browser.run(LARGE)
        check(browser, "at 200 %")
    finally:
        stub.close()
