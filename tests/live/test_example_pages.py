"""The example apps as a person starts and uses them: one command, a page in Chromium, Ctrl-C."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recsys.client import Client
from recsys.free_ports import free_ports
from tests.support.pages.example_stub import ExampleStub
from tests.support.pages.webdriver import Browser, chromium_is_there, wait
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.services,
    pytest.mark.pairs(21),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed"),
]
SMALL = {  # with fewer processes, since starting them takes longest
    "RECSYS__SERVE__DASHBOARD": "false",
    "RECSYS__SERVE__DASHBOARD_PORT": "0",
    "RECSYS__PARAMETER_SERVER__SHARDS": "1",
    "RECSYS__TRAINER__WORKERS": "1",
}
ITEMS = "return [...document.querySelectorAll('ol [data-item]')].map((tile) => tile.dataset.item)"
RUN = """
import dataclasses, runpy, sys
from examples import app_run
main = app_run.main
app_run.main = lambda app: main(dataclasses.replace(app, learn=1_000))  # quick to learn
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
REQUEST = "return document.body.dataset.request"
REPORTED = "return document.body.dataset.reported"
CLICK_FIRST = "document.querySelector('ol [data-item]').click()"


@contextmanager
def app(name: str, folder: Path) -> Iterator[str]:
    """The address of a running example."""
    port = next(free_ports())
    command = [sys.executable, "-c", RUN, f"examples.{name}", str(folder), "--port", str(port)]
    environment = os.environ | SMALL
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            page = f"http://127.0.0.1:{port}/{name}/"
            output = iter(process.stdout.readline, "")
            assert any(page in line for line in output), "the command ended before it served"
            yield page
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=90)
    assert process.returncode == 0


def new_list(browser: Browser, button: str) -> list[str]:
    """The items of the next list, after a press of a button."""
    before = browser.run(REQUEST)
    browser.run(f"document.getElementById('{button}').click()")
    wait(lambda: browser.run(REQUEST) not in (before, None), "the next list came")
    return list(browser.run(ITEMS))


@pytest.mark.parametrize(("name", "button"), [("news", "again"), ("shop", "home")])
def test_a_click_on_the_page_is_in_the_session_and_changes_the_next_list(
    tmp_path: Path, name: str, button: str
) -> None:
    with app(name, tmp_path) as page, Browser(1000, 800) as browser:
        browser.open(f"{page}?user=visitor")
        wait(lambda: len(browser.run(ITEMS)) == 12, "the first list came")
        assert browser.run("return document.querySelectorAll('h1').length") == 1
        first = browser.run(ITEMS)
        browser.run(CLICK_FIRST)
        wait(lambda: browser.run(REPORTED), "the click was reported")
        assert first[0] in browser.run(REPORTED)
        if name == "shop":
            wait(lambda: len(browser.run(ITEMS)) == 8, "similar products came")
            assert first[0] not in browser.run(ITEMS)
            browser.run("document.getElementById('buy').click()")
            wait(lambda: browser.run(REPORTED) == f"purchase {first[0]} 0", "it was bought")
        with Client(page.removesuffix(f"/{name}/")) as client:
            wait(lambda: client.session("visitor")["events"] >= 1, "the session has the click")
        assert len(new_list(browser, button)) == 12
        assert browser.console() == []


def test_a_page_works_without_storage_and_says_what_was_refused() -> None:
    """As with cookies blocked, on a LAN address, with a clock that is ahead."""
    deny = "() => { throw new DOMException('denied', 'SecurityError') }"
    source = f"""
    Object.defineProperty(window, 'localStorage', {{ get: {deny} }});
    Object.defineProperty(crypto, 'randomUUID', {{ value: undefined }});"""
    stub = ExampleStub("shop")
    stub.error = {"field": "time_ms", "value": "9", "expected": "at most 5 s ahead"}
    try:
        with Browser() as browser:
            browser.devtools("Page.addScriptToEvaluateOnNewDocument", {"source": source})
            browser.open(stub.url.partition("?")[0])
            wait(lambda: len(browser.run(ITEMS)) == 12, "the list came")
            browser.run(CLICK_FIRST)
            wait(lambda: len(browser.run(ITEMS)) == 8, "the similar ones came")
            browser.run("document.getElementById('buy').click()")
            browser.wait("return document.body.innerText.includes('expected at most 5 s ahead')")
            assert len({event["event_id"] for event in stub.events}) == 2
            assert not browser.run("return document.getElementById('bought').textContent")
    finally:
        stub.close()


def test_a_slate_is_confirmed_once_the_page_is_in_the_foreground() -> None:
    stub = ExampleStub("news")
    hidden = "Object.defineProperty(document, 'hidden', { value: %s, configurable: true });"
    try:
        with Browser() as browser:
            script = {"source": hidden % "true"}
            browser.devtools("Page.addScriptToEvaluateOnNewDocument", script)
            browser.open(stub.url)
            wait(lambda: len(browser.run(ITEMS)) == 12, "the slate came")
            browser.run("return new Promise((resolve) => setTimeout(resolve, 200))")
            assert stub.events == []
            browser.run(hidden % "false" + "document.dispatchEvent(new Event('visibilitychange'))")
            wait(lambda: stub.events, "the slate was confirmed")
            browser.run("document.dispatchEvent(new Event('visibilitychange'))")
            browser.run(CLICK_FIRST)
            wait(lambda: browser.run(REPORTED), "the click was reported")
            seen, click = stub.events
            assert (seen["kind"], click["kind"]) == ("seen", "click")
            names = ("request_id", "token", "user_id", "surface")
            assert [seen[name] for name in names] == [click[name] for name in names]
            assert seen["request_id"] == "r12"
    finally:
        stub.close()
