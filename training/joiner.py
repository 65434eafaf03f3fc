"""Labels impressions with the engagements that follow them, in event time.

One joiner per partition, fed with that partition's events in offset order: a pure function of them. So after
a restart the same events give the same examples with the same sequence numbers, and what was already
appended is skipped by its sequence.

An example is emitted at the first of: its view ended, or its window closed. What the viewer does later emits
a correction, until the horizon; after that it is counted as late. What was served but never shown (where the
client names what was on screen) is counted and is no negative. The joiner knows nothing of features: it cuts
the block that the impression carries.
"""

import heapq
from collections.abc import Sequence

import msgspec

from recsys.config import JoinConfig
from recsys.dedupe import Recent
from recsys.events import Engagement, Event, Impression, repeat_key
from recsys.features import one_item
from recsys.records import Example


class _Item(msgspec.Struct):
    """One served item on its way to an example. ``learned``: the labels emitted last; None before."""

    labels: list[float]
    watch_ms: int = 0
    shown: bool = False
    learned: list[float] | None = None


class _Open(msgspec.Struct):
    """An impression whose engagements are awaited. ``closed``: its window is over."""

    offset: int
    impression: Impression
    items: list[_Item]
    closed: bool = False


class _State(msgspec.Struct):
    open: dict[str, _Open]
    timers: list[tuple[int, str]]
    watermark_ms: int
    sequence: int
    counts: dict[str, int]
    recent: list[str]


class Joiner:
    """The join of one partition. Feed it every event with its offset, in order."""

    def __init__(self, partition: int, labels: Sequence[str], config: JoinConfig) -> None:
        self.partition = partition
        self.labels = list(labels)
        self.config = config
        self.watermark_ms = 0
        self.sequence = 0
        self.counts = {"examples": 0, "corrections": 0, "late": 0, "unmatched": 0,
                       "never_shown": 0, "repeats": 0}  # fmt: skip
        self._open: dict[str, _Open] = {}
        self._timers: list[tuple[int, str]] = []
        self._recent = Recent(100_000)

    def feed(self, offset: int, event: Event) -> list[Example]:
        """Takes one event; returns the examples and corrections that it brought about, in order."""
        out = self.advance(event.time_ms)
        if isinstance(event, Impression | Engagement):
            if not self._recent.add(repeat_key(event)):
                self.counts["repeats"] += 1
            elif isinstance(event, Impression):
                self._show(offset, event)
            else:
                out.extend(self._engage(event))
        return out

    def advance(self, now_ms: int) -> list[Example]:
        """Moves event time and closes every window that has run out. Time never goes back."""
        self.watermark_ms = max(self.watermark_ms, now_ms)
        out: list[Example] = []
        while self._timers and self._timers[0][0] <= self.watermark_ms:
            due_ms, request_id = heapq.heappop(self._timers)
            opened = self._open[request_id]
            if opened.closed:
                del self._open[request_id]
            else:
                out.extend(self._close(opened, due_ms))
        return out

    def pending(self) -> int:
        """Impressions held, open or within the horizon."""
        return len(self._open)

    def pack(self) -> bytes:
        """The whole state, for the part's snapshot."""
        return _encoder.encode(
            _State(self._open, self._timers, self.watermark_ms, self.sequence, self.counts,
                   self._recent.export())
        )  # fmt: skip

    def restore(self, blob: bytes) -> None:
        """Continues from a packed state; raises msgspec.MsgspecError where it isn't one."""
        state = _decoder.decode(blob)
        self._open, self._timers = state.open, state.timers
        self.watermark_ms, self.sequence = state.watermark_ms, state.sequence
        self.counts = state.counts
        self._recent = Recent(100_000, state.recent)

    def _show(self, offset: int, impression: Impression) -> None:
        if impression.request_id in self._open:
            self.counts["repeats"] += 1
            return
        shown = self.config.all_shown
        items = [_Item([0.0] * len(self.labels), shown=shown) for _ in impression.items]
        self._open[impression.request_id] = _Open(offset, impression, items)
        due_ms = impression.time_ms + int(self.config.window_s * 1000)
        heapq.heappush(self._timers, (due_ms, impression.request_id))

    def _engage(self, engagement: Engagement) -> list[Example]:
        opened = self._open.get(engagement.request_id)
        index = None if opened is None else _find(opened.impression, engagement)
        if opened is None or index is None:
            self.counts["unmatched" if opened else "late"] += 1
            return []
        item = opened.items[index]
        item.shown = True
        if engagement.watch_ms is not None:
            item.watch_ms = max(item.watch_ms, engagement.watch_ms)
        if engagement.kind in self.labels:
            item.labels[self.labels.index(engagement.kind)] = 1.0
        if item.learned is None:
            ended = engagement.kind == "view" or opened.closed
            return [self._emit(opened, index, self.watermark_ms)] if ended else []
        if item.learned != item.labels:
            return [self._emit(opened, index, self.watermark_ms)]
        return []

    def _close(self, opened: _Open, due_ms: int) -> list[Example]:
        opened.closed = True
        out = []
        for index, item in enumerate(opened.items):
            if item.learned is None and item.shown:
                out.append(self._emit(opened, index, due_ms))
            elif not item.shown:
                self.counts["never_shown"] += 1
        horizon_ms = due_ms + int(self.config.horizon_s * 1000)
        heapq.heappush(self._timers, (horizon_ms, opened.impression.request_id))
        return out

    def _emit(self, opened: _Open, index: int, closed_ms: int) -> Example:
        impression, item = opened.impression, opened.items[index]
        served = impression.items[index]
        block = impression.features
        self.sequence += 1
        self.counts["corrections" if item.learned is not None else "examples"] += 1
        example = Example(
            partition=self.partition,
            offset=opened.offset,
            index=index,
            sequence=self.sequence,
            request_id=impression.request_id,
            user_id=impression.user_id,
            item_id=served.item_id,
            surface=impression.surface,
            shown_ms=impression.time_ms,
            closed_ms=closed_ms,
            labels=list(item.labels),
            watch_ms=item.watch_ms,
            correction=item.learned is not None,
            previous=item.learned or [],
            propensity=served.propensity,
            stamp=impression.stamp,
            features=one_item(block, index, len(impression.items)) if block else None,
        )
        item.learned = list(item.labels)
        return example


def _find(impression: Impression, engagement: Engagement) -> int | None:
    """The rank of the engagement's item; None where it wasn't served, or to somebody else."""
    if str(impression.user_id) != str(engagement.user_id):
        return None
    wanted = str(engagement.item_id)
    for index, served in enumerate(impression.items):
        if str(served.item_id) == wanted:
            return index
    return None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)
