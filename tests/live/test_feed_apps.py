"""The feed page for five apps: its fields and kinds in both layouts, without a finding of axe-core."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.pages.axe import findings, is_wide, needs_axe, scheme
from tests.support.pages.feed_stub import SHORT_VIDEO, FeedStub
from tests.support.pages.webdriver import Browser, chromium_is_there, wait
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.services,
    pytest.mark.pairs(20),
    pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed"),
]
GROCER = """
app: corner_grocer
events:
  view: positive
  addtocart: {label: positive, weight: 3}
  transaction: {label: positive, weight: 5}
  not_again: negative
fields: {item: {aisle: category, brand: category, organic: category, sizes: list}}
shown: clicks
page: {title: label, names: {transaction: Buy}}
"""
COURSES = """
app: courses
events: {enrol: positive, seen_enough: negative, view: none}
fields: {item: {subject: category}}
"""
APPS: dict[str, tuple[str, dict[str, Any]]] = {
    "short_video": (SHORT_VIDEO, {}),
    "news": (
        (ROOT / "examples/news/app.yaml").read_text(),
        {"title": "Doubts about the tram", "category": "local"},
    ),
    "shop": (
        (ROOT / "examples/shop/app.yaml").read_text(),
        {"title": "Oak desk", "price": 80.5, "category": "desk"},
    ),
    "grocer": (
        GROCER,
        {"label": "Oats, 1 kg", "aisle": "breakfast", "brand": "Mill", "sizes": ["1 kg", "5 kg"]},
    ),
    "courses": (
        COURSES,
        {"name": "Statistics", "subject": "mathematics", "description": "From counting to inference"},
    ),
}
OPEN = "return document.querySelector('.card.here') || document.querySelector('.tiles .tile')"
LARGE = "document.documentElement.style.fontSize = '200%'"
OUTLINE = "return getComputedStyle(document.activeElement).outlineStyle"
BUTTONS = """
const scope = document.body.dataset.layout === 'list' ? '.buttons' : '.rail';
return [...document.querySelectorAll(`${scope} [data-act=engage]`)].map(button => button.dataset.name)"""


@pytest.fixture(scope="module", params=[(1280, 800), (390, 844)], ids=["desktop", "phone"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with Browser(*request.param) as browser:
        yield browser


@pytest.fixture
def stub(request: pytest.FixtureRequest) -> Iterator[FeedStub]:
    definition, fields = APPS[request.param]
    stub = FeedStub(definition)
    if fields:
        stub.fields = {"author": None, "topic": None, "tags": None, "duration_ms": None, **fields}
    yield stub
    stub.close()


def start(browser: Browser, stub: FeedStub) -> None:
    browser.open(stub.url)
    browser.wait(OPEN)
    if stub.app["layout"] == "list":
        browser.run("document.querySelector('.tiles .tile').click()")
        browser.wait("return document.querySelectorAll('[data-list=similar] .tile').length === 8")


def check(browser: Browser, state: str) -> None:
    browser.wait("return ['0', '1'].includes(getComputedStyle(document.querySelector('.toast')).opacity)")
    assert findings(browser) == [], state
    assert not is_wide(browser), state


@needs_axe()
@pytest.mark.parametrize("stub", APPS, indirect=True)
def test_the_page_of_any_app_has_no_finding_in_any_scheme_or_size(browser: Browser, stub: FeedStub) -> None:
    start(browser, stub)
    for name in ("light", "dark"):
        scheme(browser, name)
        check(browser, name)
    for _ in range(3):
        browser.press("Tab")
        assert browser.run(OUTLINE) == "solid"
    browser.run(LARGE)
    check(browser, "at 200 %")
    assert browser.console() == []


@needs_axe()
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("stub", ["short_video"], indirect=True)
def test_undo_drawer_and_help_have_no_finding(browser: Browser, stub: FeedStub, colours: str) -> None:
    scheme(browser, colours)
    start(browser, stub)
    browser.wait("return !document.querySelector('.card.here .spinner')")
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


@pytest.mark.parametrize("stub", APPS, indirect=True)
def test_buttons_are_the_declared_kinds_and_words_come_from_the_items(
    browser: Browser, stub: FeedStub
) -> None:
    start(browser, stub)
    assert browser.run(BUTTONS) == [kind["name"] for kind in stub.app["kinds"] if kind["button"]]
    text = browser.run("return document.body.innerText")
    assert not re.search(r"@|undefined|null|NaN|\[object", text)
    assert stub.app["app"].replace("_", " ") in text
    for value in stub.fields.values():
        for one in value if isinstance(value, list) else [value]:
            assert one is None or str(one) in text


@pytest.mark.parametrize("stub", ["grocer"], indirect=True)
def test_an_item_is_opened_bought_hidden_and_the_next_list_is_new(browser: Browser, stub: FeedStub) -> None:
    start(browser, stub)
    item = browser.run("return document.querySelector('[data-list=items] .tile').dataset.item")
    browser.run("document.querySelector('.buttons [data-kind=transaction]').click()")
    browser.press("n")  # the first free letter of "Not again"
    wait(lambda: len(stub.requests) == 2, "a new list was asked for")
    browser.open("about:blank")
    wait(lambda: stub.of_kind("not_again"), "what was hidden is said when the page goes")
    assert [(e["kind"], e["item_id"]) for e in stub.taken.values()] == [
        ("view", item), ("transaction", item), ("not_again", item),
    ]  # fmt: skip
    assert {event["request_id"] for event in stub.taken.values()} == {"r1"}


@pytest.mark.parametrize("stub", ["news"], indirect=True)
def test_a_list_is_confirmed_once_it_is_on_the_screen(browser: Browser, stub: FeedStub) -> None:
    browser.open(stub.url)
    wait(lambda: stub.of_kind("seen"), "the list was confirmed")
    assert stub.of_kind("seen")[0]["request_id"] == "r1" and len(stub.taken) == 1
