"""A joiner for each partition, fed with events one after the other as they would stand on the log."""

from collections.abc import Iterator, Sequence

from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Engagement, Event, Impression
from recsys.events.hashing import partition_of
from training.joining.joiner import Joined, Joiner


class Joiners:
    """A sequence of joiners, by partition."""

    def __init__(self, partitions: int, labels: Sequence[str], config: JoinConfig) -> None:
        self._joiners = [Joiner(p, labels, config) for p in range(partitions)]
        self._offsets = [0] * partitions

    def __iter__(self) -> Iterator[Joiner]:
        return iter(self._joiners)

    def __getitem__(self, partition: int) -> Joiner:
        return self._joiners[partition]

    def feed(self, event: Event) -> list[Joined]:
        """What the joiner of the event's partition makes of it; nothing of what isn't joined."""
        if not isinstance(event, Impression | Engagement):
            return []
        partition = partition_of(event.user_id, len(self._joiners))
        offset = self._offsets[partition]
        self._offsets[partition] += 1
        return self._joiners[partition].feed(offset, event)
