"""How pages show an app: the layout of the feed page, the item fields that it reads, names of kinds. Pure."""

from dataclasses import dataclass, field
from typing import Final

SWIPE, LIST = LAYOUTS = ("swipe", "list")
# What the page shows of an item, and the fields that hold it unless the definition names others.
SHOWN_FIELDS: Final = {
    "title": ("title", "name", "headline"),
    "text": ("text", "description", "summary", "abstract"),
    "picture": ("picture", "image", "image_url", "thumbnail", "poster"),
    "video": ("video", "video_url"),
    "price": ("price",),
    "duration": ("duration_ms",),
    "emblem": ("emoji",),
}
# Kinds that opening an item reports: the first one that is declared.
OPENING: Final = ("click", "view", "open", "read", "detail", "play")
WATCHING: Final = ("view", "long_view", "skip")  # reported by what is on the screen, not by a button


@dataclass(frozen=True)
class Page:
    """The section ``page`` of a definition. ``layout``: "" is chosen by how items count as shown. ``fields``:
    item fields by what they hold (``SHOWN_FIELDS``). ``names``: of kinds of engagement, on buttons."""

    layout: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
