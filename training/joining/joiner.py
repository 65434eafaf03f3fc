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

Labels still open when an example is emitted are told by ``arrived``, the share of each label that comes by
then (training/joining/delay.py); training/continual/open_labels.py learns by it. Of examples without any
engagement a share is kept (training/joining/sampling.py). One that was left out and gets an engagement later
is emitted then, and says so.

An engagement that doesn't say its request (the clients of other recommenders have none) is attributed to the
newest impression, of those whose window is open, that served its user the item. Where there is none it is
counted as unattributed: no example comes of it, only the session and the counters know it.

While its window is open, an impression is held whole. After it, all that is held is who did what with which
item, as packed bytes: few engagements come so late, and for each of them the impression is read again. Beyond
a cap, what is held goes to disk (training/joining/pending_impressions.py); it changes nothing of the result.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from recsys.config.system_config import JoinConfig
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import (
    MAX_FUTURE_MS,
    Engagement,
    Event,
    Impression,
    User,
    dedupe_key,
    dedupe_prefix,
)
from recsys.events.hashing import Id
from recsys.events.records import Example, Forget, served_by
from recsys.features.feature_set import item_block, item_predictions
from training.joining.delay import DelayState, LabelDelays
from training.joining.impression_state import (
    AFTER,
    BY_WINDOW,
    FORESEEN,
    NEVER,
    SAMPLED_OUT,
    SHOWN,
    Held,
    Open,
    new_state,
    rank_of,
    size_of,
)
from training.joining.pending_impressions import PendingImpressions, PendingState
from training.joining.sampling import is_kept
from training.joining.spill import Spill

Recall = Callable[[int], Impression | None]
Joined = Example | Forget
_RECENT: Final = 100_000  # events by whose ids repeats are known
_LOOKED: Final = 200  # newest open requests of a user that an engagement without one may be of
_LEFT: Final = 20_000  # impressions of which it is known that their horizon is over


class _State(msgspec.Struct, array_like=True):
    shelf: PendingState
    watermark_ms: int
    sequence: int
    counts: dict[str, int]
    recent: list[str]
    left: list[str]
    delays: DelayState
    opened: dict[str, list[str]] = {}


class Joiner:
    """The join of one partition. Feed it every event with its offset, in order.

    ``recall`` reads an impression again by its offset, None where it is gone: then its example is counted as
    ``lost``, and its sequence number is used up all the same. Without ``recall`` impressions are kept.
    ``spill`` takes what is beyond ``memory_bytes``; without one, all stays in memory.
    """

    def __init__(
        self,
        partition: int,
        labels: Sequence[str],
        config: JoinConfig,
        recall: Recall | None = None,
        spill: Spill | None = None,
        memory_bytes: int = 0,
    ) -> None:
        self.partition = partition
        self.labels = list(labels)
        self.config = config
        self.watermark_ms = 0
        self.sequence = 0
        self.counts = {"examples": 0, "corrections": 0, "late": 0, "unmatched": 0, "never_shown": 0,
                       "repeats": 0, "lost": 0, "sampled_out": 0, "attributed": 0,
                       "unattributed": 0}  # fmt: skip
        self._bits = {label: 1 << number for number, label in enumerate(self.labels)}
        self._lists: dict[int, list[float]] = {}  # labels by their bits
        self._window_ms = int(config.window_s * 1000)
        self._horizon_ms = int(config.horizon_s * 1000)
        self._delays = LabelDelays(len(self.labels), config.window_s, config.horizon_s)
        self._recall = recall
        self._shelf = PendingImpressions(recall is None, spill, memory_bytes)
        self._recent = RecentIds(_RECENT)
        self._left = RecentIds(_LEFT)
        self._opened: dict[str, list[str]] = {}  # requests whose window is open, by user, in order

    def feed(self, offset: int, event: Event) -> list[Joined]:
        """Takes one event; returns the examples and corrections that it brought about, in order."""
        out: list[Joined] = []
        self._move(event.time_ms, out)
        if isinstance(event, Engagement):
            if not self._recent.add(dedupe_key(event)):
                self.counts["repeats"] += 1
            elif event.request_id:
                self._engage(event, out)
            else:
                self._attribute(event, out)
        elif isinstance(event, Impression):
            # By its request: one that was told otherwise is a repeat too.
            if self._recent.add("\x1e" + event.request_id):
                self._show(offset, event)
            else:
                self.counts["repeats"] += 1
        elif isinstance(event, User) and event.removed:
            out.append(self._forget(offset, event.user_id))
        return out

    def advance(self, now_ms: int) -> list[Joined]:
        """Moves event time and closes every window that has run out. Time never goes back."""
        out: list[Joined] = []
        self._move(now_ms, out)
        return out

    def pending(self) -> int:
        """Impressions held, open or within the horizon."""
        return len(self._shelf)

    def spilled(self) -> int:
        """Of these, in the spill."""
        return self._shelf.spilled

    def memory(self) -> int:
        """About how many bytes of memory they take."""
        return self._shelf.bytes

    def oldest(self) -> int | None:
        """The lowest offset that an impression may have to be read again from; None where none is held."""
        return self._shelf.oldest()

    def pack(self) -> bytes:
        """The whole state, for the part's snapshot. The spill stays where it is, and is marked."""
        return _encoder.encode(
            _State(self._shelf.mark(), self.watermark_ms, self.sequence, self.counts,
                   self._recent.export(), self._left.export(), self._delays.state, self._opened)
        )  # fmt: skip

    def restore(self, blob: bytes) -> None:
        """Continues from a packed state. Raises msgspec.MsgspecError or ValueError where it isn't one, or not
        of these labels; SpillLost where its spilled rows aren't there."""
        state = _decoder.decode(blob)
        self._delays.restore(state.delays)
        self._shelf.restore(state.shelf)
        self.watermark_ms, self.sequence = state.watermark_ms, state.sequence
        self.counts |= state.counts  # one of before has fewer names
        self._opened = state.opened
        self._recent, self._left = RecentIds(_RECENT, state.recent), RecentIds(_LEFT, state.left)

    def _move(self, now_ms: int, out: list[Joined]) -> None:
        if now_ms > self.watermark_ms:
            self.watermark_ms = now_ms
            if now_ms >= self._delays.next_ms:
                self._delays.advance(now_ms)
        timers, spilled_ms = self._shelf.timers, self._shelf.next_ms
        if (timers and timers[0][0] <= self.watermark_ms) or (
            spilled_ms is not None and spilled_ms <= self.watermark_ms
        ):
            for due_ms, request_id in self._shelf.due(self.watermark_ms):
                if request_id in self._shelf.open:
                    self._close(request_id, due_ms, out)
                elif request_id in self._shelf.closed:  # else its user was forgotten
                    self._shelf.drop(request_id)
                    self._left.add(request_id)

    def _show(self, offset: int, impression: Impression) -> None:
        request_id = impression.request_id
        if self._shelf.has(request_id):
            self.counts["repeats"] += 1
            return
        held = new_state(offset, impression, self.config.all_shown)
        opened = Open(held, impression, size_of(impression))
        self._opened.setdefault(held.user_id, []).append(request_id)
        self._shelf.add(request_id, opened, impression.time_ms + self._window_ms)

    def _forget(self, offset: int, user_id: Id) -> Forget:
        """Lets go of all that is held of a user. Timers run out by themselves."""
        self._shelf.forget(str(user_id))
        self._opened.pop(str(user_id), None)
        self._recent.drop(dedupe_prefix(user_id))
        self.sequence += 1
        return Forget(
            partition=self.partition,
            offset=offset,
            sequence=self.sequence,
            user_id=user_id,
            closed_ms=self.watermark_ms,
        )

    def _attribute(self, engagement: Engagement, out: list[Joined]) -> None:
        """Joins an engagement that doesn't say its request. One that happened before an impression, by
        clocks that may differ by some seconds, isn't of it."""
        shelf, latest_ms = self._shelf, engagement.time_ms + MAX_FUTURE_MS
        opened = self._opened.get(str(engagement.user_id), [])
        for request_id in reversed(opened[-_LOOKED:]):
            shelf.reach(request_id)
            held = shelf.open[request_id].held
            if held.time_ms <= latest_ms and rank_of(held, engagement) is not None:
                self.counts["attributed"] += 1
                self._engage(msgspec.structs.replace(engagement, request_id=request_id), out)
                return
        self.counts["unattributed"] += 1

    def _engage(self, engagement: Engagement, out: list[Joined]) -> None:
        request_id, shelf = engagement.request_id, self._shelf
        opened = shelf.open.get(request_id)
        if opened is not None:
            held = opened.held
        else:
            shelf.reach(request_id)
            opened, packed = shelf.open.get(request_id), shelf.closed.get(request_id)
            if opened is None and packed is None:
                self.counts["late" if request_id in self._left else "unmatched"] += 1
                return
            held = opened.held if opened is not None else _held.decode(packed or b"")
        index = rank_of(held, engagement)
        if index is None:
            self.counts["unmatched"] += 1
            return
        self._note(held, index, engagement)
        if held.learned[index] != NEVER:
            due = held.learned[index] != held.labels[index]
        else:
            due = opened is None or engagement.kind == "view"
        if due and self._is_example(request_id, held, index, 0 if opened is not None else AFTER):
            impression = self._again(held) if opened is None else self._of_open(opened)
            ended_ms = engagement.time_ms if engagement.kind == "view" else 0
            self._emit(held, index, impression, (self.watermark_ms, ended_ms), out)
        if opened is None:
            shelf.change(request_id, held)

    def _note(self, held: Held, index: int, engagement: Engagement) -> None:
        held.marks[index] |= SHOWN
        if engagement.watch_ms is not None and engagement.watch_ms > held.watch_ms[index]:
            held.watch_ms[index] = engagement.watch_ms
        held.labels[index] |= self._bits.get(engagement.kind, 0)

    def _close(self, request_id: str, due_ms: int, out: list[Joined]) -> None:
        opened = self._shelf.open[request_id]
        held = opened.held
        for index, mark in enumerate(held.marks):
            if not mark & SHOWN:
                self.counts["never_shown"] += 1
            elif held.learned[index] == NEVER:
                if self._is_example(request_id, held, index, BY_WINDOW):
                    self._emit(held, index, self._of_open(opened), (due_ms, 0), out)
        self._shelf.close(request_id, due_ms + self._horizon_ms)
        of_user = self._opened.get(held.user_id, [])
        if request_id in of_user:  # not of a snapshot from before they were noted
            of_user.remove(request_id)
        if not of_user:
            self._opened.pop(held.user_id, None)

    def _of_open(self, opened: Open) -> Impression | None:
        if opened.impression is None:
            impression = self._again(opened.held)
            if impression is not None:
                self._shelf.whole_again(opened, impression)
        return opened.impression

    def _again(self, held: Held) -> Impression | None:
        """An impression that isn't in memory any more."""
        if self._recall is not None:
            return self._recall(held.offset)
        return self._shelf.impression_of(held)

    def _is_example(self, request_id: str, held: Held, index: int, way: int) -> bool:
        """Takes note of what an item's labels are now; False where sampling leaves its first example out.

        ``way``: how the example ended, where it is the first.
        """
        labels, learned, mark = held.labels[index], held.learned[index], held.marks[index]
        if learned != NEVER:
            if not mark & AFTER:
                by_window = 1 if mark & BY_WINDOW else 0
                self._delays.later(held.time_ms, by_window, labels & ~learned, self.watermark_ms)
            return True
        mark |= way
        if way != AFTER:
            by_window = 1 if way == BY_WINDOW else 0
            self._delays.first(held.time_ms, by_window, labels)
            mark |= self._delays.late_labels(by_window) << FORESEEN
        kept = labels or is_kept(request_id, index, self.config.negatives)
        if not kept:
            mark |= SAMPLED_OUT
            held.learned[index] = 0
            self.counts["sampled_out"] += 1
        held.marks[index] = mark
        return bool(kept)

    def _emit(
        self,
        held: Held,
        index: int,
        impression: Impression | None,
        times_ms: tuple[int, int],
        out: list[Joined],
    ) -> None:
        """The example of one item; none where its impression is gone. ``times_ms``: when it is emitted, and
        when the view ended that brings it about, or 0. Either way what follows is the same:
        whoever joins the events again, before or after it went, gives the same numbers."""
        labels, learned, mark = held.labels[index], held.learned[index], held.marks[index]
        held.learned[index] = labels
        sampled_out = mark & SAMPLED_OUT != 0
        again = learned != NEVER  # it was emitted before, or left out
        correction = again and not (sampled_out and learned == 0)
        self.sequence += 1
        if impression is None:
            self.counts["lost"] += 1
            return
        served, block = impression.items[index], impression.features
        self.counts["corrections" if correction else "examples"] += 1
        out.append(
            Example(
                partition=self.partition,
                offset=held.offset,
                index=index,
                sequence=self.sequence,
                request_id=impression.request_id,
                user_id=impression.user_id,
                item_id=served.item_id,
                surface=impression.surface,
                shown_ms=impression.time_ms,
                closed_ms=times_ms[0],
                view_ended_ms=times_ms[1],
                labels=self._labels(labels),
                watch_ms=held.watch_ms[index],
                correction=correction,
                previous=self._labels(learned) if again else [],
                propensity=served.propensity,
                stamp=impression.stamp,
                served_by=served_by(impression.stamp),
                predicted=item_predictions(impression, index),
                features=item_block(block, index, len(impression.items)) if block else None,
                arrived=self._arrived(mark, again),
                kept=self.config.negatives,
                sampled_out=sampled_out,
            )
        )

    def _arrived(self, mark: int, again: bool) -> list[float]:
        by_window = 1 if mark & BY_WINDOW else 0
        if not again:
            return self._delays.arrived(by_window) if mark >> FORESEEN else []
        # Once a share is known, negatives count for less: corrections of those from before don't fit in.
        late_labels = mark >> FORESEEN
        if not mark & AFTER:
            late_labels |= self._delays.late_labels(by_window)
        return [1.0 - label for label in self._labels(late_labels)] if late_labels else []

    def _labels(self, bits: int) -> list[float]:
        found = self._lists.get(bits)
        if found is None:
            found = [float(bits >> number & 1) for number in range(len(self.labels))]
            self._lists[bits] = found
        return found


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)
_held = msgspec.msgpack.Decoder(Held)
