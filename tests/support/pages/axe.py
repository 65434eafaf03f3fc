"""Accessibility findings of an open page by axe-core, from the packages of clients/typescript."""

import pytest

from tests.support.pages.webdriver import Browser
from tests.support.paths import ROOT

_AXE = ROOT / "clients" / "typescript" / "node_modules" / "axe-core" / "axe.min.js"
_RUN = """
return axe.run({resultTypes: ['violations']}).then((result) => result.violations.map((found) =>
  `${found.impact} ${found.id}: ` + found.nodes.map((node) => node.target.join(' ')).join(', ')));
"""


def needs_axe() -> pytest.MarkDecorator:
    return pytest.mark.skipif(not _AXE.exists(), reason="axe-core isn't installed: make client")


def findings(browser: Browser) -> list[str]:
    """Impact, rule and elements of each violation on the page as it is now."""
    browser.run(f"{_AXE.read_text()};window.axe = axe;")
    return list(browser.run(_RUN))


def scheme(browser: Browser, name: str) -> None:
    """Makes the browser prefer "light" or "dark"."""
    feature = {"name": "prefers-color-scheme", "value": name}
    browser.devtools("Emulation.setEmulatedMedia", {"features": [feature]})


def is_wide(browser: Browser) -> bool:
    """Whether the page needs to be scrolled sideways."""
    return bool(browser.run("return document.documentElement.scrollWidth > innerWidth"))
