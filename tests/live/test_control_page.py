"""The control room's page in a real browser: every number is a sample, and what goes wrong is said."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.support.pages.control_room_stub import (
    KEY,
    NUMBERS,
    OF_REPLICA,
    PANELS,
    ControlStub,
    agrees,
    wrong_numbers,
)
from tests.support.pages.webdriver import Browser, chromium_is_there

pytestmark = pytest.mark.pairs(11)

in_a_browser = [
    pytest.mark.services,
    pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed"),
]
SHOWN = "return document.getElementById('room').dataset.number"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(1440, 900) as its:
        yield its


@pytest.fixture
def stub(browser: Browser) -> Iterator[ControlStub]:
    its = ControlStub()
    yield its
    browser.open("about:blank")
    its.stop()


def opened(browser: Browser, stub: ControlStub) -> None:
    browser.open(f"{stub.url}#{KEY}")
    browser.wait(SHOWN)


def at_rest(browser: Browser) -> list[list[str]]:
    browser.wait("return document.getElementById('room').dataset.number > 4")
    browser.press("p")
    found: list[list[str]] = browser.run(NUMBERS)
    return found


def picture_of(browser: Browser) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = browser.run("return document.getElementById('room').picture")
    return found


def name_it(stub: ControlStub, replica: str) -> None:
    """As where there may be several: each series of the replica has its name."""
    for series in OF_REPLICA:
        name, _, labels = series.partition("{")
        told = re.findall(r'\w+="[^"]*"', labels)
        named = ",".join(sorted([*told, f'replica="{replica}"']))
        stub.look.now[f"{name}{{{named}}}"] = stub.look.now.pop(series)


@pytest.mark.parametrize(
    ("text", "value", "does"),
    [("1,234", 1_234.4, True), ("1,234", 1_235.0, False),
     ("1.48 s", 1_483.2, True), ("1.48 s", 1_486.0, False),
     ("38 ms", 38.4, True), ("2.50 MB", 2_504_000, True), ("0.3", 0.31, True), ("–", 0.0, False),
     ("12.0 kB/s", 12_040, True), ("4.2e-4", 0.00042, True), ("0.4 %", 0.0041, True), ("many", 1.0, False)],
)  # fmt: skip
def test_a_number_is_read_back(text: str, value: float, does: bool) -> None:
    assert agrees(text, value) is does


class TestPage:
    pytestmark = in_a_browser

    def test_every_number_is_its_sample_and_the_console_is_clean(
        self, browser: Browser, stub: ControlStub
    ) -> None:
        browser.console()
        opened(browser, stub)
        shown = at_rest(browser)
        assert len(shown) > 80 and sum(text == "–" for _, _, text in shown) == 0, shown
        assert wrong_numbers(shown, picture_of(browser)) == []
        names = {series for series, *_ in shown}
        assert {
            "recsys_step",
            'recsys_trainer_auc{label="long_view"}',
            'recsys_shards_table_rows{table="items"}',
            'recsys_shadow_panel_auc_now{age="previous"}',
            'recsys_shadow_panel_forgotten{age="1h"}',
            "recsys_view_to_acknowledged_p95_ms",
        } <= names
        before = browser.run(SHOWN)
        time.sleep(0.6)
        assert browser.run(SHOWN) == before  # it is frozen
        assert browser.console() == []

    def test_the_key_leaves_the_address_and_stays_for_the_tab(
        self, browser: Browser, stub: ControlStub
    ) -> None:
        opened(browser, stub)
        assert browser.run("return location.href") == stub.url
        browser.open(stub.url)
        browser.wait(SHOWN)
        browser.run(
            "document.querySelector('[data-metric=recsys_step]')"
            ".dispatchEvent(new Event('pointerover', {bubbles: true}))"
        )
        assert browser.run("return document.querySelector('.tip').textContent") == "recsys_step"

    def test_the_key_of_the_address_is_enough_where_storage_is_forbidden(
        self, browser: Browser, stub: ControlStub
    ) -> None:
        deny = "() => { throw new DOMException('denied', 'SecurityError') }"
        source = f"Object.defineProperty(window, 'sessionStorage', {{ get: {deny} }})"
        before = browser.devtools("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        try:
            opened(browser, stub)
        finally:
            browser.devtools("Page.removeScriptToEvaluateOnNewDocument", before)

    def test_a_wrong_key_and_none_are_asked_for_again(self, browser: Browser, stub: ControlStub) -> None:
        browser.open(f"{stub.url}#{'w' * 43}")
        browser.wait("return document.body.dataset.link === 'locked'")
        assert "key is wrong" in browser.run(
            "return document.querySelector('[data-part=gate-title]').textContent"
        )
        browser.run(
            "document.getElementById('key').value = arguments[0];"
            "document.querySelector('.gate form').requestSubmit()",
            KEY,
        )
        browser.wait(SHOWN)
        assert browser.run("return document.getElementById('gate').hidden")
        browser.console()  # a refusal is the browser's own line

    def test_a_lost_connection_is_said_and_mended(self, browser: Browser, stub: ControlStub) -> None:
        opened(browser, stub)
        stub.stop()
        browser.wait("return document.body.dataset.link === 'lost'")
        browser.wait("return getComputedStyle(document.querySelector('main')).opacity < 1")
        stub.start()
        browser.wait("return document.body.dataset.link === 'live'")
        lines = [line for line in browser.console() if "ERR_" not in line]
        assert lines == []

    def test_replicas_with_names_are_told_apart(self, browser: Browser, stub: ControlStub) -> None:
        name_it(stub, "r1")
        opened(browser, stub)
        shown = at_rest(browser)
        assert wrong_numbers(shown, picture_of(browser)) == []
        assert [text for series, _, text in shown if series == 'recsys_step{replica="r1"}'] == ["1,234"] * 3

    def test_an_item_and_a_user_of_any_app_are_inspected(self, browser: Browser, stub: ControlStub) -> None:
        near = [{"item_id": "i2", "fields": {"title": "Two"}, "product": 0.5}]
        counters = {"1h": {"shown": 3.0, "hide": 0.0}, "24h": {"shown": 40.0, "hide": 0.0}}
        stub.views["items", "i1"] = {
            "item_id": "i1", "alive": True, "fields": {"title": "One"}, "counters": counters,
            "popularity": 1.5, "shown": 40.0, "vector": {"norm": 1.0, "moved_at": 0, "dim": 8},
            "near": near,
        }  # fmt: skip
        reasons = [
            {"feature": "profile", "effect": 0.25},
            {"feature": "genre", "value": "g1", "met": 4, "liked": 0.5},
        ]
        entry = {"item_id": "i1", "fields": {}, "sources": ["popular"], "reasons": reasons}
        stub.views["users", "u1"] = {
            "user_id": "u1", "events": 3, "arms": {}, "topics": [], "recent": [], "met": [],
            "answer": {"items": [entry]},
        }  # fmt: skip
        opened(browser, stub)

        def inspected(kind: str, name: str) -> str:
            form = f"const form = document.querySelector('[data-ask=\"{kind}\"]');"
            browser.run(f"{form} form.elements.name.value = '{name}'; form.requestSubmit()")
            found = f"{form} return form.querySelector('.found').innerText"
            browser.wait(found)
            return str(browser.run(found))

        item = inspected("items", "i1")
        assert "1h" in item and "24h" in item and "40" in item and "hide" not in item, item
        user = inspected("users", "u1")
        assert "profile 0.25; genre g1: shown 4×, liked 50 %" in user, user

    def test_what_the_system_says_is_never_markup(self, browser: Browser, stub: ControlStub) -> None:
        evil = "<img src=x onerror=document.title='taken'>"
        letter = {"topic": evil, "partition": 0, "offset": 1, "reason": evil, "at": 0}
        decision = {"type": "decision", "line": evil, "said": "hold", "to": "", "final": False, "why": evil,
                    "evidence": {evil: 1.0}, "time_ms": 1, "at": 0}  # fmt: skip
        control = PANELS["control"] | {"decisions": [decision]}
        named = {"letters": [letter], "control": control, "quarantined": [evil]}
        stub.look.panel = PANELS | named
        opened(browser, stub)
        browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
        assert browser.run("return document.querySelectorAll('main img').length") == 0
        assert (
            browser.run("return document.body.textContent.includes('onerror')")
            and browser.run("return document.title") == "control room"
        )

    def test_the_brand_is_the_name_of_the_app_and_the_last_hour_is_drawn(
        self, browser: Browser, stub: ControlStub
    ) -> None:
        opened(browser, stub)
        assert browser.run("return document.querySelector('.mark').textContent") == "shop control room"
        counts = "[...document.querySelectorAll('#hour svg')].map(s => s.querySelectorAll('.curve').length)"
        browser.wait(f"return {counts}.every(n => n > 0)")
        assert browser.run(f"return {counts}") == [1, 1, 2, 1, 4, 1, 2, 2]
        behind = browser.run("return document.querySelectorAll('#hour .legend')[4].innerText")
        assert "events" in behind

    def test_a_section_folds_by_its_heading_stays_folded_and_a_link_unfolds_it(
        self, browser: Browser, stub: ControlStub
    ) -> None:
        opened(browser, stub)
        fold = "document.querySelector('#shards h2 button')"
        inside = "return document.querySelector('#shards .figures').checkVisibility()"
        browser.run(f"{fold}.click()")
        assert not browser.run(inside) and browser.run(f"return {fold}.ariaExpanded") == "false"
        opened(browser, stub)
        assert not browser.run(inside)
        browser.run("document.querySelector('a[href=\"#shards\"]').click()")
        browser.wait(inside)

    def test_an_empty_system_says_so(self, browser: Browser, stub: ControlStub) -> None:
        stub.look.now = {"recsys_system_running": 1.0}
        stub.look.panel = PANELS | {"served": None, "parts": []}
        opened(browser, stub)
        text = browser.run("return document.querySelector('main').innerText")
        assert (
            "No events yet" in text
            and "Begins with the first list" in text
            and "Begins after 200 learned examples" in text
            and "No replica answers yet" in text
            and "No shard answers yet" in text
            and "later snapshots score it again" in text
        )
        assert not re.search(r"NaN|undefined|null|Infinity", text)

    def test_a_panel_that_is_nearest_to_two_ages_is_shown_once(
        self, browser: Browser, stub: ControlStub
    ) -> None:
        of = "recsys_shadow_panel_age_s"
        stub.look.now[f'{of}{{age="1h"}}'] = stub.look.now[f'{of}{{age="previous"}}']
        opened(browser, stub)
        rows = "return document.querySelectorAll('.kept tbody tr').length"
        browser.wait(f"{rows} === 1")
        stub.look.now[f'{of}{{age="1h"}}'] += 3_000
        browser.wait(f"{rows} === 2")

    @pytest.mark.parametrize("width", [320, 390, 768])
    def test_nothing_is_cut_off_on_a_narrow_screen(self, width: int, stub: ControlStub) -> None:
        with Browser(width, 844, phone=True) as phone:
            opened(phone, stub)
            assert phone.run("return document.documentElement.scrollWidth") <= width
