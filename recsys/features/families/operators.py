"""Operators over entities: rates against another entity's, values, newest events, counts of events and of
different members; their columns, and what events add for them.

Counters of values and of distinct members are kinds of counters, so they decay as all others do. The newest
event of a kind has a row of its own, whose time is the event's: its key is crossed with the kind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from recsys.config.yaml_values import YamlValues
from recsys.events.event_types import Engagement
from recsys.events.hashing import key_of
from recsys.features.columns import (
    ALL,
    GLOBAL,
    USER,
    VIEWER,
    Column,
    Entity,
    Hours,
    Measure,
    entity_measure,
    entity_of,
)
from recsys.features.families.base import Family, Fault, Floats, Keys, RequestView, one_of
from recsys.features.families.rates import BOUND, RARE, SMOOTHING, entity_places
from recsys.features.feature_kernels import entity_keys, latest, operate

if TYPE_CHECKING:
    from recsys.features.families.declared import Declared
    from recsys.features.feature_set import FeatureSet

# Operators of cells, as ``feature_kernels.operate`` reads them.
_AGAINST: Final = 0
_SUM: Final = 1
_MEAN: Final = 2
_COUNT: Final = 3
_SINCE: Final = 4
_VALUE: Final = 5
_LARGEST_VALUE: Final = 1e9
_NEVER: Final = np.float32(2.0)  # log seconds / 10 since a newest event: 15 years


@dataclass(frozen=True)
class DeclaredOperators:
    """``counts``: further kinds of events that are counted. ``values``: kinds of engagement with the names of
    their values. ``against``: entities with those that their rates are relative to, too. ``last``: kinds of
    engagement with entities whose newest one is a column. ``distinct``: kinds with an entity and what is
    counted of it: different viewers (``user``), or of ``user`` different values of an item field."""

    counts: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    against: tuple[tuple[str, str], ...] = ()
    last: tuple[tuple[str, str], ...] = ()
    distinct: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class _Cell:
    """A column of an operator over an entity, given by its index. ``measure``: as of its column. ``kind``: of
    counters; of ``_AGAINST`` the index of the label; of ``_SINCE`` and ``_VALUE`` the key of the kind of
    event. ``base``: another entity."""

    name: str
    measure: Measure
    operator: int
    entity: int
    kind: int = 0
    speed: int = 0
    base: int = 0


class Operators(Family):
    """All of them, since one kernel computes those of counters, and one those of newest events."""

    name, keys = "operators", ("counts", "against", "last", "distinct")

    def __init__(self, features: "FeatureSet") -> None:
        super().__init__(features)
        entities, cells = features.entities, list(enumerate(_cells(features), self.at.start))
        same, each = entity_places(features)
        # Places of the entities' counters: whether among those of each item, and the place there.
        places = {at: (False, n) for n, at in enumerate(same)} | {at: (True, n) for n, at in enumerate(each)}
        rows = [
            (c.operator, *places[c.entity], c.kind, c.speed, *places[c.base], column)
            for column, c in cells
            if c.operator not in (_SINCE, _VALUE)
        ]
        self._of_counters = np.array(rows, np.int64).reshape(-1, 8)
        values = {(c.entity, c.kind): column for column, c in cells if c.operator == _VALUE}
        last = [(column, c, entities[c.entity]) for column, c in cells if c.operator == _SINCE]
        self._lefts = [(e.left, e.own) for _, _, e in last]
        self._last = np.array(
            [
                (e.left != "", 0, *features.slot_starts[e.right], c.kind, e.own,
                 column, values.get((c.entity, c.kind), -1))
                for column, c, e in last
            ],
            np.int64,
        ).reshape(-1, 8)  # fmt: skip

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """All but the values, which kinds of event declare."""
        section = "features"
        return {
            "counts": values.names(raw.get("counts", []), section, "counts"),
            "against": values.pairs(raw.get("against", {}), section, "against"),
            "last": values.pairs(raw.get("last", {}), section, "last"),
            "distinct": tuple(
                (kind, *pair)
                for kind, counted in values.mapping(raw.get("distinct", {}), section, "distinct")
                for pair in values.pairs(counted, section, "distinct", kind)
            ),
        }

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """Entities without rates, and kinds of event that aren't declared."""
        declared, kinds = features.declared, features.schema.kinds
        entities = {entity.name: entity for entity in features.entities}
        names = [("against", first, name) for first, base in declared.against for name in (first, base)]
        for key, first, name in (*names, *(("last", kind, name) for kind, name in declared.last)):
            if name not in entities:
                reason = f"features.{key} has {name!r}, which isn't among features.rates: add it there"
                yield ("features", key, first), reason
        for name, base in declared.against:
            if base in (name, ALL):
                reason = f"features.against has {name!r} against {base!r}, expected another entity"
                yield ("features", "against", name), f"{reason}: all rates are relative to those of all"
        kinds_read = [("last", kind) for kind, _ in declared.last]
        kinds_read += [("distinct", kind) for kind, _, _ in declared.distinct]
        for key, kind in (*kinds_read, *(("counts", kind) for kind in declared.counts)):
            if kind not in kinds:
                yield ("features", key, kind), f"features.{key} has {kind!r}, expected {one_of(kinds)}"
        counted = [name for name, entity in entities.items() if name == USER or not entity.own]
        for kind, name, member in declared.distinct:
            about = f"features.distinct.{kind}"
            expected = "item, duration or a categorical field of items" if name == USER else USER
            if name not in counted:
                expected = "one of features.rates: user or everybody's"
                reason = f"{about} counts by {name!r}, expected {expected}"
            elif (member != USER) if name != USER else not _is_item_slot(member, features):
                reason = f"{about}.{name} is {member!r}, expected {expected}"
            else:
                continue
            yield ("features", "distinct", kind, name), reason

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """In the order of ``_cells``."""
        for cell in _cells(features):
            entity = features.entities[cell.entity]
            yield Column(cls.name, cell.name, cell.measure, bool(entity.right), entity.own, entity.name)

    @classmethod
    def counter_kinds(cls, declared: "Declared") -> Iterable[str]:
        """The sum and the number of each value, different members, then counts."""
        yield from (name for kind, value in declared.values for name in value_kinds(kind, value))
        yield from dict.fromkeys(distinct_kind(kind, member) for kind, _, member in declared.distinct)
        yield from map(count_kind, declared.counts)

    @classmethod
    def engagement_kinds(cls, declared: "Declared") -> Iterable[str]:
        """Kinds of any operator but rates against another entity's."""
        keyed = (kind for kind, *_ in (*declared.values, *declared.last, *declared.distinct))
        return (*declared.counts, *keyed)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """From the counters that ``Rates`` reads, and from rows of newest events."""
        one = request.gathered
        operate(one.sums_NEC, one.same_MC[1:], one.same_MC[0], self.features.label_kinds, one.prior_SL,
                self._of_counters, SMOOTHING, RARE, BOUND, dense_NF)  # fmt: skip
        tables = *request.counters.arrays, *request.session.counters.arrays
        last = self._rows_of_last(request.halves)
        latest(*tables, request.items_NI, last, request.now_ms, _NEVER, dense_NF)

    def _rows_of_last(self, halves: Mapping[str, int]) -> Keys:
        """Rows for ``latest``, with the other halves of entities."""
        rows, halves = self._last.copy(), {**halves, "": GLOBAL}
        rows[:, 1] = [VIEWER if own and not left else halves[left] for left, own in self._lefts]
        return rows


def _cells(features: "FeatureSet") -> Iterator[_Cell]:
    declared = features.declared
    measure: Measure
    at = {entity.name: n for n, entity in enumerate(features.entities)}
    of = {entity.name: entity_measure(entity) for entity in features.entities}
    hours_of = zip(features.speeds, map(Hours, declared.half_lives_h), strict=True)
    fades = [(s, speed, hours) for s, (speed, hours) in enumerate(hours_of)]
    for name, base in declared.against:
        for s, speed, hours in fades:
            for k, label in enumerate(features.main_labels):
                measure = "against", of[name], of[base], label, hours
                yield _Cell(f"{name}:{base}/{label}.{speed}", measure, _AGAINST, at[name], k, s, at[base])
    for kind, value in declared.values:
        column = features.kinds.index(value_kinds(kind, value)[0])
        for name in at:
            for operator, what in ((_SUM, "sum"), (_MEAN, "mean")):
                for s, speed, hours in fades:
                    measure = what, of[name], kind, value, hours
                    text = f"{name}/{kind}.{value}.{what}.{speed}"
                    yield _Cell(text, measure, operator, at[name], column, s)
    for kind, name in declared.last:
        key = last_key(kind)
        yield _Cell(f"{name}/since({kind})", ("since", of[name], kind), _SINCE, at[name], key)
        for value in (value for valued, value in declared.values if valued == kind):
            text, measure = f"{name}/last({kind}.{value})", ("last", of[name], kind, value)
            yield _Cell(text, measure, _VALUE, at[name], key)
    counted = [(name, count_kind(kind)) for kind in declared.counts for name in at]
    counted += [(name, distinct_kind(kind, member)) for kind, name, member in declared.distinct]
    for name, counter in counted:
        column = features.kinds.index(counter)
        for s, speed, hours in fades:
            measure = counter, of[name], hours
            yield _Cell(f"{name}/{counter}.{speed}", measure, _COUNT, at[name], column, s)


def _is_item_slot(member: str, features: "FeatureSet") -> bool:
    try:
        entity = entity_of(member, features.schema)
    except ValueError:
        return False
    return bool(entity.right) and not (entity.own or entity.left)


def value_kinds(kind: str, value: str) -> tuple[str, str]:
    """Kinds of counters of a value: its sum, and the number of events that have one. No event kind has such a
    name."""
    return f"sum({kind}.{value})", f"number({kind}.{value})"


def count_kind(kind: str) -> str:
    """Kind of counter of the events of a kind."""
    return f"count({kind})"


def distinct_kind(kind: str, member: str) -> str:
    """Kind of counter of distinct members."""
    return f"distinct({kind}.{member})"


def last_key(kind: str) -> int:
    """Key that an entity's is crossed with: that of its newest event of a kind."""
    return key_of("last", kind)


class EventKeys:
    """Keys of an entity for one event, crossed with a seed (0: none). ``starts``: of each item slot the first
    column, and their number."""

    def __init__(self, entity: Entity, starts: Mapping[str, tuple[int, int]], seed: int) -> None:
        self._left = entity.left
        start, width = starts[entity.right]
        self._row = np.array([entity.left != "", 0, start, width, seed], np.int64)

    def of(self, keys_I: Keys, lefts: Mapping[str, int]) -> Keys:
        """The keys, each once, for an item's keys and the event's other halves; ``lefts`` has that of all
        under ""."""
        row, out = self._row.copy(), np.empty(max(1, self._row[3]), np.int64)
        row[1] = lefts.get(self._left, 0)
        return out[: entity_keys(keys_I, row, out)]


def bounded(value: float | msgspec.UnsetType) -> float:
    """An event's value, so that sums of float32 stay finite; 0 without one."""
    return 0.0 if value is msgspec.UNSET else min(max(value, -_LARGEST_VALUE), _LARGEST_VALUE)


class EventOperators:
    """Rows that events change for the operators of a feature set, by kind of event and whether they are the
    viewer's own or everybody's. ``tracked``: keys of the newest events that an event replaces. ``distinct``:
    counters of distinct members, the viewer's own with the keys of the members, and everybody's with those of
    the entities."""

    def __init__(self, features: "FeatureSet") -> None:
        declared, starts = features.declared, features.slot_starts
        entities = {entity.name: entity for entity in features.entities}
        # The counter of each kind that is counted, and the first of the two of each kind's value.
        self._counts = {kind: features.kinds.index(count_kind(kind)) for kind in declared.counts}
        self._values = {k: features.kinds.index(value_kinds(k, v)[0]) for k, v in declared.values}
        self.tracked: dict[tuple[str, bool], list[EventKeys]] = {}
        for kind, name in declared.last:
            keys = EventKeys(entities[name], starts, last_key(kind))
            self.tracked.setdefault((kind, entities[name].own), []).append(keys)
        self.distinct: dict[tuple[str, bool], list[tuple[int, EventKeys]]] = {}
        for kind, name, member in declared.distinct:
            own, column = name == USER, features.kinds.index(distinct_kind(kind, member))
            entity = entity_of(member, features.schema) if own else entities[name]
            keys = EventKeys(entity, starts, key_of("distinct", column) if own else 0)
            self.distinct.setdefault((kind, own), []).append((column, keys))

    def add(self, engagement: Engagement, amounts: Floats) -> None:
        """Adds what an engagement adds to the counters of its entities (kinds,)."""
        if (at := self._counts.get(engagement.kind)) is not None:
            amounts[at] = 1.0
        at = self._values.get(engagement.kind)
        if at is not None and engagement.value is not msgspec.UNSET:
            amounts[at : at + 2] = bounded(engagement.value), 1.0

    @cached_property
    def own_rows(self) -> int:
        """Factor on the counter rows of a viewer: one more for each operator that has rows of its own."""
        last = sum(len(keys) for (_, own), keys in self.tracked.items() if own)
        return 1 + last + sum(len(keys) for (_, own), keys in self.distinct.items() if own)
