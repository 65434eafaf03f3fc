"""State of operators beside the counters: halves of entities by request, named fields of viewers, and each
viewer's last contacts with entities, by which different viewers are counted. All of it is bounded."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from recsys.arrays.id_map import Arrays, IdMap
from recsys.events.event_types import Engagement, Impression, User
from recsys.events.hashing import Id, key_of
from recsys.features import counter_kernels as kernels
from recsys.features.counters import CounterTable
from recsys.features.families.operators import bounded
from recsys.features.feature_kernels import crossed
from recsys.features.feature_set import FeatureSet, Keys

REQUESTS: Final = 200_000  # newest requests whose halves are remembered
VIEWERS: Final = 500_000  # viewers whose named fields are remembered
CONTACTS: Final = 2_000_000  # pairs of viewer and entity that stay when there are twice as many
_COLUMNS: Final = ("last_ms", "user", "entity", "column")


class _Packed(msgspec.Struct):
    lefts: list[tuple[str, list[int]]]
    viewers: list[tuple[int, list[int]]]
    contacts: dict[str, bytes]
    evicted: dict[str, int]


class OperatorState:
    """Memory of the fold of everybody's events for operators. ``evicted``: requests, viewers and
    contacts beyond their limits, which several tables divide among them."""

    def __init__(self, features: FeatureSet, contacts: int = CONTACTS, tables: int = 1) -> None:
        self.features, self._most = features, contacts // tables
        self._requests, self._most_viewers = REQUESTS // tables, VIEWERS // tables
        self.evicted = {"requests": 0, "viewers": 0, "contacts": 0}
        self.touched: set[int] = set()  # keys of newest events, since it was emptied
        self._lefts: OrderedDict[str, list[int]] = OrderedDict()
        self._viewers: OrderedDict[int, list[int]] = OrderedDict()
        self._contacts = _no_contacts()

    def __len__(self) -> int:
        return len(self._contacts)

    def user(self, user: User) -> None:
        """Remembers a viewer's named fields, none of one who must not be profiled."""
        if self.features.user_fields:
            key = key_of("user", user.user_id)
            self._viewers.pop(key, None)
            if user.fields.get("profiling") is not False:
                self._viewers[key] = self.features.user_field_keys(user.fields)
            if len(self._viewers) > self._most_viewers:
                self._viewers.popitem(last=False)
                self.evicted["viewers"] += 1

    def impression(self, impression: Impression) -> None:
        """Remembers the halves of a list's entities."""
        if not self.features.lefts:
            return
        plain = impression.inputs is not None and impression.inputs.plain
        viewer = [] if plain else self._viewers.get(key_of("user", impression.user_id), [])
        lefts = self.features.left_keys(viewer, impression.context)
        self._lefts[impression.request_id] = list(lefts)
        if len(self._lefts) > self._requests:
            self._lefts.popitem(last=False)
            self.evicted["requests"] += 1

    def lefts(self, request_id: str, user_id: Id | None = None) -> dict[str, int]:
        """The other halves of a request's entities that are present, by name; of an engagement that names no
        list, those of its viewer, if given."""
        if not self.features.lefts:
            return {}
        keys: Sequence[int] = self._lefts.get(request_id, ())
        if user_id is not None:
            viewer = self._viewers.get(key_of("user", user_id), [])
            keys = self.features.left_keys(viewer, {})
        return {name: key for name, key in zip(self.features.lefts, keys, strict=False) if key}

    def engagement(
        self, event: Engagement, keys_I: Keys, lefts: Mapping[str, int], counters: CounterTable
    ) -> list[int]:
        """Replaces newest events, and counts new contacts; returns the changed keys. ``lefts``: with that of
        all under ""."""
        changed, now_ms = list[int](), event.time_ms
        for tracked in self.features.operators.tracked.get((event.kind, False), ()):
            keys = tracked.of(keys_I, lefts)
            counters.touch(keys, now_ms, bounded(event.value))
            changed += keys.tolist()
        self.touched.update(changed)
        return changed + self.contact(event, keys_I, lefts, counters)

    def contact(
        self, event: Engagement, keys_I: Keys, lefts: Mapping[str, int], counters: CounterTable
    ) -> list[int]:
        """Counts new contacts. Arguments and result as ``engagement``."""
        changed, now_ms = list[int](), event.time_ms
        for column, entity in self.features.operators.distinct.get((event.kind, False), ()):
            keys, user = entity.of(keys_I, lefts), key_of("user", event.user_id)
            counters.add_distinct(keys, column, self._touch(user, column, keys, now_ms), now_ms)
            changed += keys.tolist()
        return changed

    def withdraw(
        self, event: Engagement, keys_I: Keys, lefts: Mapping[str, int], counters: CounterTable
    ) -> list[int]:
        """Takes an event back where it is the newest one: until the next there is none, since those before it
        aren't known any more. Arguments and result as ``engagement``."""
        changed = list[int]()
        for tracked in self.features.operators.tracked.get((event.kind, False), ()):
            keys, values, last_ms = counters.export(tracked.of(keys_I, lefts).tolist())
            own = last_ms == event.time_ms
            counters.set(keys[own], np.zeros_like(values[own]), np.full(own.sum(), -1, np.int64))
            changed += keys[own].tolist()
        self.touched.update(changed)
        return changed

    def take_back(self, user_id: Id, counters: CounterTable) -> list[int]:
        """Counts a viewer's contacts no longer; returns the changed keys."""
        rows = self._rows_of(user_id)
        columns = self._contacts.columns
        for row in rows.tolist():
            key, never = columns["entity"][row : row + 1].copy(), np.full(1, -1, np.int64)
            column, last_ms = int(columns["column"][row]), int(columns["last_ms"][row])
            counters.add_distinct(key, column, never, last_ms, -1)
        changed: list[int] = columns["entity"][rows].tolist()
        self._contacts.remove(rows)
        return changed

    def forget(self, user_id: Id) -> None:
        """Drops a viewer's named fields and contacts."""
        self._viewers.pop(key_of("user", user_id), None)
        if len(self._contacts):
            self._contacts.remove(self._rows_of(user_id))

    def pack(self) -> bytes:
        """All of it, for the fold's snapshot."""
        contacts = {name: column.tobytes() for name, column in self._contacts.export().items()}
        lefts, viewers = list(self._lefts.items()), list(self._viewers.items())
        return msgspec.msgpack.encode(_Packed(lefts, viewers, contacts, self.evicted))

    def restore(self, packed: bytes) -> None:
        """Reads ``pack``."""
        state = msgspec.msgpack.decode(packed, type=_Packed)
        self._lefts.update(state.lefts)
        self._viewers.update(state.viewers)
        self.evicted = state.evicted
        keys = np.frombuffer(state.contacts["keys"], np.int64)
        rows: Arrays = {"values": np.zeros((len(keys), 1), np.float32)}  # which nothing reads
        for name in _COLUMNS:
            rows[name] = np.frombuffer(state.contacts[name], np.int64)
        self._contacts.put(keys, rows)

    def _touch(self, user: int, column: int, entities: Keys, now_ms: int) -> Keys:
        """Sets the time of a viewer's contacts; returns the times before, -1 for none."""
        seed = int(crossed(user, column + 1))
        keys = np.array([crossed(seed, key) for key in entities.tolist()], np.int64)
        size, before = len(self._contacts), np.empty(len(keys), np.int64)
        rows, columns = self._contacts.insert(keys), self._contacts.columns
        kernels.touch(columns["values"], columns["last_ms"], rows, size, 0.0, now_ms, before)
        new = before < 0
        columns["user"][rows[new]], columns["column"][rows[new]] = user, column
        columns["entity"][rows[new]] = entities[new]
        if len(self._contacts) > 2 * self._most:
            oldest = np.argsort(columns["last_ms"][: len(self._contacts)], kind="stable")
            self._contacts.remove(np.sort(oldest[: len(oldest) - self._most]))
            self.evicted["contacts"] += len(oldest) - self._most
        return before

    def _rows_of(self, user_id: Id) -> Keys:
        users = self._contacts.columns["user"][: len(self._contacts)]
        return np.flatnonzero(users == key_of("user", user_id))


def _no_contacts() -> IdMap:
    columns: Arrays = {name: np.zeros(8, np.int64) for name in _COLUMNS}
    return IdMap(columns=columns | {"values": np.zeros((8, 1), np.float32)})
