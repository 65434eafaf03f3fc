"""The feature set: inputs of the ranker, defined once for stream, batch and backfill.

A request's features are built when it is answered, from events before it, written into the impression, and
read from there in training. Categorical values are 64-bit keys in named slots.

Legend: N items of a request, U user columns, I item columns, T history, H keys and O outcomes of one entry,
F dense.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Engagement, FeatureBlock, Impression
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema, values_of
from recsys.events.hashing import Id, digest_of, key_of
from recsys.features.columns import (
    AGE,
    CONTEXT,
    LENGTH,
    NEAR,
    PROFILE,
    TIMES,
    USER,
    Column,
    Entity,
    Hours,
    default_entities,
    entity_measure,
    entity_of,
    item_columns,
    numbers,
    speed_names,
)
from recsys.features.counters import CounterTable, amounts
from recsys.features.feature_kernels import crossed
from recsys.features.operators import (
    AGAINST,
    COUNT,
    MEAN,
    SINCE,
    SUM,
    VALUE,
    Cell,
    Derived,
    EventKeys,
    bounded,
    count_kind,
    distinct_kind,
    last_key,
    signed_log,
    value_kinds,
)

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]

GROUP_WIDTH: Final = 4  # values of a group field (one author, a few tags)
CONTENT_WIDTH: Final = 12  # other categorical item fields, all in one slot
PROFILE_WIDTH: Final = 40
CONTEXT_WIDTH: Final = 4
HISTORY_GROUP: Final = 2  # values of each group in a history entry
ENTITIES_KEPT: Final = 200_000
CONTEXTS_KEPT: Final = 10_000
_CONTEXT_LETTERS: Final = 256  # most of a context that is cached
MAIN_LABELS: Final = 3  # labels whose running rates are features
_LARGEST: Final = float(np.finfo(np.float32).max)
_LONGEST_MS: Final = 2.0**53  # bounds durations, so that their logarithm exists


@dataclass(frozen=True)
class Slot:
    """A named range of columns whose keys are pooled into one row by their mean."""

    name: str
    start: int
    stop: int


EVENTS_UNIT: Final = 5.0  # of the logarithm of the number of events


@dataclass(frozen=True)
class Declared:
    """Features that an app declares; by default those of short video.

    Counters: ``half_lives_h``, ascending; ``entities``: names as in ``columns.entity_of``, none: the
    default ones; ``watches``: at how many half-lives, the slowest, watch time is a column. History:
    ``history_of``: kinds of engagement that enter it, none: every item that was shown.

    Columns of an item: ``item_age``: time since its first publication, or since the time in ``age_field``;
    ``near``: co-visits with the history; ``visit_s``: co-visits with the viewer's newest visit, which a pause
    of so many seconds ends, 0: none; ``trend``: change of each entity's count; ``position``: rank in the
    list, which is learned from, and 0 when items are scored. Columns of a list: ``list_context``: rates of
    these entities, compared with those of the list's other items, by their rank too; ``whole_list``: the
    list's length, and the difference to the list's mean of every column in which its items may differ.

    ``numbers``: numeric fields of users and contexts, as ``user.age``. ``counts``: further kinds of events
    that are counted. ``values``: kinds of engagement with the names of their values. ``against``: entities
    with those that their rates are relative to, too. ``last``: kinds of engagement with entities whose newest
    one is a column. ``distinct``: kinds with an entity and what is counted of it: different viewers
    (``user``), or of ``user`` different values of an item field. ``derived``: columns computed from others.
    """

    half_lives_h: tuple[float, ...] = (6.0, 336.0)
    entities: tuple[str, ...] = ()
    history_of: tuple[str, ...] = ()
    item_age: bool = False
    age_field: str = ""
    near: bool = False
    trend: bool = False
    visit_s: float = 0.0
    position: bool = False
    list_context: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    against: tuple[tuple[str, str], ...] = ()
    last: tuple[tuple[str, str], ...] = ()
    distinct: tuple[tuple[str, str, str], ...] = ()
    derived: tuple[Derived, ...] = ()
    watches: int = 1
    whole_list: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The fields as stored: without those of newer versions that are empty, so that digests stay."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return {n: v for n, v in fields.items() if n not in _NEWER or v != getattr(Declared, n)}


_NEWER: Final = (
    "trend", "visit_s", "numbers", "counts", "values", "against", "last", "distinct", "derived",
    "watches", "whole_list",
)  # fmt: skip


@dataclass(frozen=True)
class FeatureSet:
    """The named list of features that a model reads; sets are equal if their digests are, which cover these
    fields and ``columns``.

    ``kind`` is ``ids`` (keys only), ``ids+history`` (with the recent history and its outcomes) or ``all``
    (with running counters).
    """

    schema: Schema
    kind: str = "all"
    history: int = 20
    declared: Declared = Declared()

    @cached_property
    def digest(self) -> str:
        content = [self.as_dict(), self.columns]
        content[0]["schema"].pop("times", None)
        return digest_of(msgspec.json.encode(content, order="deterministic"))

    def as_dict(self) -> dict[str, Any]:
        """The fields as stored. Without declared features they are those of older versions."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        fields["declared"] = self.declared.as_dict()
        if self.declared == Declared():
            fields.pop("declared")
        if not self.schema.kinds:
            fields["schema"].pop("kinds", None)
        if not self.schema.times:
            fields["schema"].pop("times", None)
        return fields

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """The names of the columns of each input array, in order."""
        groups = (f"item.{name}" for name in self.schema.groups for _ in range(HISTORY_GROUP))
        return {
            "user": [slot.name for slot in self.user_slots for _ in range(slot.start, slot.stop)],
            "item": [slot.name for slot in self.item_slots for _ in range(slot.start, slot.stop)],
            "history": ["item", *groups],
            "outcomes": [*self.schema.labels, "watch", "recency"],
            "dense": list(self.dense_names),
        }

    @cached_property
    def entities(self) -> tuple[Entity, ...]:
        """Entities with running rates, in the order of their columns."""
        declared = tuple(entity_of(name, self.schema) for name in self.declared.entities)
        return declared or default_entities(self.schema)

    @cached_property
    def speeds(self) -> tuple[str, ...]:
        """Names of the counters' half-lives, fastest first."""
        half_lives = self.declared.half_lives_h
        return ("fast", "slow") if half_lives == Declared.half_lives_h else speed_names(half_lives)

    @cached_property
    def dense(self) -> tuple[Column, ...]:
        """The dense columns (F,): those of single items, then those of a list; empty unless the kind is
        ``all``."""
        own = self._item_columns
        lists = [
            Column("list", f"list.{how}({own[at].name})", (f"list.{how}", own[at].measure))
            for how, columns in (("above", self.compared), ("rank", self.ranked))
            for at in columns
        ]
        if self.declared.whole_list and self.kind == "all":
            lists.append(Column("list", LENGTH, (LENGTH,)))
        return (*own, *lists)

    @cached_property
    def dense_names(self) -> tuple[str, ...]:
        """The names of the dense columns (F,)."""
        return tuple(column.name for column in self.dense)

    @cached_property
    def _item_columns(self) -> tuple[Column, ...]:
        return tuple(item_columns(self)) if self.kind == "all" else ()

    def span(self, family: str) -> slice:
        """The dense columns of a feature, which follow each other; an empty slice without any."""
        return self._spans.get(family, slice(0, 0))

    @cached_property
    def _spans(self) -> dict[str, slice]:
        families = [column.family for column in self.dense]
        return {
            family: slice(families.index(family), families.index(family) + families.count(family))
            for family in dict.fromkeys(families)
        }

    @cached_property
    def list_columns(self) -> int:
        """How many of the last dense columns are of a list: 0 in the features of a single item."""
        return len(self.dense) - len(self._item_columns)

    @cached_property
    def compared(self) -> tuple[int, ...]:
        """Dense columns of which the difference to the list's mean is one: those that are ranked, or with
        ``whole_list`` all but vectors in which the items of a list may differ."""
        return self.differing if self.declared.whole_list else self.ranked

    @cached_property
    def differing(self) -> tuple[int, ...]:
        """Dense columns, but for vectors and columns of a list, in which the candidates of a request may
        differ: the inputs of the choice model (recsys/model/choice_model.py)."""
        return tuple(at for at, column in enumerate(self._item_columns) if column.differs)

    @cached_property
    def impersonal(self) -> tuple[int, ...]:
        """Columns of ``differing`` that the viewer's past has no part in: by these new viewers choose."""
        return tuple(at for at in self.differing if not self._item_columns[at].own)

    @cached_property
    def ranked(self) -> tuple[int, ...]:
        """Dense columns that are ranked within the list: rates of ``list_context``, age and co-visits."""
        if not self.declared.list_context:
            return ()
        at = {column.name: place for place, column in enumerate(self._item_columns)}
        rates = (
            at.get(f"{name}/{label}.{speed}", -1)
            for name in self.declared.list_context
            for speed in self.speeds
            for label in self.main_labels
        )
        return tuple(place for place in (*rates, at.get(AGE, -1), at.get(NEAR, -1)) if place >= 0)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Numbers of each entity."""
        return numbers(self.main_labels, self.speeds, self.declared.watches)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Columns of operators over entities."""
        one, fades = self.declared, list(enumerate(self.speeds))
        at = {entity.name: n for n, entity in enumerate(self.entities)}
        of = {entity.name: entity_measure(entity) for entity in self.entities}
        hours = [Hours(hours) for hours in one.half_lives_h]
        cells = [
            Cell(
                f"{name}:{base}/{label}.{speed}",
                ("against", of[name], of[base], label, hours[s]),
                AGAINST,
                at[name],
                k,
                s,
                at[base],
            )
            for name, base in one.against
            for s, speed in fades
            for k, label in enumerate(self.main_labels)
        ]
        for kind, value in one.values:
            column = self.value_columns[kind]
            cells += [
                Cell(
                    f"{name}/{kind}.{value}.{what}.{speed}",
                    (what, of[name], kind, value, hours[s]),
                    which,
                    at[name],
                    column,
                    s,
                )
                for name in at
                for which, what in ((SUM, "sum"), (MEAN, "mean"))
                for s, speed in fades
            ]
        for kind, name in one.last:
            place = at[name], last_key(kind)
            cells.append(Cell(f"{name}/since({kind})", ("since", of[name], kind), SINCE, *place))
            values = (value for of, value in one.values if of == kind)
            cells += [
                Cell(f"{name}/last({kind}.{v})", ("last", of[name], kind, v), VALUE, *place) for v in values
            ]
        counters = [(name, count_kind(kind)) for kind in one.counts for name in at]
        counters += [(name, distinct_kind(kind, member)) for kind, name, member in one.distinct]
        cells += [
            Cell(
                f"{name}/{counter}.{speed}",
                (counter, of[name], hours[s]),
                COUNT,
                at[name],
                self.kinds.index(counter),
                s,
            )
            for name, counter in counters
            for s, speed in fades
        ]
        return tuple(cells)

    @property
    def derived(self) -> tuple[Derived, ...]:
        """Columns computed from others; none without numbers to compute from."""
        return self.declared.derived if self.kind == "all" else ()

    @cached_property
    def lefts(self) -> tuple[str, ...]:
        """Named fields of users and contexts, or pairs of them, that entities are crossed with."""
        names = (e.left for e in self.entities if e.left not in ("", CONTEXT, PROFILE))
        return tuple(dict.fromkeys(names))

    @cached_property
    def user_fields(self) -> tuple[str, ...]:
        """The named fields of users among ``lefts``."""
        names = (name for left in self.lefts for name in left.split(TIMES))
        return tuple(dict.fromkeys(name for name in names if name.startswith("user.")))

    @cached_property
    def counted_fields(self) -> tuple[str, ...]:
        """Item fields with counters that aren't groups: each has a slot of its own."""
        groups = {f"item.{name}" for name in self.schema.groups}
        slots = [e.right for e in self.entities]
        members = (member for _, name, member in self.declared.distinct if name == USER)
        slots += [entity_of(member, self.schema).right for member in members]
        names = (slot for slot in slots if slot.startswith("item.") and slot not in groups)
        return tuple(dict.fromkeys(name.removeprefix("item.") for name in names))

    @cached_property
    def value_columns(self) -> dict[str, int]:
        """The first of the two counters of each kind's value."""
        return {k: self.kinds.index(value_kinds(k, v)[0]) for k, v in self.declared.values}

    @cached_property
    def tracked(self) -> dict[tuple[str, bool], list[EventKeys]]:
        """Keys of the newest events that an event replaces, by its kind, the viewer's own and everybody's."""
        out: dict[tuple[str, bool], list[EventKeys]] = {}
        entities = {entity.name: entity for entity in self.entities}
        for kind, name in self.declared.last:
            keys = EventKeys(entities[name], self.slot_starts, last_key(kind))
            out.setdefault((kind, entities[name].own), []).append(keys)
        return out

    @cached_property
    def distinct(self) -> dict[tuple[str, bool], list[tuple[int, EventKeys]]]:
        """Counters of distinct members by kind of event, the viewer's own with the keys of the members, and
        everybody's with those of the entities."""
        out: dict[tuple[str, bool], list[tuple[int, EventKeys]]] = {}
        entities = {entity.name: entity for entity in self.entities}
        for kind, name, member in self.declared.distinct:
            own, column = name == USER, self.kinds.index(distinct_kind(kind, member))
            entity = entity_of(member, self.schema) if own else entities[name]
            keys = EventKeys(entity, self.slot_starts, key_of("distinct", column) if own else 0)
            out.setdefault((kind, own), []).append((column, keys))
        return out

    @cached_property
    def own_lefts(self) -> frozenset[str]:
        """Halves of the viewer's own entities without an item: the viewer, the context, named fields."""
        named = (e.left for e in self.entities if e.own and not e.right)
        return frozenset(("", CONTEXT, *named))

    @cached_property
    def own_rows(self) -> int:
        """Factor on the counter rows of a viewer: one more for each operator that has rows of its own."""
        last = sum(len(keys) for (_, own), keys in self.tracked.items() if own)
        return 1 + last + sum(len(keys) for (_, own), keys in self.distinct.items() if own)

    @cached_property
    def slot_starts(self) -> dict[str, tuple[int, int]]:
        """The first column of each item slot, and their number; "" has none."""
        widths = {slot.name: (slot.start, slot.stop - slot.start) for slot in self.item_slots}
        return {"": (0, 0)} | widths

    @cached_property
    def engagement_kinds(self) -> frozenset[str]:
        """Kinds of engagement that counters read."""
        one = self.declared
        names = (kind for kind, *_ in (*one.values, *one.last, *one.distinct))
        return frozenset((*self.kinds, "view", *one.counts, *names))

    @cached_property
    def shown(self) -> Floats:
        """Amounts that showing an item adds to the counters of its entities."""
        return amounts(self.kinds, "shown")

    def amounts(self, engagement: Engagement) -> Floats:
        """Amounts that an engagement adds to the counters of its entities."""
        added = amounts(self.kinds, engagement.kind, engagement.watch_ms)
        if engagement.kind in self.declared.counts:
            added[self.kinds.index(count_kind(engagement.kind))] = 1.0
        at = self.value_columns.get(engagement.kind)
        if at is not None and engagement.value is not msgspec.UNSET:
            added[at : at + 2] = bounded(engagement.value), 1.0
        return added

    def counter_table(self, capacity: int = 16) -> CounterTable:
        """An empty table of the counters of this set."""
        return CounterTable(len(self.kinds), capacity, self.half_lives_ms)

    @property
    def half_lives_ms(self) -> list[float]:
        """Half-lives of the counters, fastest first."""
        return [3_600_000.0 * hours for hours in self.declared.half_lives_h]

    def slow_counter(self, kind: str) -> int:
        """The column of a kind's slowest counter."""
        return (len(self.speeds) - 1) * len(self.kinds) + self.kinds.index(kind)

    @cached_property
    def user_slots(self) -> tuple[Slot, ...]:
        fields = ("profile", PROFILE_WIDTH), ("context", CONTEXT_WIDTH)
        return _slots(("user", 1), *fields, ("hour", 1))

    @cached_property
    def item_slots(self) -> tuple[Slot, ...]:
        groups = ((f"item.{name}", GROUP_WIDTH) for name in self.schema.groups)
        counted = ((f"item.{name}", GROUP_WIDTH) for name in self.counted_fields)
        return _slots(("item", 1), *groups, ("content", CONTENT_WIDTH), ("duration", 1), *counted)

    @property
    def user_columns(self) -> int:
        return self.user_slots[-1].stop

    @property
    def item_columns(self) -> int:
        return self.item_slots[-1].stop

    @cached_property
    def number_columns(self) -> int:
        numeric = len(self.schema.names("item", NUMERIC))
        return numeric + sum(length for _, length in self.schema.vectors)

    @cached_property
    def vector_fields(self) -> tuple[tuple[str, int], ...]:
        """The item's vector fields and lengths that its retrieval vector starts from; empty if examples don't
        carry them, since serving must match training."""
        return self.schema.vectors if self.kind == "all" else ()

    @property
    def vector_columns(self) -> int:
        """Total length of the vector fields, which are the last of a catalogue's numbers."""
        return sum(length for _, length in self.vector_fields)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of counters: shown, each label, watch, then those of operators."""
        values = (name for kind, value in self.declared.values for name in value_kinds(kind, value))
        distinct = (distinct_kind(kind, member) for kind, _, member in self.declared.distinct)
        counts = map(count_kind, self.declared.counts)
        return ("shown", *self.schema.labels, "watch", *values, *dict.fromkeys(distinct), *counts)

    @property
    def history_length(self) -> int:
        return 0 if self.kind == "ids" else self.history

    @property
    def history_keys(self) -> int:
        return len(self.columns["history"])

    @property
    def outcomes(self) -> int:
        return len(self.columns["outcomes"])

    @cached_property
    def main_labels(self) -> tuple[str, ...]:
        return self.schema.labels[:MAIN_LABELS]

    def slot(self, name: str) -> Slot:
        """The slot of this name; raises KeyError."""
        try:
            return self._slots_by_name[name]
        except KeyError:
            raise KeyError(f"no slot {name!r} in feature set {self.digest}") from None

    def group_columns(self) -> list[int]:
        """The item columns of groups that history entries and content vectors use."""
        starts = [self.slot(f"item.{name}").start for name in self.schema.groups]
        return [column for start in starts for column in range(start, start + HISTORY_GROUP)]

    def counted_keys(self, keys_I: Keys) -> tuple[int, ...]:
        """The keys of an item's counters, each once: itself, its groups' values, its duration. Cached by the
        item's keys, since it is called for every event."""
        packed = keys_I.tobytes()
        entities = self._counted.get(packed)
        if entities is None:
            if len(self._counted) >= ENTITIES_KEPT:
                self._counted.clear()
            columns = [0, self.slot("duration").start]
            for name in (*self.schema.groups, *self.counted_fields):
                slot = self.slot(f"item.{name}")
                columns.extend(range(slot.start, slot.stop))
            entities = tuple(dict.fromkeys(int(key) for key in keys_I[columns] if key))
            self._counted[packed] = entities
        return entities

    @cached_property
    def _contexts(self) -> dict[tuple[str, ...], list[int]]:
        return {}

    @cached_property
    def _counted(self) -> dict[bytes, tuple[int, ...]]:
        return {}

    @cached_property
    def _slots_by_name(self) -> dict[str, Slot]:
        return {slot.name: slot for slot in (*self.user_slots, *self.item_slots)}

    def item_keys(self, item_id: Id, fields: dict[str, Any]) -> Keys:
        """The keys of one item, (I,)."""
        keys = np.zeros(self.item_columns, np.int64)
        keys[0] = key_of("item", item_id)
        slotted = (*self.schema.groups, *self.counted_fields)
        for name in slotted:
            _fill(keys, self.slot(f"item.{name}"), "item.", [name], fields)
        content = [n for n in self.schema.names("item", CATEGORICAL) if n not in slotted]
        _fill(keys, self.slot("content"), "item.", content, fields)
        duration = fields.get("duration_ms")
        if isinstance(duration, int | float) and duration > 0:
            # Half-octaves: 8 s and 9 s differ little, 8 s and 12 s do.
            bucket = round(2 * math.log2(min(max(duration, 250), _LONGEST_MS) / 1000))
            keys[self.slot("duration").start] = key_of("duration", bucket)
        return keys

    def profile_keys(self, fields: dict[str, Any], most: int | None = PROFILE_WIDTH) -> list[int]:
        """The keys of a user's profile fields, at most PROFILE_WIDTH of each, and ``most`` in all."""
        keys: list[int] = []
        for name, full in self._profile_names:
            value = fields.get(name)
            texts = (value,) if type(value) is str and value else values_of(value)[:PROFILE_WIDTH]
            keys.extend(_shared_key(full, text) for text in texts)
        return [key for key in keys[:most] if key]

    @cached_property
    def _profile_names(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, f"user.{name}") for name in self.schema.names("user", CATEGORICAL))

    def user_field_keys(self, fields: dict[str, Any]) -> list[int]:
        """The key of the first value of each of ``user_fields``; 0 for none."""
        return [_first_key(name, fields) for name in self.user_fields]

    def left_keys(self, user_fields: Sequence[int], context: dict[str, Any]) -> tuple[int, ...]:
        """The keys of ``lefts`` for a viewer's ``user_field_keys`` (none: without a profile) and a request's
        context; 0 for an absent one."""
        keys = dict(zip(self.user_fields, user_fields, strict=False))
        out = []
        for left in self.lefts:
            pair = [
                keys.get(name, 0) if name.startswith("user.") else _first_key(name, context)
                for name in left.split(TIMES)
            ]
            out.append(int(crossed(*pair)) if len(pair) > 1 and pair[0] else pair[0])
        return tuple(out)

    def own_numbers(self, part: str, fields: dict[str, Any]) -> list[float]:
        """Declared numbers of a ``user`` or a ``context``."""
        names = (name for name in self.declared.numbers if name.startswith(f"{part}."))
        return [log_scale(fields.get(name.partition(".")[2])) for name in names]

    def context_keys(self, surface: str, context: dict[str, Any]) -> list[int]:
        """The keys of a request's context, at most CONTEXT_WIDTH; crosses use only the first. Those of short
        values are cached, by what the schema names alone: a client may send anything else beside it."""
        names = self._context_names
        written = surface, *(repr(context.get(name)) for name in names)
        present = self._contexts.get(written)
        if present is None:
            keys = np.zeros(CONTEXT_WIDTH, np.int64)
            _fill(keys, Slot("context", 0, CONTEXT_WIDTH), "context.", names, context)
            present = [int(key) for key in keys if key] or [key_of("context.surface", surface)]
            if sum(map(len, written)) <= _CONTEXT_LETTERS:
                if len(self._contexts) >= CONTEXTS_KEPT:
                    self._contexts.clear()
                self._contexts[written] = present
        return present

    @cached_property
    def _context_names(self) -> tuple[str, ...]:
        return self.schema.names("context", CATEGORICAL)

    def history_entry(self, item_keys: Keys) -> list[int]:
        """The keys (H,) of an item in a history entry: itself and its first group values."""
        entry: list[int] = item_keys[self._entry_columns].tolist()
        return entry

    @cached_property
    def _entry_columns(self) -> Keys:
        return np.array([0, *self.group_columns()], np.int64)


@dataclass(frozen=True)
class RequestFeatures:
    """Features of one request: user_U, items_NI, history_TH, outcomes_TO, dense_NF."""

    feature_set: str
    user_U: Keys
    items_NI: Keys
    history_TH: Keys
    outcomes_TO: Floats
    dense_NF: Floats

    def rows(self, chosen: list[int] | Keys) -> "RequestFeatures":
        """The features of some of the items, in that order."""
        return replace(self, items_NI=self.items_NI[chosen], dense_NF=self.dense_NF[chosen])

    def block(self) -> FeatureBlock:
        """The features as written into the impression."""
        return FeatureBlock(
            feature_set=self.feature_set, user_keys=self.user_U.tobytes(),
            item_keys=self.items_NI.tobytes(), history=self.history_TH.tobytes(),
            outcomes=self.outcomes_TO.tobytes(), dense=self.dense_NF.tobytes(),
        )  # fmt: skip


class UnknownFeatureSet(ValueError):
    """A model was given features of another set."""


def read_block(block: FeatureBlock, features: FeatureSet) -> RequestFeatures:
    """The arrays of an impression's features; raises UnknownFeatureSet for another set."""
    if block.feature_set != features.digest:
        raise UnknownFeatureSet(
            f"feature set is {block.feature_set!r}, expected {features.digest!r}: "
            "the model must be trained on, and serve, the set that was logged"
        )
    items = _array(block.item_keys, np.int64).reshape(-1, features.item_columns)
    dense = _array(block.dense, np.float32)
    return RequestFeatures(
        block.feature_set,
        _array(block.user_keys, np.int64),
        items,
        _array(block.history, np.int64).reshape(-1, features.history_keys),
        _array(block.outcomes, np.float32).reshape(-1, features.outcomes),
        dense.reshape(len(items), dense.size // max(1, len(items))),
    )


@lru_cache(64)  # so that a set is computed once, and equal texts give the same object
def read_set(text: str) -> FeatureSet:
    """The feature set in a record of ``control``."""
    return msgspec.json.decode(text, type=FeatureSet)


def set_text(features: FeatureSet) -> str:
    """A feature set for a record of ``control``."""
    return msgspec.json.encode(features.as_dict()).decode()


def item_block(block: FeatureBlock, index: int, items: int) -> FeatureBlock:
    """The features of one of a block's ``items`` items, without reading the rest."""
    keys, dense = len(block.item_keys) // items, len(block.dense) // items
    return msgspec.structs.replace(
        block,
        item_keys=block.item_keys[index * keys : (index + 1) * keys],
        dense=block.dense[index * dense : (index + 1) * dense],
    )


def item_predictions(impression: Impression, index: int) -> bytes:
    """The ranker's predictions of one item when it was served, float32 (L,); empty without a ranker."""
    width = len(impression.predicted) // max(1, len(impression.items))
    return impression.predicted[index * width : (index + 1) * width]


def _array(data: bytes, kind: type[Any]) -> NDArray[Any]:
    """A writable copy, as torch expects."""
    return np.frombuffer(bytearray(data), kind)


def _slots(*widths: tuple[str, int]) -> tuple[Slot, ...]:
    slots, start = [], 0
    for name, width in widths:
        slots.append(Slot(name, start, start + width))
        start += width
    return tuple(slots)


def log_scale(value: Any) -> float:
    """A number on a signed log scale; 0 for anything else."""
    return signed_log(number_of(value))


def number_of(value: Any, other: float = 0.0) -> float:
    """A number that float32 can hold; ``other`` for anything else."""
    valid = isinstance(value, int | float) and abs(value) <= _LARGEST
    return float(value) if valid else other


def _first_key(name: str, fields: dict[str, Any]) -> int:
    """The key of the first value of a field, named with its owner; 0 for none."""
    values = values_of(fields.get(name.partition(".")[2]))
    return key_of(name, values[0]) if values else 0


_shared_key: Final = lru_cache(maxsize=16_384)(key_of)  # many users have the same values


def _fill(
    keys: Keys, slot: Slot, prefix: str, names: list[str] | tuple[str, ...], fields: dict[str, Any]
) -> None:
    """Writes the hashed values of several fields into one slot; drops the surplus."""
    hashed = [key_of(prefix + n, value) for n in names for value in values_of(fields.get(n))]
    hashed = hashed[: slot.stop - slot.start]
    keys[slot.start : slot.start + len(hashed)] = hashed
