"""Labels impressions with the engagements that follow them, in event time.

There is one joiner per partition, fed with its events in offset order, and a pure function of them: after a
restart the same events give the same examples with the same sequence numbers.

An example is emitted when its view ends or its window closes, whichever is first. Later engagements emit
corrections until the horizon, and are counted as late after it.

``shown_by`` is that of the schema. With ``view`` an item is shown once an engagement names it. With
``impression`` an engagement shows the whole list, as does an impression that is ``shown``. With ``click`` a
label does, so that nothing comes of a list that was only read. A click is learned in a list of candidates
that was made for it, which a click in a served list names as its ``choice``; the examples of served lists are
``measured`` alone. Items that were served but never shown are counted and are no negatives.

A ``User`` with ``removed`` deletes the pending state of that user and emits a ``Forget`` in its place.

An example carries ``arrived``, the share of each label that comes by then (training/joining/delay.py).
Nothing is learned from a quarantined user, nor from an item whose engagements exceed the bounds of influence
(recsys/features/influence.py); items of a list that nobody engaged with are bounded in the same way, apart
from engagements. A ``Verdict`` that quarantines a user acts as a removal: it deletes the pending state, and
its ``Forget`` deletes the user's rows. A ``Withdrawal`` forbids to learn from what is pending of it, and
emits its mark.

Examples without engagements are sampled; a sampled-out one that gets an engagement later is emitted then, and
marked. An engagement without a request id is attributed to the newest impression with an open window that
served the item to its user; without one it yields no example.

An impression is held whole while its window is open, afterwards only its engagements, packed. Beyond a cap,
state goes to disk (training/joining/pending_impressions.py), without effect on the output.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from recsys.config.system_config import JoinConfig
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import (
    AGAIN,
    MAX_FUTURE_MS,
    SEEN,
    Engagement,
    Event,
    Impression,
    User,
    Verdict,
    Withdrawal,
    dedupe_key,
    dedupe_prefix,
)
from recsys.events.hashing import Id, key_of
from recsys.events.records import CLICK_LIST, Example, Forget, Withdrawn, served_by
from recsys.events.withdrawal import NO_REQUEST, withdraws_item
from recsys.features.influence import Influence, kind_bit
from recsys.features.request_features import item_block, item_predictions
from training.joining.choices import candidates_of, chosen_before
from training.joining.delay import DelayState, LabelDelays
from training.joining.impression_state import (
    AFTER,
    BOUNDED,
    BY_WINDOW,
    JUDGED,
    LATE_SHIFT,
    NEVER,
    SAMPLED_OUT,
    SHOWN,
    ImpressionState,
    OpenImpression,
    new_state,
    rank_of,
    size_of,
)
from training.joining.pending_impressions import (
    PendingImpressions,
    PendingState,
    decode_state,
    stored_impression,
)
from training.joining.sampling import is_kept
from training.joining.spill import Spill

Recall = Callable[[int], Impression | None]
Joined = Example | Forget | Withdrawn
_RECENT: Final = 100_000  # events whose ids are remembered to detect repeats
_LOOKED: Final = 200  # newest open requests of a user that are candidates for attribution
_EXPIRED: Final = 20_000  # impressions remembered after their horizon


class _State(msgspec.Struct, array_like=True):
    pending: PendingState
    watermark_ms: int
    sequence: int
    counts: dict[str, int]
    recent: list[str]
    expired: list[str]
    delays: DelayState
    opened: dict[str, list[str]]
    quarantined: list[str]
    influence: bytes
    readings: bytes


class _Place(NamedTuple):
    """An engagement's item in a pending impression. ``opened``: None once the window is over."""

    request_id: str
    rank: int
    state: ImpressionState
    opened: OpenImpression | None


class Joiner:
    """Joins one partition. Feed it every event with its offset, in order. ``recall`` reads an impression
    again by its offset; None if it is gone: its example is counted as ``lost``, and its sequence number is
    used up. Without ``recall`` impressions are stored. ``spill`` takes state beyond ``memory_bytes``.
    ``influence``: the bounds of its partition. ``shown_by``: when an item counts as shown."""

    def __init__(
        self, partition: int, labels: Sequence[str], config: JoinConfig,
        recall: Recall | None = None, spill: Spill | None = None, memory_bytes: int = 0,
        influence: Influence | None = None, shown_by: str = "view",
    ) -> None:  # fmt: skip
        self.partition = partition
        self.labels = list(labels)
        self.config = config
        self.watermark_ms = 0
        self.sequence = 0
        self.counts = {"examples": 0, "corrections": 0, "late": 0, "unmatched": 0, "never_shown": 0,
                       "repeats": 0, "lost": 0, "sampled_out": 0, "attributed": 0,
                       "unattributed": 0, "unproven": 0, "bounded": 0,
                       "quarantined": 0, "withdrawn": 0}  # fmt: skip
        self.influence = influence or Influence()
        self._readings = self.influence.like()
        self._shows_lists, self._has_choices = shown_by == "impression", shown_by == "click"
        self.quarantined: set[str] = set()
        self._bits = {label: 1 << number for number, label in enumerate(self.labels)}
        self._kinds = {label: kind_bit(label) for label in self.labels}
        self._lists: dict[int, list[float]] = {}  # labels by their bits
        self._window_ms = int(config.window_s * 1000)
        self._horizon_ms = int(config.horizon_s * 1000)
        self._delays = LabelDelays(len(self.labels), config.window_s, config.horizon_s)
        self._recall = recall
        self.impressions = PendingImpressions(recall is None, spill, memory_bytes)
        self._recent = RecentIds(_RECENT)
        self._expired = RecentIds(_EXPIRED)
        self._opened: dict[str, list[str]] = {}  # requests with an open window, by user, in order

    def feed(self, offset: int, event: Event) -> list[Joined]:
        """Takes one event; returns the resulting examples and corrections, in order."""
        out: list[Joined] = []
        if isinstance(event, Engagement) and not event.attributed:
            # Its time doesn't count either: nobody may close windows without proof.
            self.counts["repeats" if event.proof == AGAIN else "unproven"] += 1
            return out
        self._move(event.time_ms, out)
        if isinstance(event, Verdict):
            self._judge(offset, event, out)
        elif isinstance(event, Withdrawal):
            out.append(self._withdraw(offset, event))
        elif isinstance(event, Engagement | Impression) and str(event.user_id) in self.quarantined:
            self.counts["quarantined"] += 1
        elif isinstance(event, Engagement):
            if not self._recent.add(dedupe_key(event)):
                self.counts["repeats"] += 1
            else:
                self._engage(event, out)
        elif isinstance(event, Impression):
            # By request id alone: a second impression of a request is a repeat even if it differs.
            if self._recent.add("\x1e" + event.request_id):
                self._show(offset, event)
            else:
                self.counts["repeats"] += 1
        elif isinstance(event, User) and event.removed:
            self.influence.forget(event.user_id)
            self._readings.forget(event.user_id)
            self.quarantined.discard(str(event.user_id))
            out.append(self._forget(offset, event.user_id))
        return out

    def advance(self, now_ms: int) -> list[Joined]:
        """Advances event time and closes expired windows. Time never goes back."""
        out: list[Joined] = []
        self._move(now_ms, out)
        return out

    def pack(self) -> bytes:
        """The state for the part's snapshot. The content of the spill stays there and is marked."""
        return _encoder.encode(
            _State(self.impressions.mark(), self.watermark_ms, self.sequence, self.counts,
                   self._recent.export(), self._expired.export(), self._delays.state, self._opened,
                   sorted(self.quarantined), self.influence.pack(), self._readings.pack())
        )  # fmt: skip

    def restore(self, blob: bytes) -> None:
        """Continues from a packed state. Raises ValueError (or msgspec's) if it is none, or one of other
        labels; SpillLost if its spilled rows are missing."""
        state = _decoder.decode(blob)
        self._delays.restore(state.delays)
        self.impressions.restore(state.pending)
        self.watermark_ms, self.sequence = state.watermark_ms, state.sequence
        self.counts |= state.counts
        self._opened = state.opened
        self.quarantined = set(state.quarantined)
        self.influence.restore(state.influence)
        self._readings.restore(state.readings)
        self._recent = RecentIds(_RECENT, state.recent)
        self._expired = RecentIds(_EXPIRED, state.expired)

    def _move(self, now_ms: int, out: list[Joined]) -> None:
        if now_ms > self.watermark_ms:
            self.watermark_ms = now_ms
            if now_ms >= self._delays.next_ms:
                self._delays.advance(now_ms)
        timers, spilled_ms = self.impressions.timers, self.impressions.next_ms
        is_spilled_due = spilled_ms is not None and spilled_ms <= self.watermark_ms
        if is_spilled_due or (timers and timers[0][0] <= self.watermark_ms):
            for due_ms, request_id in self.impressions.due(self.watermark_ms):
                if request_id in self.impressions.open:
                    self._close(request_id, due_ms, out)
                elif request_id in self.impressions.closed:  # else its user was forgotten
                    self.impressions.drop(request_id)
                    self._expired.add(request_id)

    def _show(self, offset: int, impression: Impression) -> None:
        request_id = impression.request_id
        if self.impressions.has(request_id):
            self.counts["repeats"] += 1
            return
        state = new_state(offset, impression)
        opened = OpenImpression(state, impression, size_of(impression))
        self._opened.setdefault(state.user_id, []).append(request_id)
        self.impressions.add(request_id, opened, impression.time_ms + self._window_ms)
        if impression.shown and self._shows_lists:
            self._confirm(state, impression)

    def _forget(self, offset: int, user_id: Id) -> Forget:
        """Deletes the state of a user. Timers expire without effect."""
        self.impressions.forget(str(user_id))
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

    def _judge(self, offset: int, verdict: Verdict, out: list[Joined]) -> None:
        if verdict.quarantined:
            self.quarantined.add(str(verdict.user_id))
            out.append(self._forget(offset, verdict.user_id))
        else:
            self.quarantined.discard(str(verdict.user_id))

    def _withdraw(self, offset: int, withdrawal: Withdrawal) -> Withdrawn:
        """Forbids to learn from the items that a withdrawal names and that are pending, as bounds do."""
        pending, requests, user_id = self.impressions, withdrawal.requests, str(withdrawal.user_id)
        is_named = requests and NO_REQUEST not in requests
        for request_id in requests if is_named else pending.requests_of(user_id):
            pending.load(request_id)
            opened, packed = pending.open.get(request_id), pending.closed.get(request_id)
            if opened is None and packed is None:
                continue
            state = opened.state if opened is not None else decode_state(packed or b"")
            if state.user_id != user_id:
                continue
            for index, item_id in enumerate(state.item_ids):
                if withdraws_item(requests, request_id, item_id):
                    self.counts["withdrawn"] += not state.marks[index] & BOUNDED
                    state.marks[index] |= JUDGED | BOUNDED
            if opened is None:
                pending.update(request_id, state)
        self.sequence += 1
        return Withdrawn(
            partition=self.partition, offset=offset, sequence=self.sequence,
            user_id=withdrawal.user_id, closed_ms=self.watermark_ms, from_ms=withdrawal.from_ms,
            requests=requests,
        )  # fmt: skip

    def _is_bounded(self, state: ImpressionState, index: int, engagement: Engagement) -> bool:
        """Whether an item isn't learned from, as its first engagement decides."""
        if not state.marks[index] & JUDGED and self.influence.bounds_event(engagement):
            state.marks[index] |= JUDGED
            if not self.influence.admits(engagement):
                state.marks[index] |= BOUNDED
                self.counts["bounded"] += 1
        return bool(state.marks[index] & BOUNDED)

    def _has_room(self, labels: int, kind: str) -> bool:
        engaged = sum(self._kinds[label] for label, bit in self._bits.items() if labels & bit)
        return self.influence.has_room(engaged, kind)

    def _engage(self, engagement: Engagement, out: list[Joined]) -> None:
        """Joins an engagement with its list, or without a request id with the newest that isn't later, but
        for clock differences. Where it has a list of candidates, it is learned in that one."""
        request_id = engagement.request_id
        place = self._place(request_id, engagement) if request_id else self._newest(engagement)
        if place is not None and request_id and not self._has_choices:
            self._engage_at(place, engagement, out)
            return
        before = "" if place is None else place.state.choices.get(place.rank, "")
        choice = before or engagement.choice or ""
        candidates = self._place(choice, engagement) if choice else None
        if place is None and candidates is None:
            fault = "late" if request_id in self._expired else "unmatched"
            self.counts[fault if request_id else "unattributed"] += 1
            return
        self.counts["attributed"] += not request_id and place is not None
        if place is not None:
            if candidates is not None:
                place.state.choices[place.rank] = choice
            if not self._engage_at(place, engagement, out):
                return
        if candidates is not None:
            if place is not None:  # the bounds were asked there
                candidates.state.marks[candidates.rank] |= JUDGED
            self._engage_at(candidates, engagement, out)

    def _newest(self, engagement: Engagement) -> _Place | None:
        """Place of an engagement that names no list, in one that was served."""
        latest_ms = engagement.time_ms + MAX_FUTURE_MS
        opened = self._opened.get(str(engagement.user_id), [])
        for request_id in reversed(opened[-_LOOKED:]):
            is_choice = request_id.startswith(CLICK_LIST) and bool(engagement.choice)
            place = None if is_choice else self._place(request_id, engagement)
            if place is not None and place.state.time_ms <= latest_ms:
                return place
        return None

    def _place(self, request_id: str, engagement: Engagement) -> _Place | None:
        """Place of an engagement in a list; None if it is gone, another user's, or without the item."""
        pending = self.impressions
        pending.load(request_id)
        opened, packed = pending.open.get(request_id), pending.closed.get(request_id)
        if opened is None and packed is None:
            return None
        state = opened.state if opened is not None else decode_state(packed or b"")
        index = rank_of(state, engagement)
        return None if index is None else _Place(request_id, index, state, opened)

    def _engage_at(self, place: _Place, engagement: Engagement, out: list[Joined]) -> bool:
        """Notes an engagement with an item of a list; False if the bounds of influence leave it out."""
        request_id, index, state, opened = place
        is_label = engagement.kind in self._bits
        is_seen = not is_label and engagement.kind == SEEN
        is_bounded = not is_seen and self._is_bounded(state, index, engagement)
        if is_label or not (self._has_choices or is_seen):
            state.marks[index] |= SHOWN
        if is_bounded:
            if opened is None:
                self.impressions.update(request_id, state)
            return False
        if engagement.watch_ms is not None and engagement.watch_ms > state.watch_ms[index]:
            state.watch_ms[index] = engagement.watch_ms
        if not state.marks[index] & JUDGED or self._has_room(state.labels[index], engagement.kind):
            state.labels[index] |= self._bits.get(engagement.kind, 0)
        if state.learned[index] != NEVER:
            due = state.learned[index] != state.labels[index]
        else:
            due = opened is None or engagement.kind == "view"
        due = due and state.marks[index] & SHOWN != 0
        if due and self._is_example(request_id, state, index, 0 if opened is not None else AFTER):
            impression = self._impression_at(place)
            ended_ms = engagement.time_ms if engagement.kind == "view" else 0
            self._emit(state, index, impression, (self.watermark_ms, ended_ms), out)
        if self._shows_lists or (self._has_choices and is_label):
            # Candidates weren't read by anybody.
            if request_id.startswith(CLICK_LIST):
                self._confirm(state, taken=self._taken_beside(place))
            else:
                self._confirm(state, engagement)
            self._show_late(place, out)
        if opened is None:
            self.impressions.update(request_id, state)
        return True

    def _taken_beside(self, place: _Place) -> set[str]:
        """Items that the viewer took in their other open lists of candidates. Those that have this item as
        another candidate no longer do: items of a basket are no alternatives to each other."""
        request_id, index, state, _ = place
        taken, item_id = set[str](), state.item_ids[index]
        for other in self._opened.get(state.user_id, [])[-_LOOKED:]:
            if other == request_id or not other.startswith(CLICK_LIST):
                continue
            self.impressions.load(other)
            if (opened := self.impressions.open.get(other)) is None:
                continue
            beside = opened.state
            for at, name in enumerate(beside.item_ids):
                if beside.labels[at]:
                    taken.add(name)
                elif name == item_id and beside.learned[at] == NEVER:
                    beside.marks[at] &= ~SHOWN
        return taken

    def _confirm(
        self,
        state: ImpressionState,
        reader: Engagement | Impression | None = None,
        taken: Collection[str] = (),
    ) -> None:
        """Shows a list as a whole, once, but for items ``taken`` elsewhere; of ``reader`` only as much as the
        bounds of influence admit."""
        if state.confirmed:
            return
        state.confirmed = True
        for index, item_id in enumerate(state.item_ids):
            if state.marks[index] & SHOWN or item_id in taken:
                continue
            if reader is None or self._readings.admits_item(reader, key_of("item", item_id)):
                state.marks[index] |= SHOWN
            else:
                self.counts["bounded"] += 1

    def _show_late(self, place: _Place, out: list[Joined]) -> None:
        """Emits the shown items of a list whose window was over before they were shown."""
        request_id, _, state, opened = place
        if opened is not None:
            return
        due = [
            index
            for index, mark in enumerate(state.marks)
            if mark & SHOWN and not mark & BOUNDED and state.learned[index] == NEVER
        ]
        impression = self._impression_at(place) if due else None
        for index in due:
            if self._is_example(request_id, state, index, AFTER):
                self._emit(state, index, impression, (self.watermark_ms, 0), out)

    def _close(self, request_id: str, due_ms: int, out: list[Joined]) -> None:
        opened = self.impressions.open[request_id]
        state = opened.state
        for index, mark in enumerate(state.marks):
            if mark & BOUNDED:
                continue
            if not mark & SHOWN:
                self.counts["never_shown"] += 1
            elif state.learned[index] == NEVER:
                if self._is_example(request_id, state, index, BY_WINDOW):
                    self._emit(state, index, self._impression_of(opened), (due_ms, 0), out)
        self.impressions.close(request_id, due_ms + self._horizon_ms)
        of_user = self._opened.get(state.user_id, [])
        if request_id in of_user:  # older snapshots don't list it
            of_user.remove(request_id)
        if not of_user:
            self._opened.pop(state.user_id, None)

    def _impression_at(self, place: _Place) -> Impression | None:
        if place.opened is not None:
            return self._impression_of(place.opened)
        return self._read_again(place.state)

    def _impression_of(self, opened: OpenImpression) -> Impression | None:
        if opened.impression is None:
            impression = self._read_again(opened.state)
            if impression is not None:
                self.impressions.set_impression(opened, impression)
        return opened.impression

    def _read_again(self, state: ImpressionState) -> Impression | None:
        """Reads an impression that left memory."""
        if self._recall is not None:
            return self._recall(state.offset)
        return stored_impression(state)

    def _is_example(self, request_id: str, state: ImpressionState, index: int, way: int) -> bool:
        """Records an item's labels; False if sampling drops its first example, which ended in a ``way``."""
        labels, learned, mark = state.labels[index], state.learned[index], state.marks[index]
        if self._has_choices and not request_id.startswith(CLICK_LIST):  # measured alone
            return True
        if learned != NEVER:
            if not mark & AFTER:
                by_window = 1 if mark & BY_WINDOW else 0
                self._delays.later(state.time_ms, by_window, labels & ~learned, self.watermark_ms)
            return True
        mark |= way
        if way != AFTER:
            by_window = 1 if way == BY_WINDOW else 0
            self._delays.first(state.time_ms, by_window, labels)
            mark |= self._delays.late_labels(by_window) << LATE_SHIFT
        is_example = labels != 0 or is_kept(request_id, index, self.config.negatives)
        if not is_example:
            mark |= SAMPLED_OUT
            state.learned[index] = 0
            self.counts["sampled_out"] += 1
        state.marks[index] = mark
        return is_example

    def _emit(
        self, state: ImpressionState, index: int, impression: Impression | None,
        times_ms: tuple[int, int], out: list[Joined],
    ) -> None:  # fmt: skip
        """Emits the example of one item, unless its impression is gone, which changes no later output or
        number. ``times_ms``: of emission, and of the view end that causes it, or 0."""
        labels, learned, mark = state.labels[index], state.learned[index], state.marks[index]
        state.learned[index] = labels
        sampled_out = mark & SAMPLED_OUT != 0
        again = learned != NEVER  # emitted or sampled out before
        correction = again and not (sampled_out and learned == 0)
        self.sequence += 1
        if impression is None:
            self.counts["lost"] += 1
            return
        is_liked = labels & 1 and (not again or not learned & 1)
        is_measured = self._has_choices and not impression.request_id.startswith(CLICK_LIST)
        served, block = impression.items[index], None if is_measured else impression.features
        self.counts["corrections" if correction else "examples"] += 1
        choice = b""
        if not self._has_choices:
            choice = chosen_before(state, index, impression) if block and is_liked else b""
        elif impression.choice is not msgspec.UNSET and (is_liked or not again):
            choice = candidates_of(impression.choice, index)
        example = Example(
            partition=self.partition, offset=state.offset, index=index, sequence=self.sequence,
            request_id=impression.request_id, user_id=impression.user_id, item_id=served.item_id,
            surface=impression.surface, shown_ms=impression.time_ms, closed_ms=times_ms[0],
            view_ended_ms=times_ms[1], labels=self._labels(labels), watch_ms=state.watch_ms[index],
            correction=correction, previous=self._labels(learned) if again else [],
            propensity=served.propensity, stamp=impression.stamp,
            served_by=served_by(impression.stamp), predicted=item_predictions(impression, index),
            features=item_block(block, index, len(impression.items)) if block else None,
            arrived=self._arrived(mark, again), sampling_rate=self.config.negatives,
            sampled_out=sampled_out, measured=True if is_measured else msgspec.UNSET,
            choice=choice,
        )  # fmt: skip
        out.append(example)

    def _arrived(self, mark: int, again: bool) -> list[float]:
        by_window, late = 1 if mark & BY_WINDOW else 0, (mark & JUDGED - 1) >> LATE_SHIFT
        if not again:
            return self._delays.arrived(by_window) if late else []
        # Once F is known, negatives are weighted down: corrections of earlier ones don't fit in.
        if not mark & AFTER:
            late |= self._delays.late_labels(by_window)
        return [1.0 - label for label in self._labels(late)] if late else []

    def _labels(self, bits: int) -> list[float]:
        if bits not in self._lists:
            self._lists[bits] = [float(bits >> n & 1) for n in range(len(self.labels))]
        return self._lists[bits]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)
