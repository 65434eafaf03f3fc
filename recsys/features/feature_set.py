"""The feature set: inputs of the ranker, defined once for stream, batch and backfill.

A request's features are built when it is answered, from events before it, written into the impression, and
read from there in training. Categorical values are 64-bit keys in named slots.

Legend: N items of a request, U user columns, I item columns, T history, H keys and O outcomes of one entry,
F dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Engagement
from recsys.events.field_keys import HISTORY_GROUP, FieldKeys
from recsys.events.field_schema import CATEGORICAL, NUMERIC, values_of
from recsys.events.hashing import digest_of, key_of
from recsys.features.columns import (
    CONTEXT,
    PROFILE,
    USER,
    Column,
    Entity,
    Measure,
    default_entities,
    entity_of,
)
from recsys.features.counters import CounterTable, amounts
from recsys.features.families.declared import FAMILIES, Declared
from recsys.features.families.derived import Derived
from recsys.features.families.list_comparison import ListComparison, compared, ranked
from recsys.features.families.operators import EventOperators
from recsys.features.feature_kernels import crossed

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]

MAIN_LABELS: Final = 3  # labels whose running rates are features


@dataclass(frozen=True)
class FeatureSet(FieldKeys):
    """The named list of features that a model reads; sets are equal if their digests are, which cover these
    fields and ``columns``.

    ``kind`` is ``ids`` (keys only), ``ids+history`` (with the recent history and its outcomes) or ``all``
    (with running counters).
    """

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
        return (
            ("fast", "slow")
            if half_lives == Declared.half_lives_h
            else tuple(f"{hours:g}h" for hours in half_lives)
        )

    @cached_property
    def dense(self) -> tuple[Column, ...]:
        """The dense columns (F,): those of single items, then those of a list; empty unless the kind is
        ``all``."""
        columns: list[Column] = []
        for family in FAMILIES if self.kind == "all" else ():
            columns += [*family.columns(self, columns)]
        return tuple(columns)

    @cached_property
    def dense_names(self) -> tuple[str, ...]:
        """The names of the dense columns (F,)."""
        return tuple(column.name for column in self.dense)

    def span(self, family: str) -> slice:
        """The dense columns of a family, which follow each other; an empty slice without any."""
        return self._spans.get(family, slice(0, 0))

    @cached_property
    def _spans(self) -> dict[str, slice]:
        families = [column.family for column in self.dense]
        return {
            family: slice(families.index(family), families.index(family) + families.count(family))
            for family in dict.fromkeys(families)
        }

    @cached_property
    def places(self) -> dict[Measure, int]:
        """The dense column of each measure."""
        return {column.measure: place for place, column in enumerate(self.dense)}

    @cached_property
    def list_columns(self) -> int:
        """How many of the last dense columns are of a list: 0 in the features of a single item."""
        return sum(column.family == ListComparison.name for column in self.dense)

    @cached_property
    def differing(self) -> tuple[int, ...]:
        """Dense columns, but for vectors and columns of a list, in which the candidates of a request may
        differ: the inputs of the choice model (recsys/model/choice_model.py)."""
        return tuple(at for at, column in enumerate(self.dense) if column.differs)

    @cached_property
    def impersonal(self) -> tuple[int, ...]:
        """Columns of ``differing`` that the viewer's past has no part in: by these new viewers choose."""
        return tuple(at for at in self.differing if not self.dense[at].own)

    @cached_property
    def compared(self) -> tuple[int, ...]:
        """Dense columns of which the difference to the list's mean is one."""
        return compared(self.declared, self.dense)

    @cached_property
    def ranked(self) -> tuple[int, ...]:
        """Dense columns that are ranked within the list."""
        return ranked(self.declared, self.dense)

    @cached_property
    def operators(self) -> EventOperators:
        """Rows that events change for operators."""
        return EventOperators(self)

    @property
    def derived(self) -> tuple[Derived, ...]:
        """Columns computed from others; none without numbers to compute from."""
        return self.declared.derived if self.kind == "all" else ()

    @cached_property
    def lefts(self) -> tuple[str, ...]:
        """Named fields of users and contexts, or pairs of them, that entities are crossed with."""
        return tuple(self._left_names)

    @cached_property
    def _left_names(self) -> dict[str, tuple[str, ...]]:
        return {e.left: e.left_names for e in self.entities if e.left not in ("", CONTEXT, PROFILE)}

    @cached_property
    def request_fields(self) -> dict[str, tuple[str, str]]:
        """Owner and name of each field of users and contexts, by its full name, as ``user.region``."""
        parts = (USER, self.schema.user), (CONTEXT, self.schema.context)
        return {f"{part}.{name}": (part, name) for part, fields in parts for name, _ in fields}

    @cached_property
    def user_fields(self) -> tuple[str, ...]:
        """The named fields of users among ``lefts``."""
        names = dict.fromkeys(name for names in self._left_names.values() for name in names)
        return tuple(name for name in names if self.request_fields[name][0] == USER)

    @cached_property
    def counted_fields(self) -> tuple[str, ...]:
        """Item fields with counters that aren't groups: each has a slot of its own."""
        schema = self.schema
        fields = {f"item.{n}": n for n in schema.names("item", CATEGORICAL) if n not in schema.groups}
        members = (member for _, name, member in self.declared.distinct if name == USER)
        slots = [e.right for e in (*self.entities, *(entity_of(member, schema) for member in members))]
        return tuple(dict.fromkeys(fields[slot] for slot in slots if slot in fields))

    @cached_property
    def own_lefts(self) -> frozenset[str]:
        """Halves of the viewer's own entities without an item: the viewer, the context, named fields."""
        named = (e.left for e in self.entities if e.own and not e.right)
        return frozenset(("", CONTEXT, *named))

    @cached_property
    def engagement_kinds(self) -> frozenset[str]:
        """Kinds of engagement that counters read."""
        of_families = (kind for family in FAMILIES for kind in family.engagement_kinds(self.declared))
        return frozenset((*self.kinds, "view", *of_families))

    @cached_property
    def shown(self) -> Floats:
        """Amounts that showing an item adds to the counters of its entities."""
        return amounts(self.kinds, "shown")

    def amounts(self, engagement: Engagement) -> Floats:
        """Amounts that an engagement adds to the counters of its entities."""
        added = amounts(self.kinds, engagement.kind, engagement.watch_ms)
        self.operators.add(engagement, added)
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
        """Kinds of counters: shown, each label, watch, then those of families."""
        of_families = (kind for family in FAMILIES for kind in family.counter_kinds(self.declared))
        return ("shown", *self.schema.labels, "watch", *of_families)

    @cached_property
    def label_kinds(self) -> Keys:
        """The kinds whose rates are features, by their indices (L,)."""
        return np.array([self.kinds.index(label) for label in self.main_labels], np.int64)

    @cached_property
    def watch_kind(self) -> int:
        """The kind of watch time, by its index."""
        return self.kinds.index("watch")

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

    def user_field_keys(self, fields: dict[str, Any]) -> list[int]:
        """The key of the first value of each of ``user_fields``; 0 for none."""
        return [self._first_key(name, fields) for name in self.user_fields]

    def left_keys(self, user_fields: Sequence[int], context: dict[str, Any]) -> tuple[int, ...]:
        """The keys of ``lefts`` for a viewer's ``user_field_keys`` (none: without a profile) and a request's
        context; 0 for an absent one."""
        keys = dict(zip(self.user_fields, user_fields, strict=False))
        out = []
        for names in self._left_names.values():
            pair = [
                keys.get(name, 0) if name in self.user_fields else self._first_key(name, context)
                for name in names
            ]
            out.append(int(crossed(*pair)) if len(pair) > 1 and pair[0] else pair[0])
        return tuple(out)

    def _first_key(self, full: str, fields: dict[str, Any]) -> int:
        """The key of the first value of a field of users or contexts; 0 for none."""
        values = values_of(fields.get(self.request_fields[full][1]))
        return key_of(full, values[0]) if values else 0


@lru_cache(64)  # so that a set is computed once, and equal texts give the same object
def read_set(text: str) -> FeatureSet:
    """The feature set in a record of ``control``."""
    return msgspec.json.decode(text, type=FeatureSet)


def set_text(features: FeatureSet) -> str:
    """A feature set for a record of ``control``."""
    return msgspec.json.encode(features.as_dict()).decode()
