"""Fills in features of examples that were logged without them or with another feature set: those that a
server with the wanted set would have logged (../feature_audit/recompute.py), marked ``backfilled``. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from plugins.backfill.sessions import SessionsAsOf
from plugins.feature_audit.audit_source import PlacedImpression
from plugins.feature_audit.recompute import CantRecompute, CountersAsOf, Recomputer
from recsys.events.event_types import FeatureBlock
from recsys.events.records import Example
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import item_block

KEPT: Final = "had the wanted features"
FILLED: Final = "backfilled"
_NO_IMPRESSION: Final = "its impression isn't archived"
_OTHER_ITEM: Final = "its impression has no such item at its place"


class Backfill:
    """Fills in features of a feature set. Call ``compute`` for impressions, then ``fill`` for examples."""

    def __init__(self, recomputer: Recomputer, features: FeatureSet) -> None:
        self._recomputer, self._features = recomputer, features
        self._blocks: dict[tuple[int, int], tuple[FeatureBlock, list[str]]] = {}
        self._reasons: dict[tuple[int, int], str] = {}
        self.counts: dict[str, int] = Counter({KEPT: 0, FILLED: 0})

    def wants(self, example: Example) -> bool:
        """Whether an example lacks the wanted features."""
        block = example.features
        return block is None or block.feature_set != self._features.digest

    def compute(
        self, impressions: Iterable[PlacedImpression], sessions: SessionsAsOf, counters: CountersAsOf
    ) -> None:
        """Computes the features of impressions, in the order that ``counters`` requires."""
        for placed in impressions:
            place = (placed.partition, placed.offset)
            try:
                state = sessions.of(placed), counters.of(placed), counters.covisits
                block = self._recomputer.block(placed, *state)
            except CantRecompute as error:
                self._reasons[place] = str(error)
                continue
            ids = [str(served.item_id) for served in placed.impression.items]
            self._blocks[place] = (replace(block, backfilled=True), ids)

    def fill(self, example: Example) -> Example | None:
        """The example with the wanted features; None if that is impossible, counted by reason."""
        if not self.wants(example):
            self.counts[KEPT] += 1
            return example
        place = (example.partition, example.offset)
        if place not in self._blocks:
            self.counts[self._reasons.get(place, _NO_IMPRESSION)] += 1
            return None
        block, ids = self._blocks[place]
        if example.index >= len(ids) or ids[example.index] != str(example.item_id):
            self.counts[_OTHER_ITEM] += 1
            return None
        self.counts[FILLED] += 1
        return replace(example, features=item_block(block, example.index, len(ids)))
