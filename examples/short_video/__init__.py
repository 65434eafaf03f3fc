"""The short-video app of the demo: its definition, the feed page, a simulated world and its viewers."""

from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("page")  # the feed page
