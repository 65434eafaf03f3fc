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
ITEMS = "return [...document.querySelectorAll('[data-list=items] .tile')].map(({ dataset }) => dataset.item)"
RUN = """
import dataclasses, runpy, sys
from examples import app_run
main = app_run.main
app_run.main = lambda app: main(dataclasses.replace(app, learn=1_000))  # quick to learn
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@contextmanager
def app(name: str, folder: Path) -> Iterator[str]:
    """The address of a running example."""
    port = next(free_ports())
    command = [sys.executable, "-c", RUN, f"examples.{name}", str(folder), "--port", str(port)]
    environment = os.environ | SMALL
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            page = f"http://127.0.0.1:{port}/"
            output = iter(process.stdout.readline, "")
            assert any(page in line for line in output), "the command ended before it served"
            yield page
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=90)
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["news", "shop"])
def test_a_click_on_the_page_is_in_the_session_and_changes_the_next_list(tmp_path: Path, name: str) -> None:
    with app(name, tmp_path) as page, Browser(1000, 800) as browser:
        browser.open(f"{page}?user=visitor")
        wait(lambda: len(browser.run(ITEMS)) == 12, "the first list came")
        first = browser.run(ITEMS)
        browser.run("document.querySelector('.tiles .tile').click()")
        browser.wait("return document.querySelectorAll('[data-list=similar] .tile').length === 8")
        with Client(page) as client:
            wait(lambda: client.session("visitor")["events"] >= 1, "the session has the click")
            if name == "shop":
                browser.run("document.querySelector('.buttons [data-kind=purchase]').click()")
                wait(lambda: client.session("visitor")["events"] >= 2, "the session has the purchase")
        browser.run("document.querySelector('.list [data-act=next]').click()")
        wait(lambda: browser.run(ITEMS) not in (first, []), "the next list is another one")
        assert browser.console() == []
