"""Session state of one user, folded from that user's events.

It holds the profile, the recent history with outcomes, running counters by author, tag and duration, and the
seen and hidden items. It packs into one blob, which a request reads in one round trip, and carries the next
log offset: earlier events are skipped.
"""

import struct
from collections import deque
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from recsys.events.event_types import SEEN, USER_PROVEN, Engagement, Impression, Preference, User
from recsys.events.field_schema import spellings_of
from recsys.events.hashing import Id, digest_of, key_of
from recsys.features.columns import CONTEXT, USER, VIEWER
from recsys.features.counters import CounterTable
from recsys.features.families.operators import bounded
from recsys.features.families.request_numbers import own_numbers
from recsys.features.feature_set import FeatureSet, Floats, Keys

COUNTER_ROWS: Final = 400
REQUESTS: Final = 24  # requests whose context is remembered for their engagements
READ: Final = 6  # newest lists that may still be confirmed as shown
READ_BYTES: Final = 20_000  # of their items' keys, but for the newest
WISHES: Final = 500
HIDDEN: Final = 500  # more where more seen items are remembered
NOBODY: Final = ""  # user id of a session without a profile: it has no row of its own
PLAIN: Final = -1  # in place of a context: the list was made without a profile
PLAIN_LIST: Final = "plain-"  # beginning of the id of such a list, by request or profile
_VIEWER: Final = np.array([VIEWER], np.int64)
_RECENCY_MS: Final = 3_600_000.0


class Entry(msgspec.Struct, gc=False):
    """One item in the history: its keys (H,), outcomes by label, watch time, and when."""

    request_id: str
    keys: list[int]
    outcomes: list[float]
    watch_ms: int
    time_ms: int


class _More(msgspec.Struct, array_like=True):
    """State of operators, and of lists that nobody has confirmed. Written as a tuple, without an empty
    ``read``."""

    fields: list[int]
    numbers: list[float]
    lefts: list[tuple[str, list[int]]]
    read: dict[str, bytes] = {}


class _Packed(msgspec.Struct, omit_defaults=True):
    user_id: Id
    offset: int
    last_ms: int
    events: int
    profile: list[int]
    history: list[Entry]
    requests: list[tuple[str, int]]
    seen: list[int]
    hidden: list[int]
    keys: bytes
    values: bytes
    times: bytes
    wishes: list[tuple[int, str]] = []
    plain: bool = False
    # Together: with more than 15 fields a blob has a longer header, and those of feature sets without
    # operators must keep their digests.
    operators: _More | None = None


class Session:
    """The fold of one user's events. ``offset`` is the next log offset to fold."""

    def __init__(self, user_id: Id, features: FeatureSet, seen: int = 500) -> None:
        self.user_id = user_id
        self.features = features
        self.offset = 0
        self.digest = ""  # of the unpacked blob; empty for a session folded in this process
        self.last_ms = 0
        self.events = 0  # engagements folded
        self.profile: list[int] = []  # features are the first PROFILE_WIDTH; safety rules see all
        self.history: deque[Entry] = deque(maxlen=max(1, features.history))
        self.requests: deque[tuple[str, int]] = deque(maxlen=REQUESTS)
        self.seen: deque[int] = deque(maxlen=seen)
        # Lists that nobody has confirmed: keys of their items, int64 (N, I), by request.
        self.read: dict[str, bytes] = {}
        self.wishes: dict[int, str] = {}  # block, mute or less, by the key of an item or of a value
        self.fields: list[int] = []  # of ``FeatureSet.user_fields``
        self.numbers: list[float] = []  # declared ones of the profile
        self.evicted = 0  # counter rows, since this object was made
        self.plain = False  # whether the viewer's profile says that they don't want to be profiled

    # Made when they are needed: an empty deque takes as much memory as fifty entries.

    @cached_property
    def hidden(self) -> deque[int]:
        """Keys of hidden items, oldest first."""
        return deque(maxlen=max(self.seen.maxlen or 0, HIDDEN))

    @cached_property
    def lefts(self) -> deque[tuple[str, list[int]]]:
        """Other halves of declared entities, by request."""
        return deque(maxlen=REQUESTS)

    @cached_property
    def counters(self) -> CounterTable:
        """Running counters of the viewer."""
        return self.features.counter_table()

    def fold_user(self, user: User) -> None:
        self.profile = self.features.profile_keys(user.fields, most=None)
        self.fields = self.features.user_field_keys(user.fields)
        self.numbers = own_numbers(self.features, USER, user.fields)
        self.plain = user.fields.get("profiling") is False

    def fold_preference(self, preference: Preference) -> None:
        """Keeps the viewer's newest wish about an item or a value; beyond ``WISHES`` the oldest go."""
        item = preference.field == "item_id"
        slot, value = "item" if item else f"item.{preference.field}", str(preference.value)
        for text in (value,) if item else spellings_of(value):
            self.wishes.pop(key := key_of(slot, text), None)
            if preference.wish != "none":
                self.wishes[key] = preference.wish
        while len(self.wishes) > WISHES:
            del self.wishes[next(iter(self.wishes))]

    def wished(self, *wishes: str) -> Keys:
        """Keys of items and values with one of some wishes, ascending."""
        return np.array(sorted(k for k, wish in self.wishes.items() if wish in wishes), np.int64)

    def without_profile(self) -> "Session":
        """A session of nobody with what this viewer must not see: hidden and seen items, and wishes."""
        nobody = Session(NOBODY, self.features, self.seen.maxlen or 0)
        nobody.offset, nobody.digest = self.offset, self.digest
        nobody.seen, nobody.hidden, nobody.wishes = self.seen, self.hidden, self.wishes
        nobody.profile, nobody.plain = self.profile, True
        return nobody

    def fold_impression(self, impression: Impression, items_NI: Keys) -> None:
        """Remembers the request's context; if lists are shown as a whole, counts the items as shown, at once
        where the impression says so, else once an engagement confirms the list."""
        request_id = impression.request_id
        if impression.inputs is not None and impression.inputs.plain:
            self.requests.append((request_id, PLAIN))
        else:
            context = self.features.context_keys(impression.surface, impression.context)[0]
            self.requests.append((request_id, context))
            if self.features.lefts:
                lefts = self.features.left_keys(self.fields, impression.context)
                self.lefts.append((request_id, list(lefts)))
            self.last_ms = max(self.last_ms, impression.time_ms)
        if self.features.schema.shown_by != "impression":
            return
        if impression.shown:
            self._show(request_id, items_NI, impression.time_ms)
            return
        self.read[request_id] = items_NI.tobytes()
        while len(self.read) > 1 and (
            len(self.read) > READ or sum(map(len, self.read.values())) > READ_BYTES
        ):
            del self.read[next(iter(self.read))]

    def _show(self, request_id: str, items_NI: Keys, now_ms: int) -> None:
        """Counts the items of a list as shown, and has them enter the history."""
        context = next((c for r, c in reversed(self.requests) if r == request_id), 0)
        if context == PLAIN:
            for item in items_NI[:, 0].tolist():
                self._see(item)
            return
        own_keys = self._own_keys(self._halves(request_id, context))
        for keys_I in items_NI:
            self._count(keys_I, own_keys, self.features.shown, now_ms)
            self._enter(request_id, keys_I, now_ms, "")

    def fold_engagement(self, engagement: Engagement, keys_I: Keys) -> None:
        """Folds an engagement with one item, whose keys (I,) come from the catalogue. Without an attribution
        only the viewer's own wish to hide the item counts."""
        now_ms, kind = engagement.time_ms, engagement.kind
        if not engagement.attributed:
            if engagement.proof == USER_PROVEN and kind == "hide":
                self.hidden.append(int(keys_I[0]))
            return
        if (read := self.read.get(engagement.request_id)) is not None:
            items_NI = np.frombuffer(read, np.int64).reshape(-1, len(keys_I))
            if keys_I[0] in items_NI[:, 0]:
                del self.read[engagement.request_id]
                self._show(engagement.request_id, items_NI, now_ms)
        if kind == SEEN and kind not in self.features.schema.kinds:
            return
        # A click without a list is as one whose own list was made for it.
        is_lone = not engagement.request_id and self.features.schema.shown_by == "click"
        if is_lone:
            context = self.features.context_keys(engagement.surface, {})[0]
        else:
            requests = reversed(self.requests)
            context = next((c for r, c in requests if r == engagement.request_id), 0)
        is_plain = engagement.request_id.startswith(PLAIN_LIST)  # may be older than ``REQUESTS``
        if is_plain or context == PLAIN or self.plain:
            self._see(int(keys_I[0]))
            if kind == "hide":
                self.hidden.append(int(keys_I[0]))
            return
        halves = self._halves(engagement.request_id, context, is_lone)
        own_keys = self._own_keys(halves)
        if self.features.schema.shows(kind):
            self._count(keys_I, own_keys, self.features.shown, now_ms)
        if kind in self.features.engagement_kinds:
            self._count(keys_I, own_keys, self.features.amounts(engagement), now_ms)
            self._track(engagement, keys_I, halves)
        entry = self._enter(engagement.request_id, keys_I, now_ms, kind)
        if entry is not None and kind in self.features.schema.labels:
            entry.outcomes[self.features.schema.labels.index(kind)] = 1.0
        if entry is not None and engagement.watch_ms is not None:
            entry.watch_ms = max(entry.watch_ms, engagement.watch_ms)
        if kind == "hide":
            self.hidden.append(int(keys_I[0]))
        self.last_ms = max(self.last_ms, now_ms)
        self.events += 1

    def read_history(self, now_ms: int) -> tuple[Keys, Floats]:
        """Keys int64 (T, H) and outcomes float32 (T, O), newest first, padded with zeros."""
        length, labels = self.features.history_length, len(self.features.schema.labels)
        keys = np.zeros((length, self.features.history_keys), np.int64)
        outcomes = np.zeros((length, self.features.outcomes), np.float32)
        newest = list(self.history)[::-1][:length]
        if newest:
            n = len(newest)
            # By struct: it reads numbers of lists twice as fast as numpy.
            each = chain.from_iterable([entry.keys for entry in newest])
            packed = struct.pack(f"{n * self.features.history_keys}q", *each)
            keys[:n] = np.frombuffer(packed, np.int64).reshape(n, -1)
            happened = chain.from_iterable([entry.outcomes for entry in newest])
            packed = struct.pack(f"{n * labels}f", *happened)
            outcomes[:n, :labels] = np.frombuffer(packed, np.float32).reshape(n, -1)
            watch = np.array([entry.watch_ms for entry in newest], np.float32)
            age = np.array([max(0, now_ms - entry.time_ms) for entry in newest], np.float32)
            outcomes[:n, labels] = np.log1p(watch / 1000.0) / 4.0
            # Positive for a real entry: the ranker recognises padding by 0.
            outcomes[:n, labels + 1] = 1.0 / (1.0 + age / _RECENCY_MS)
        return keys, outcomes

    def pack(self) -> bytes:
        """The session as one blob."""
        keys, values, times = self.counters.export()
        operators: Any = self.fields, self.numbers, list(self.lefts)
        if self.read:
            operators += (self.read,)
        packed = _Packed(
            self.user_id, self.offset, self.last_ms, self.events, self.profile,
            list(self.history), list(self.requests), list(self.seen), list(self.hidden),
            keys.tobytes(), values.tobytes(), times.tobytes(),
            list(self.wishes.items()), self.plain, operators if any(operators) else None,
        )  # fmt: skip
        return _encoder.encode(packed)

    def lasting(self) -> bytes:
        """Packs profile, wishes and hidden items, which outlive an unused session, as one; empty without."""
        declared = any((*self.fields, *self.numbers))
        if not (self.profile or self.plain or self.wishes or self.hidden or declared):
            return b""
        more: Any = (self.fields, self.numbers, []) if declared else None
        packed = _Packed(
            self.user_id, self.offset, 0, 0, self.profile, [], [], [], list(self.hidden), b"", b"", b"",
            list(self.wishes.items()), self.plain, more,
        )  # fmt: skip
        return _encoder.encode(packed)

    @classmethod
    def unpack(cls, blob: bytes, features: FeatureSet, seen: int = 500) -> "Session":
        """Reads a packed session; raises MsgspecError, or ValueError for another feature set."""
        packed = _decoder.decode(blob)
        for entry in packed.history:
            widths = len(entry.keys), len(entry.outcomes)
            if widths != (features.history_keys, len(features.schema.labels)):
                raise ValueError(
                    f"a history entry has {widths[0]} keys and {widths[1]} labels, expected "
                    f"{features.history_keys} and {len(features.schema.labels)}: the session was folded "
                    "with another feature set; empty the session store"
                )
        session = cls(packed.user_id, features, seen)
        session.digest = digest_of(blob)
        session.offset, session.last_ms = packed.offset, packed.last_ms
        session.events, session.profile = packed.events, packed.profile
        session.history.extend(packed.history)
        session.requests.extend(packed.requests)
        session.seen.extend(packed.seen)
        session.hidden.extend(packed.hidden)
        session.wishes, session.plain = dict(packed.wishes), packed.plain
        if packed.operators is not None:
            more = packed.operators
            session.fields, session.numbers, session.read = more.fields, more.numbers, more.read
            session.lefts.extend(more.lefts)
        values = np.frombuffer(packed.values, np.float32).reshape(-1, session.counters.columns)
        keys = np.frombuffer(packed.keys, np.int64)
        session.counters.set(keys, values, np.frombuffer(packed.times, np.int64))
        return session

    def _see(self, item: int) -> None:
        """Remembers that an item of a list without profile was shown."""
        if item not in self.seen:
            self.seen.append(item)

    def _halves(self, request_id: str, context: int, is_lone: bool = False) -> dict[str, int]:
        """Other halves of the viewer's entities in a request, by name; that of all under "". ``is_lone``: of
        an engagement without one."""
        halves = {"": VIEWER, CONTEXT: context}
        if is_lone and self.features.lefts:
            lefts: Iterable[int] = self.features.left_keys(self.fields, {})
            halves |= dict(zip(self.features.lefts, lefts, strict=False))
        elif self.features.lefts:
            lefts = next((keys for r, keys in reversed(self.lefts) if r == request_id), ())
            halves |= dict(zip(self.features.lefts, lefts, strict=False))
        return halves

    def _own_keys(self, halves: Mapping[str, int]) -> tuple[int, ...]:
        """Keys of the viewer's entities without an item, each once."""
        if len(halves) == 2:  # the viewer and the context, which always are
            return tuple(dict.fromkeys(filter(None, halves.values())))
        own = self.features.own_lefts
        return tuple(dict.fromkeys(key for name, key in halves.items() if key and name in own))

    def _count(self, keys_I: Keys, own_keys: tuple[int, ...], added: Floats, now_ms: int) -> None:
        self.counters.add((*own_keys, *self.features.counted_keys(keys_I)), added, now_ms)
        limit = COUNTER_ROWS * self.features.operators.own_rows
        if len(self.counters) > 2 * limit:
            self.evicted += len(self.counters.keep_newest(limit))

    def _track(self, event: Engagement, keys_I: Keys, halves: Mapping[str, int]) -> None:
        """Replaces the newest events of the viewer's entities, and counts new values of item fields."""
        now_ms = event.time_ms
        for keys in self.features.operators.tracked.get((event.kind, True), ()):
            self.counters.touch(keys.of(keys_I, halves), now_ms, bounded(event.value))
        for column, members in self.features.operators.distinct.get((event.kind, True), ()):
            for before in self.counters.touch(members.of(keys_I, halves), now_ms):
                self.counters.add_distinct(_VIEWER, column, np.array([before]), now_ms)

    def _enter(self, request_id: str, keys_I: Keys, now_ms: int, kind: str) -> Entry | None:
        """The history entry of an item in a request, a new one if need be; None if neither one exists nor the
        kind of engagement (empty: shown) makes one. Without a request each click is one of its own."""
        item, schema = int(keys_I[0]), self.features.schema
        is_new = not request_id and schema.shown_by == "click" and kind == schema.labels[0]
        for entry in reversed(() if is_new else self.history):
            if entry.request_id == request_id and entry.keys[0] == item:
                return entry
        history_of = self.features.declared.history_of
        if not history_of or item not in self.seen:
            self.seen.append(item)
        if history_of and kind not in history_of:
            return None
        labels = len(self.features.schema.labels)
        entry = Entry(request_id, self.features.history_entry(keys_I), [0.0] * labels, 0, now_ms)
        self.history.append(entry)
        return entry


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Packed)
