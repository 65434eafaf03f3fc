"""Item counters: engagements of all viewers with an item, its author and tags, and with each per context.

The fold of impressions and engagements behind the `item_state` topic. An engagement takes its context and its
viewer's segment from the remembered requests; without them it still counts for the item itself. Events of a
quarantined user don't count, nor does what exceeds the bounds of influence (recsys/features/influence.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import CovisitConfig
from recsys.events.event_types import Engagement, Event, Impression, User, Verdict, Withdrawal
from recsys.events.hashing import Id, key_of
from recsys.events.withdrawal import counted, withdraws_event
from recsys.features.columns import CONTEXT, GLOBAL, PROFILE
from recsys.features.counters import amounts
from recsys.features.covisits import Visits
from recsys.features.families.operators import value_kinds
from recsys.features.feature_kernels import crossed
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.influence import Influences, ReadLists
from recsys.features.operator_state import VIEWERS, OperatorState
from recsys.features.session import PLAIN_LIST
from recsys.features.source_credits import SourceCredits

KeysOf = Callable[[Id], Keys]
REQUESTS: Final = 200_000
LIST_BYTES: Final = 100_000_000  # of keys of the newest lists that may be confirmed, or taken back
_CROSSES: Final = 20_000  # pairs whose crosses are kept: of a profile and an item most come once


class ItemCounters:
    """Folds events into counters of items, groups and their crosses with the context. ``tables``: how many
    such folds divide the limits of memory among them."""

    def __init__(
        self, features: FeatureSet, bounds: BoundsConfig | None = None, partitions: int = 1,
        covisits: CovisitConfig | None = None, tables: int = 1,
    ) -> None:  # fmt: skip
        self.features, self.visits = features, Visits(covisits or CovisitConfig(), tables)
        self.credits, self._requests = SourceCredits(tables), REQUESTS // tables
        self.influences = Influences(bounds, partitions, features.schema.kinds)
        self.readings = Influences(bounds, partitions)  # of lists without an engagement
        self.lists = ReadLists(LIST_BYTES // tables)
        self.quarantined: set[str] = set()
        self.counters = features.counter_table(1024)
        # Context, and segment of viewers with a profile, of the newest requests.
        self.context_by_request: OrderedDict[str, int] = OrderedDict()
        self.segment_by_request: OrderedDict[str, int] = OrderedDict()
        self._changed = set[int]()
        self._kinds = features.engagement_kinds
        self.segments = OrderedDict[int, int]()  # of viewers, by the key of their ids
        self._viewers = VIEWERS // tables
        self._has_lists = features.schema.shown_by == "impression"
        self.operators = OperatorState(features, tables=tables)
        self._tracks = bool(features.operators.tracked or features.operators.distinct)
        self._profile_slot = features.slot("profile")
        lefts = (CONTEXT, PROFILE, *features.lefts)
        self._crossed_columns = {left: crossed_columns(features, left) for left in lefts}
        alone = (e.left for e in features.entities if e.left and not e.right and not e.own)
        self._alone = frozenset(alone)
        sums = {value_kinds(kind, value)[0] for kind, value in features.declared.values}
        self._counts = [at for at, kind in enumerate(features.kinds) if kind not in sums]
        self._crosses: dict[tuple[str, int, bytes], tuple[int, ...]] = {}

    def impression(self, impression: Impression, items_NI: Keys, partition: int = 0) -> None:
        """Remembers the context, and where lists are shown as a whole the items, whose keys come from the
        catalogue: they count once an engagement confirms the list, or at once if it is ``shown``."""
        context = self.features.context_keys(impression.surface, impression.context)[0]
        self.context_by_request[impression.request_id] = context
        if len(self.context_by_request) > self._requests:
            self.segment_by_request.pop(self.context_by_request.popitem(last=False)[0], None)
        segment = self._profile(impression)
        if segment:
            self.segment_by_request[impression.request_id] = segment
        self.credits.remember(impression)
        self.operators.impression(impression)
        if self._has_lists and str(impression.user_id) not in self.quarantined:
            self.lists.add(impression, items_NI)
            if impression.shown:
                self._show(impression, partition)

    def engagement(self, engagement: Engagement, keys_I: Keys, partition: int = 0) -> None:
        """Counts an engagement with an item, whose keys (I,) come from the catalogue. ``partition``: of the
        event, since each has bounds of its own."""
        if not engagement.attributed or str(engagement.user_id) in self.quarantined:
            return
        influence = self.influences[partition]
        counts = engagement.kind in self._kinds and influence.counts(engagement)
        if self._has_lists and not influence.leaves_out(engagement):
            self._show(engagement, partition, int(keys_I[0]) if counts else 0)
        if counts:
            self._visit(engagement, keys_I, 1)
            self._count(engagement, keys_I, 1.0)

    def user(self, user: User, partition: int = 0) -> None:
        """Remembers the fields of a viewer that entities are crossed with, or forgets the viewer."""
        if user.removed:
            self.forget(user.user_id, partition)
        else:
            self.operators.user(user)
            self._remember_segment(user)

    def forget(self, user_id: Id, partition: int = 0) -> None:
        """Drops the account of a forgotten user."""
        self.quarantined.discard(str(user_id))
        self.influences[partition].forget(user_id)
        self.readings[partition].forget(user_id)
        self.visits.forget(user_id)
        self.operators.forget(user_id)
        self.segments.pop(key_of("user", user_id), None)

    def _remember_segment(self, user: User) -> None:
        """Remembers the segment of a viewer whose clicks may come without a list."""
        if self.features.schema.shown_by != "click":
            return
        key, profile = key_of("user", user.user_id), self.features.profile_keys(user.fields)
        self.segments.pop(key, None)
        if profile and user.fields.get("profiling") is not False:
            self.segments[key] = profile[0]
            if len(self.segments) > self._viewers:
                self.segments.popitem(last=False)

    def verdict(self, verdict: Verdict, before: Iterable[Event], keys_of: KeysOf, partition: int = 0) -> None:
        """Quarantines a user or ends it. The quarantine takes back what the user's events ``before`` it
        counted, which are those that are left, in order and each once."""
        user = str(verdict.user_id)
        if not verdict.quarantined or user in self.quarantined:
            if not verdict.quarantined:
                self.quarantined.discard(user)
            return
        withdrawal = Withdrawal(time_ms=verdict.time_ms, user_id=verdict.user_id, from_ms=0)
        self.withdraw(withdrawal, before, keys_of, partition)
        self.quarantined.add(user)

    def withdraw(
        self, withdrawal: Withdrawal, before: Iterable[Event], keys_of: KeysOf, partition: int = 0
    ) -> None:
        """Takes back what the events that a withdrawal names counted. ``before``: the user's events up to it
        that are left, in order and each once. Visits and contacts are counted anew from the others."""
        user, stays = withdrawal.user_id, list[Engagement]()
        self.visits.forget(user)  # so that the same pairs are taken back
        for event, moment_ms in self._counted(before, partition):
            goes = withdraws_event(withdrawal, event, moment_ms)
            if isinstance(event, Engagement):
                self._visit(event, keys_of(event.item_id), -1)
                if goes:
                    self._count(event, keys_of(event.item_id), -1.0)
                else:
                    stays.append(event)
            elif goes and isinstance(event, Impression):
                if (taken := self.lists.withdraw(event.request_id)) is not None:
                    self._count_shown(event.request_id, *taken, -1.0)
        self.visits.forget(user)
        self.mark_changed(self.operators.take_back(user, self.counters))
        for event in stays:
            keys_I = keys_of(event.item_id)
            self._visit(event, keys_I, 1)
            if self._tracks:
                halves = self._halves(event)
                self.mark_changed(self.operators.contact(event, keys_I, halves, self.counters))

    def _counted(self, before: Iterable[Event], partition: int) -> Iterator[tuple[Event, int]]:
        """Yields the events of a user that have counted and still do, with the newest time up to each."""
        influence, taken = self.influences[partition], set[tuple[Id, str]]()
        for event, moment_ms, counts in counted(before):
            if isinstance(event, Engagement):
                if not event.attributed or event.kind not in self._kinds:
                    continue
                if influence.bounds_event(event):
                    use = (event.item_id, event.kind)
                    if use in taken or not influence.counted(event):
                        continue
                    taken.add(use)
            if counts:
                yield event, moment_ms

    def take_changed(self) -> list[int]:
        """The keys changed since the last call, to be published on `item_state`."""
        changed = sorted(self._changed)
        self._changed.clear()
        self.operators.touched.clear()
        return changed

    def _show(self, reader: Impression | Engagement, partition: int, engaged: int = 0) -> None:
        shown = self.lists.confirm(reader, self.readings[partition], engaged)
        if shown is not None:
            self._count_shown(*shown, 1.0)

    def _count_shown(self, request_id: str, items_NI: Keys, now_ms: int, sign: float) -> None:
        context = self.context_by_request.get(request_id, 0)
        segment = self.segment_by_request.get(request_id, 0)
        shown = sign * self.features.shown
        lefts = self.operators.lefts(request_id)
        for keys_I in items_NI:
            self._add(keys_I, context, segment, shown, now_ms, lefts, sign)

    def _visit(self, engagement: Engagement, keys_I: Keys, sign: int) -> None:
        is_plain = engagement.request_id.startswith(PLAIN_LIST)  # of a viewer without a history
        if engagement.kind == self.features.main_labels[0] and not is_plain:
            self.visits.add(engagement.user_id, int(keys_I[0]), engagement.time_ms, sign)

    def _count(self, engagement: Engagement, keys_I: Keys, sign: float) -> None:
        kind = engagement.kind
        if kind == self.features.main_labels[0]:
            for keys, part in self.credits.of(engagement.request_id, int(keys_I[0])):
                label = np.float32(part) * amounts(self.features.kinds, kind)
                added = np.float32(sign) * (self.features.shown + label)
                self.counters.add(keys, added, engagement.time_ms)
                self.mark_changed(keys)
        added = self.features.amounts(engagement)
        if self.features.schema.shows(kind):
            added[0] += 1.0
        context, segment, lefts = self._about(engagement)
        added = np.float32(sign) * added
        self._add(keys_I, context, segment, added, engagement.time_ms, lefts, sign)
        if self._tracks:
            halves = {"": GLOBAL, CONTEXT: context, PROFILE: segment} | lefts
            fold = self.operators.engagement if sign > 0 else self.operators.withdraw
            self.mark_changed(fold(engagement, keys_I, halves, self.counters))

    def _about(self, engagement: Engagement) -> tuple[int, int, dict[str, int]]:
        """Context, segment and other halves of an engagement: of its request; of a click without a list those
        that a list of its own would have."""
        request_id, user_id = engagement.request_id, engagement.user_id
        if request_id or self.features.schema.shown_by != "click":
            context = self.context_by_request.get(request_id, 0)
            segment = self.segment_by_request.get(request_id, 0)
            return context, segment, self.operators.lefts(request_id)
        context = self.features.context_keys(engagement.surface, {})[0]
        segment = self.segments.get(key_of("user", user_id), 0)
        return context, segment, self.operators.lefts(request_id, user_id)

    def _halves(self, engagement: Engagement) -> dict[str, int]:
        """The other halves of an engagement's entities, by name; under "" that of all."""
        context, segment, lefts = self._about(engagement)
        return {"": GLOBAL, CONTEXT: context, PROFILE: segment} | lefts

    def _profile(self, impression: Impression) -> int:
        """The first key of the viewer's profile as served; 0 without a profile."""
        block, slot = impression.features, self._profile_slot
        if block is None or len(block.user_keys) < 8 * slot.stop:
            return 0
        return int(np.frombuffer(block.user_keys, np.int64, 1, 8 * slot.start)[0])

    def _add(
        self, keys_I: Keys, context: int, segment: int, added: NDArray[np.float32], now_ms: int,
        lefts: dict[str, int],
        sign: float,
    ) -> None:  # fmt: skip
        if not np.count_nonzero(added):  # a third of the time of ``any``
            return
        keys = self.counted_keys(keys_I, context, segment, lefts)
        self.counters.add(keys, added, now_ms)
        if sign < 0:  # the item may have had other groups when it was counted
            own, values, last_ms = self.counters.export(keys)
            counts = values.reshape(len(own), -1, self.counters.kinds)
            counts[..., self._counts] = counts[..., self._counts].clip(0)
            self.counters.set(own, values, last_ms)
        self.mark_changed(keys)

    def mark_changed(self, keys: Iterable[int]) -> None:
        """Has keys published whose counters changed."""
        self._changed.update(keys)

    def counted_keys(
        self, keys_I: Keys, context: int, segment: int, lefts: dict[str, int]
    ) -> tuple[int, ...]:
        """The keys of all counters of an event with an item, each once."""
        keys = (GLOBAL, *self.features.counted_keys(keys_I))
        if context:
            keys += (context, *self._crossed(CONTEXT, context, keys_I))
        if segment and segment != context:
            alone = (segment,) if PROFILE in self._alone else ()
            keys += alone + self._crossed(PROFILE, segment, keys_I)
        if lefts:
            for left, key in lefts.items():
                alone = (key,) if left in self._alone else ()
                keys += alone + self._crossed(left, key, keys_I)
            keys = tuple(dict.fromkeys(keys))  # the first field is also context or profile
        return keys

    def _crossed(self, left: str, key: int, keys_I: Keys) -> tuple[int, ...]:
        """The crosses of a context's or segment's key with one item, cached."""
        pair = (left, key, keys_I.tobytes())
        crosses = self._crosses.get(pair)
        if crosses is None:
            if len(self._crosses) >= _CROSSES:
                self._crosses.clear()
            columns = keys_I[self._crossed_columns[left]].tolist()
            keys = dict.fromkeys(crossed(key, right) for right in columns if right)
            crosses = self._crosses[pair] = tuple(keys)
        return crosses


def crossed_columns(features: FeatureSet, left: str) -> list[int]:
    """Item columns whose keys are counted crossed with the context, the segment or a named field. With
    the first two the item always is: sources of candidates read it."""
    rights = {"item"} if left in (CONTEXT, PROFILE) else set()
    rights |= {"duration"} if left == CONTEXT else set()
    rights |= {e.right for e in features.entities if e.left == left and e.right and not e.own}
    slots = [features.slot(name) for name in rights]
    return sorted(column for slot in slots for column in range(slot.start, slot.stop))


def segment_of(features: FeatureSet, user_U: Keys) -> int:
    """Segment of a viewer without history: the first field of the profile, or else the context."""
    profile = int(user_U[features.slot("profile").start])
    return profile or int(user_U[features.slot("context").start])
