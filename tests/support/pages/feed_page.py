"""What a test does with the feed page: start it, press keys, wait for what the server hears."""

from typing import Any

from tests.support.pages.feed_stub import FeedStub
from tests.support.pages.webdriver import Browser, wait

CURRENT = "return document.querySelector('.card.here')?.dataset.item"
READY = "return document.querySelector('.card.here') && document.querySelectorAll('.card').length >= 6"


class Page:
    """A browser on the page and the stub behind it."""

    def __init__(self, browser: Browser, stub: FeedStub) -> None:
        self.browser, self.stub = browser, stub

    def start(self) -> str:
        """Opens the page as a new viewer; returns the first item."""
        self.browser.open(self.stub.url)
        self.browser.wait(READY)
        return self.current

    @property
    def current(self) -> str:
        return str(self.browser.wait(CURRENT))

    def move(self, key: str = "j") -> str:
        """Presses a key and waits until another item is on screen; returns that item."""
        before = self.current
        self.browser.press(key)
        wait(lambda: self.browser.run(CURRENT) not in (before, None), f"{key} moved on from {before}")
        return self.current

    def told(self, kind: str, item: str | None = None) -> dict[str, Any]:
        """Waits for an event of a kind (of an item) to reach the server."""

        def look() -> dict[str, Any] | None:
            fitting = [e for e in self.stub.of_kind(kind) if item in (None, e["item_id"])]
            return fitting[0] if fitting else None

        found = wait(look, f"{kind} of {item}")
        assert found is not None
        return found
