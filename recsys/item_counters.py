"""Item-side counters: what all viewers did with an item, its author, its tags, and with each per context.

The fold of impressions and engagements behind the `item_state` topic. An engagement finds the context of its
request among the requests remembered; one that doesn't still counts for the item itself.
"""

from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.counters import Counters, amounts
from recsys.events import Engagement, Impression
from recsys.features import FeatureSet, Keys
from recsys.hashing import cross, key_of

GLOBAL: Final = key_of("entity", "global")
REQUESTS: Final = 200_000


class ItemCounters:
    """Folds events into counters of items, groups and their crosses with the context."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.counters = Counters(len(features.kinds), 1024)
        self._requests: OrderedDict[str, int] = OrderedDict()
        self._changed: set[int] = set()
        self._kinds = set(features.kinds) | {"view"}
        self._duration = features.slot("duration").start
        self._crosses: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def impression(self, impression: Impression, items_NI: Keys) -> None:
        """Remembers the context; counts all items as shown where that is what an impression means."""
        context = self.features.context_keys(impression.surface, impression.context)[0]
        self._requests[impression.request_id] = context
        if len(self._requests) > REQUESTS:
            self._requests.popitem(last=False)
        if self.features.schema.shown_by == "impression":
            shown = amounts(self.features.kinds, "shown")
            for keys_I in items_NI:
                self._add(keys_I, context, shown, impression.time_ms)

    def engagement(self, engagement: Engagement, keys_I: Keys) -> None:
        """Counts what a viewer did with an item, whose keys (I,) come from the catalogue."""
        kind = engagement.kind
        if kind not in self._kinds:
            return
        added = amounts(self.features.kinds, kind, engagement.watch_ms)
        if kind == "view" and self.features.schema.shown_by == "view":
            added[0] += 1.0
        context = self._requests.get(engagement.request_id, 0)
        self._add(keys_I, context, added, engagement.time_ms)

    def take_changed(self) -> list[int]:
        """The keys changed since the last call: what `item_state` has to be told."""
        changed = sorted(self._changed)
        self._changed.clear()
        return changed

    def requests(self) -> list[tuple[str, int]]:
        """The requests remembered, oldest first, for the fold's own snapshot."""
        return list(self._requests.items())

    def remember(self, requests: list[tuple[str, int]]) -> None:
        self._requests.update(requests)

    def _add(self, keys_I: Keys, context: int, added: NDArray[np.float32], now_ms: int) -> None:
        if not added.any():
            return
        entities = (GLOBAL, *self.features.entities(keys_I))
        if context:
            entities += (context, *self._crossed(context, keys_I))
        self.counters.add(entities, added, now_ms)
        self._changed.update(entities)

    def _crossed(self, context: int, keys_I: Keys) -> tuple[int, ...]:
        """The context's crosses with one item, kept: the same few are asked for again and again."""
        pair = (context, int(keys_I[0]), int(keys_I[self._duration]))
        found = self._crosses.get(pair)
        if found is None:
            if len(self._crosses) >= REQUESTS:
                self._crosses.clear()
            keys = context_entities(self.features, context, keys_I[None, :])[0].tolist()
            found = self._crosses[pair] = tuple(key for key in keys if key)
        return found


def context_entities(features: FeatureSet, context: int, items_NI: Keys) -> Keys:
    """(N, 2): the item and its duration, each crossed with the context."""
    return cross(context, items_NI[:, [0, features.slot("duration").start]])
