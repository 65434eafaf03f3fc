"""Makes the pictures of docs/control-room.md of a running system: ``python -m tests.control_pictures STATE``.

Each is one screen in headless Chromium, after the page has looked for a while.
"""

import sys
import time
from pathlib import Path

from recsys.cli import plan as plans
from tests.webdriver import Browser

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
LOOKS_S = 25.0
MOST_BYTES = 400_000


def main(state: str, folder: Path = DOCS, scheme: str = "dark") -> None:
    """Writes ``control-desktop.png`` and ``control-phone.png``. Raises ValueError without a control room."""
    url = plans.control_room_url(plans.read(state)[0])
    if not url:
        raise ValueError(f"{state} has no control room: start it by `recsys demo --state {state}`")
    for name, (width, height) in SIZES.items():
        # A window is 87 pixels higher than what it shows; an emulated phone isn't.
        with Browser(width, height + 87 * (name == "desktop"), phone=name == "phone") as browser:
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.devtools("Emulation.setEmulatedMedia", {"features": features})
            browser.open(url)
            browser.wait("return document.getElementById('room').dataset.number", 30)
            time.sleep(LOOKS_S)
            path = folder / f"control-{name}.png"
            browser.screenshot(path)
            size, lines = path.stat().st_size, browser.console()
            if size > MOST_BYTES or lines:
                raise ValueError(f"{path} has {size} bytes, expected {MOST_BYTES} at most; {lines}")
            print(path, size)


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["state"])
