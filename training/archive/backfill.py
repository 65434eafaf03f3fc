"""Features for examples that were logged without them, or with those of another feature set.

They are those that a server with the wanted feature set would have logged: computed from raw events as of the
impression (training/archive/recompute.py), never with anything that came later. A block that was made so says
it (``backfilled``). What has the wanted features is left as it is, to the byte.

Pure: examples and impressions go in, examples come out. What can't be filled in is counted by its reason.
"""

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from recsys.events.event_types import FeatureBlock
from recsys.events.records import Example
from recsys.features.feature_set import FeatureSet, one_item
from training.archive.recompute import CantRecompute, PastCounters, Recomputer, PastSessions, PlacedImpression

KEPT: Final = "had the wanted features"
FILLED: Final = "backfilled"
_NO_IMPRESSION: Final = "its impression isn't archived"
_OTHER_ITEM: Final = "its impression has no such item at its place"


class Backfill:
    """Fills in features of a feature set. Impressions first, then the examples of them."""

    def __init__(self, recomputer: Recomputer, features: FeatureSet) -> None:
        self._recomputer, self._features = recomputer, features
        self._blocks: dict[tuple[int, int], tuple[FeatureBlock, list[str]]] = {}
        self._reasons: dict[tuple[int, int], str] = {}
        self.counts: dict[str, int] = {KEPT: 0, FILLED: 0}

    def wants(self, example: Example) -> bool:
        """Whether an example needs other features than it has."""
        block = example.features
        return block is None or block.feature_set != self._features.digest

    def compute(
        self, shown: Iterable[PlacedImpression], sessions: PastSessions, counters: PastCounters
    ) -> None:
        """Computes the features of impressions, in the order that the counters can be asked in."""
        for its in shown:
            place = (its.partition, its.offset)
            try:
                block = self._recomputer.block(its, sessions.of(its), counters.of(its))
            except CantRecompute as error:
                self._reasons[place] = str(error)
                continue
            ids = [str(served.item_id) for served in its.impression.items]
            self._blocks[place] = (replace(block, backfilled=True), ids)

    def fill(self, example: Example) -> Example | None:
        """The example with the wanted features; None where that can't be, counted by its reason."""
        if not self.wants(example):
            self.counts[KEPT] += 1
            return example
        place = (example.partition, example.offset)
        found = self._blocks.get(place)
        if found is None:
            self._count(self._reasons.get(place, _NO_IMPRESSION))
            return None
        block, ids = found
        if example.index >= len(ids) or ids[example.index] != str(example.item_id):
            self._count(_OTHER_ITEM)
            return None
        self._count(FILLED)
        return replace(example, features=one_item(block, example.index, len(ids)))

    def _count(self, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
