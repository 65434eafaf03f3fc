"""The feed page: shows any app by its definition, as cards to swipe or as a list."""

from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("web")
