"""Labels impressions with the engagements that follow them, in event time.

One joiner per partition, fed with that partition's events in offset order: a pure function of them. So after
a restart the same events give the same examples with the same sequence numbers, and what was already
appended is skipped by its sequence.

An example is emitted at the first of: its view ended, or its window closed. What the viewer does later emits
a correction, until the horizon; after that it is counted as late. What belongs to no impression that is known
is counted as unmatched. What was served but never shown (where the client names what was on screen) is
counted and is no negative. The joiner knows nothing of features: it cuts the block that the impression
carries.

Where a user's tombstone comes (a ``User`` that is removed), what is held of the user goes, and a ``Forget``
is emitted in the place of what would have followed: no example of theirs comes after it.

While its window is open, an impression is held whole. After it, all that is held is who did what with which
item, as packed bytes: few engagements come so late, and for each of them the impression is read again.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from recsys.config import JoinConfig
from recsys.dedupe import Recent
from recsys.events import Engagement, Event, Impression, User, decode, encode, repeat_key
from recsys.features import one_item
from recsys.hashing import Id
from recsys.records import Example, Forget

Recall = Callable[[int], Impression | None]
_RECENT: Final = 100_000  # events by whose ids repeats are known
_LEFT: Final = 20_000  # impressions of which it is known that their horizon is over
_NEVER: Final = -1
Joined = Example | Forget


class _Item(msgspec.Struct, array_like=True):
    """One served item on its way to an example. ``labels``: bit *l* is label *l*; ``learned``: those emitted
    last, ``_NEVER`` before the first example."""

    item_id: str
    labels: int = 0
    watch_ms: int = 0
    shown: bool = False
    learned: int = _NEVER


class _Held(msgspec.Struct, array_like=True):
    """What was done with an impression's items. ``kept``: the impression, where it can't be read again."""

    offset: int
    user_id: str
    items: list[_Item]
    kept: bytes = b""


class _HeldAt(msgspec.Struct, array_like=True):
    """All that is read of a packed ``_Held`` to know where its impression stands."""

    offset: int


class _Open(msgspec.Struct, array_like=True):
    """An impression whose window is open."""

    held: _Held
    impression: Impression


class _State(msgspec.Struct, array_like=True):
    open: dict[str, _Open]
    closed: dict[str, bytes]
    timers: list[tuple[int, str]]
    watermark_ms: int
    sequence: int
    counts: dict[str, int]
    recent: list[str]
    left: list[str]


class Joiner:
    """The join of one partition. Feed it every event with its offset, in order.

    ``recall`` reads an impression again by its offset, None where it is gone: then its example is counted as
    ``lost``, and its sequence number is used up all the same. Without ``recall`` impressions are kept.
    """

    def __init__(
        self,
        partition: int,
        labels: Sequence[str],
        config: JoinConfig,
        recall: Recall | None = None,
    ) -> None:
        self.partition = partition
        self.labels = list(labels)
        self.config = config
        self.watermark_ms = 0
        self.sequence = 0
        self.counts = {"examples": 0, "corrections": 0, "late": 0, "unmatched": 0,
                       "never_shown": 0, "repeats": 0, "lost": 0}  # fmt: skip
        self._recall = recall
        self._open: dict[str, _Open] = {}
        self._closed: dict[str, bytes] = {}  # packed _Held, until the horizon
        self._timers: list[tuple[int, str]] = []
        self._recent = Recent(_RECENT)
        self._left = Recent(_LEFT)

    def feed(self, offset: int, event: Event) -> list[Joined]:
        """Takes one event; returns the examples and corrections that it brought about, in order."""
        out: list[Joined] = [*self.advance(event.time_ms)]
        if isinstance(event, Impression | Engagement):
            if not self._recent.add(repeat_key(event)):
                self.counts["repeats"] += 1
            elif isinstance(event, Impression):
                self._show(offset, event)
            else:
                out.extend(self._engage(event))
        elif isinstance(event, User) and event.removed:
            out.append(self._forget(offset, event.user_id))
        return out

    def advance(self, now_ms: int) -> list[Example]:
        """Moves event time and closes every window that has run out. Time never goes back."""
        self.watermark_ms = max(self.watermark_ms, now_ms)
        out: list[Example] = []
        while self._timers and self._timers[0][0] <= self.watermark_ms:
            due_ms, request_id = heapq.heappop(self._timers)
            if request_id in self._open:
                out.extend(self._close(request_id, due_ms))
            elif self._closed.pop(request_id, None) is not None:  # else its user was forgotten
                self._left.add(request_id)
        return out

    def pending(self) -> int:
        """Impressions held, open or within the horizon."""
        return len(self._open) + len(self._closed)

    def oldest(self) -> int | None:
        """The lowest offset that an impression may have to be read again from; None where none is held."""
        closed = [_held_at.decode(packed).offset for packed in self._closed.values()]
        return min([opened.held.offset for opened in self._open.values()] + closed, default=None)

    def pack(self) -> bytes:
        """The whole state, for the part's snapshot."""
        return _encoder.encode(
            _State(self._open, self._closed, self._timers, self.watermark_ms, self.sequence,
                   self.counts, self._recent.export(), self._left.export())
        )  # fmt: skip

    def restore(self, blob: bytes) -> None:
        """Continues from a packed state; raises msgspec.MsgspecError where it isn't one."""
        state = _decoder.decode(blob)
        self._open, self._closed, self._timers = state.open, state.closed, state.timers
        self.watermark_ms, self.sequence = state.watermark_ms, state.sequence
        self.counts = state.counts
        self._recent, self._left = Recent(_RECENT, state.recent), Recent(_LEFT, state.left)

    def _show(self, offset: int, impression: Impression) -> None:
        request_id = impression.request_id
        if request_id in self._open or request_id in self._closed:
            self.counts["repeats"] += 1
            return
        shown = self.config.all_shown
        items = [_Item(str(served.item_id), shown=shown) for served in impression.items]
        held = _Held(offset, str(impression.user_id), items)
        self._open[request_id] = _Open(held, impression)
        due_ms = impression.time_ms + int(self.config.window_s * 1000)
        heapq.heappush(self._timers, (due_ms, request_id))

    def _engage(self, engagement: Engagement) -> list[Example]:
        request_id = engagement.request_id
        opened, packed = self._open.get(request_id), self._closed.get(request_id)
        if opened is None and packed is None:
            self.counts["late" if request_id in self._left else "unmatched"] += 1
            return []
        held = opened.held if opened is not None else _held.decode(packed or b"")
        index = _find(held, engagement)
        if index is None:
            self.counts["unmatched"] += 1
            return []
        item = held.items[index]
        self._note(item, engagement)
        ended = engagement.kind == "view" or opened is None
        due = ended if item.learned == _NEVER else item.learned != item.labels
        out = []
        if due:
            impression = opened.impression if opened is not None else self._again(held)
            out = self._emit(held, index, impression, self.watermark_ms)
        if opened is None:
            self._closed[request_id] = _encoder.encode(held)
        return out

    def _forget(self, offset: int, user_id: Id) -> Forget:
        """Lets go of all that is held of a user. Timers run out by themselves."""
        name = str(user_id)
        held = [request for request, its in self._open.items() if its.held.user_id == name]
        for request_id in held:
            del self._open[request_id]
        packed = self._closed.items()
        held = [request for request, its in packed if _held.decode(its).user_id == name]
        for request_id in held:
            del self._closed[request_id]
        self.sequence += 1
        return Forget(
            partition=self.partition,
            offset=offset,
            sequence=self.sequence,
            user_id=user_id,
            closed_ms=self.watermark_ms,
        )

    def _note(self, item: _Item, engagement: Engagement) -> None:
        item.shown = True
        if engagement.watch_ms is not None:
            item.watch_ms = max(item.watch_ms, engagement.watch_ms)
        if engagement.kind in self.labels:
            item.labels |= 1 << self.labels.index(engagement.kind)

    def _close(self, request_id: str, due_ms: int) -> list[Example]:
        opened = self._open.pop(request_id)
        held, out = opened.held, list[Example]()
        for index, item in enumerate(held.items):
            if item.learned == _NEVER and item.shown:
                out.extend(self._emit(held, index, opened.impression, due_ms))
            elif not item.shown:
                self.counts["never_shown"] += 1
        if self._recall is None:
            held.kept = encode(opened.impression)
        self._closed[request_id] = _encoder.encode(held)
        horizon_ms = due_ms + int(self.config.horizon_s * 1000)
        heapq.heappush(self._timers, (horizon_ms, request_id))
        return out

    def _again(self, held: _Held) -> Impression | None:
        """The impression of a window that is over."""
        if self._recall is not None:
            return self._recall(held.offset)
        impression = decode(held.kept)
        assert isinstance(impression, Impression)
        return impression

    def _emit(
        self, held: _Held, index: int, impression: Impression | None, closed_ms: int
    ) -> list[Example]:
        """The example of one item; none where its impression is gone. Either way what follows is the same:
        whoever joins the events again, before or after it went, gives the same numbers."""
        item = held.items[index]
        learned, item.learned = item.learned, item.labels
        correction = learned != _NEVER
        self.sequence += 1
        if impression is None:
            self.counts["lost"] += 1
            return []
        served, block = impression.items[index], impression.features
        self.counts["corrections" if correction else "examples"] += 1
        example = Example(
            partition=self.partition,
            offset=held.offset,
            index=index,
            sequence=self.sequence,
            request_id=impression.request_id,
            user_id=impression.user_id,
            item_id=served.item_id,
            surface=impression.surface,
            shown_ms=impression.time_ms,
            closed_ms=closed_ms,
            labels=self._labels(item.labels),
            watch_ms=item.watch_ms,
            correction=correction,
            previous=self._labels(learned) if correction else [],
            propensity=served.propensity,
            stamp=impression.stamp,
            features=one_item(block, index, len(impression.items)) if block else None,
        )
        return [example]

    def _labels(self, bits: int) -> list[float]:
        return [float(bits >> number & 1) for number in range(len(self.labels))]


def _find(held: _Held, engagement: Engagement) -> int | None:
    """The rank of the engagement's item; None where it wasn't served, or to somebody else."""
    if held.user_id != str(engagement.user_id):
        return None
    wanted = str(engagement.item_id)
    for index, item in enumerate(held.items):
        if item.item_id == wanted:
            return index
    return None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)
_held = msgspec.msgpack.Decoder(_Held)
_held_at = msgspec.msgpack.Decoder(_HeldAt)
