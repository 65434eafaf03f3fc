"""Counters of engagement by source of candidates, which set the sources' shares and measure their recall.

An engagement with the first label counts for each source that had the item among its candidates for the
viewer's list: as 1 under ``shown``, and under the label divided among these sources. ``ALL`` counts every
engagement with a list, ``UNION`` those with an item that any source had.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from recsys.config.policy_config import SOURCES
from recsys.events.event_types import Impression
from recsys.events.hashing import key_of
from recsys.events.records import CLICK_LIST

ALL: Final = key_of("source", "")
UNION: Final = key_of("source", "union")
KEYS: Final = {name: key_of("source", name) for name in SOURCES}
REQUESTS: Final = 20_000  # newest requests whose sources are remembered


def source_key(name: str) -> int:
    """Key of a source's counters; 0 for other reasons why an item was a candidate, e.g. ``fixed``."""
    return key_of("source", name) if "@" in name else KEYS.get(name, 0)


class SourceCredits:
    """Remembers the sources of served items, by request and key of the item. ``tables``: see ItemCounters."""

    def __init__(self, tables: int = 1) -> None:
        self._most = REQUESTS // tables
        self.requests: OrderedDict[str, dict[int, list[str]]] = OrderedDict()

    def remember(self, impression: Impression) -> None:
        """Remembers a list; those of data sets have no sources."""
        items = {
            key_of("item", item.item_id): names
            for item in impression.items
            if (names := [name for name in item.sources if source_key(name)])
        }
        if items:
            self.requests[impression.request_id] = items
            if len(self.requests) > self._most:
                self.requests.popitem(last=False)

    def of(self, request_id: str, item: int) -> Iterator[tuple[tuple[int, ...], float]]:
        """Keys to count an engagement for, with their part of the engagement."""
        if not request_id or request_id.startswith(CLICK_LIST):
            return  # no source was asked for a viewer's list
        names = self.requests.get(request_id, {}).get(item, [])
        yield (ALL, UNION) if names else (ALL,), 1.0
        if names:
            yield tuple(map(source_key, dict.fromkeys(names))), 1.0 / len(names)
