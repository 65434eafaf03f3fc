"""Keys of the fields of items, users and contexts: categorical values are hashed, in named slots of columns.

Legend: U user columns, I item columns, H keys of a history entry.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.field_schema import CATEGORICAL, Schema, values_of
from recsys.events.hashing import Id, key_of

Keys = NDArray[np.int64]

GROUP_WIDTH: Final = 4  # values of a group field (one author, a few tags)
CONTENT_WIDTH: Final = 12  # other categorical item fields, all in one slot
PROFILE_WIDTH: Final = 40
CONTEXT_WIDTH: Final = 4
HISTORY_GROUP: Final = 2  # values of each group in a history entry
ENTITIES_KEPT: Final = 200_000
CONTEXTS_KEPT: Final = 10_000
_CONTEXT_LETTERS: Final = 256  # most of a context that is cached
_LONGEST_MS: Final = 2.0**53  # bounds durations, so that their logarithm exists


@dataclass(frozen=True)
class Slot:
    """A named range of columns whose keys are pooled into one row by their mean."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class FieldKeys:
    """The slots of a schema's fields, and the keys in them."""

    schema: Schema

    @property
    def counted_fields(self) -> tuple[str, ...]:
        """Item fields that have a slot of their own, beside groups."""
        return ()

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
    def slot_starts(self) -> dict[str, tuple[int, int]]:
        """The first column of each item slot, and their number; "" has none."""
        widths = {slot.name: (slot.start, slot.stop - slot.start) for slot in self.item_slots}
        return {"": (0, 0)} | widths

    def slot(self, name: str) -> Slot:
        """The slot of this name; raises KeyError."""
        try:
            return self._slots_by_name[name]
        except KeyError:
            raise KeyError(f"no slot {name!r}, expected one of {', '.join(self._slots_by_name)}") from None

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


def _slots(*widths: tuple[str, int]) -> tuple[Slot, ...]:
    slots, start = [], 0
    for name, width in widths:
        slots.append(Slot(name, start, start + width))
        start += width
    return tuple(slots)


_shared_key: Final = lru_cache(maxsize=16_384)(key_of)  # many users have the same values


def _fill(
    keys: Keys, slot: Slot, prefix: str, names: list[str] | tuple[str, ...], fields: dict[str, Any]
) -> None:
    """Writes the hashed values of several fields into one slot; drops the surplus."""
    hashed = [key_of(prefix + n, value) for n in names for value in values_of(fields.get(n))]
    hashed = hashed[: slot.stop - slot.start]
    keys[slot.start : slot.start + len(hashed)] = hashed
