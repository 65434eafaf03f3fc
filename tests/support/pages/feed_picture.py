"""Makes docs/images/feed-learning.png from a running demo.

Usage: ``python -m tests.support.pages.feed_picture [URL]``.

A new viewer swipes with the drawer open, likes one topic and skips the others; the frames become one animated
PNG. Needs a font with emoji (Debian: fonts-noto-color-emoji).
"""

import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.support.pages.webdriver import Browser
from tests.support.paths import ROOT

PICTURE: Final = ROOT / "docs" / "images" / "feed-learning.png"
SWIPES, FRAME_MS, LAST_MS = 40, 700, 2_500
SIZE, SCALE = (1120, 700), 0.55
TOPIC: Final = "return document.querySelector('.card.here .chip')?.textContent"
WATCH_S: Final = 1.2


def frames(url: str) -> Iterator[bytes]:
    """PNG screenshots: the first swipes, then one for every fourth swipe."""
    with Browser(*SIZE) as browser, tempfile.TemporaryDirectory() as folder:
        width, height = SIZE
        metrics = {"width": width, "height": height, "deviceScaleFactor": SCALE, "mobile": False}
        browser.devtools("Emulation.setDeviceMetricsOverride", metrics)
        browser.open(url)
        browser.wait("return document.querySelector('.card.here')")
        if browser.run("return document.body.dataset.drawer") != "open":
            browser.press("d")
        topic = str(browser.wait(TOPIC))
        for swipe in range(SWIPES):
            liked = browser.wait(TOPIC) == topic
            pause(browser, 2 * WATCH_S if liked else 0.3)
            if liked:
                browser.press("l")
                pause(browser, WATCH_S)
            if swipe % 4 == 0 or swipe < 2:
                shot = Path(folder) / "frame.png"
                browser.screenshot(shot)
                yield shot.read_bytes()
            browser.press("j")


def pause(browser: Browser, seconds: float) -> None:
    browser.run(f"return new Promise(done => setTimeout(done, {seconds * 1000}))")


def animated(pngs: Sequence[bytes]) -> bytes:
    """One APNG of PNGs of equal size and colour type (https://www.w3.org/TR/png-3/, 11.3.6)."""
    parts, number = [pngs[0][:8]], 0
    for index, png in enumerate(pngs):
        chunks = list(chunks_of(png))
        header = next(data for kind, data in chunks if kind == b"IHDR")
        if index == 0:
            parts += [chunk(b"IHDR", header), chunk(b"acTL", struct.pack(">II", len(pngs), 0))]
        delay = LAST_MS if index == len(pngs) - 1 else FRAME_MS
        control = struct.pack(">I", number) + header[:8] + struct.pack(">IIHHBB", 0, 0, delay, 1000, 0, 0)
        parts.append(chunk(b"fcTL", control))
        number += 1
        for data in (data for kind, data in chunks if kind == b"IDAT"):
            if index == 0:
                parts.append(chunk(b"IDAT", data))
            else:
                parts.append(chunk(b"fdAT", struct.pack(">I", number) + data))
                number += 1
    return b"".join([*parts, chunk(b"IEND", b"")])


def chunks_of(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        at += size + 12


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


if __name__ == "__main__":
    PICTURE.write_bytes(animated(list(frames(*(sys.argv[1:] or ["http://127.0.0.1:8000"])))))
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")
