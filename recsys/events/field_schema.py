"""Schema of the free fields of items, users and contexts: names and kinds.

Fields of events become features by their kind: text and lists of text are categorical, numbers numeric, a
list of numbers of declared length is a vector. A schema is part of a feature set's digest.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from recsys.events.rejection import Rejected

CATEGORICAL: Final = "categorical"
NUMERIC: Final = "numeric"
VECTOR: Final = "vector"


@dataclass(frozen=True)
class Schema:
    """Field names with their kinds, sorted by name.

    ``groups``: item fields with shared values (author, tags), used by counters and history. ``labels``:
    engagement kinds, the most important first. ``shown_by``: when an item counts as shown: ``impression``
    (every served item), ``view`` (the client reports what was on screen) or ``click`` (an engagement of the
    first kind of label is all that is known). ``kinds``: of engagement that the
    app declares; none: ``event_types.ENGAGEMENT_KINDS``. ``times``: item fields that are times, which filters
    may name; no features, so that they change no digest and no equality.
    """

    item: tuple[tuple[str, str], ...] = ()
    user: tuple[tuple[str, str], ...] = ()
    context: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ("author", "tags")
    labels: tuple[str, ...] = ("long_view", "click", "like", "follow", "comment", "share", "hide")
    vectors: tuple[tuple[str, int], ...] = ()
    shown_by: str = "view"
    kinds: tuple[str, ...] = ()
    times: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("labels is empty, expected at least one engagement kind, e.g. [click]")
        if self.shown_by not in ("view", "impression", "click"):
            raise ValueError(f"shown_by is {self.shown_by!r}, expected view, impression or click")

    def shows(self, kind: str) -> bool:
        """Whether an engagement of this kind tells that its item was shown."""
        return kind == {"view": "view", "click": self.labels[0]}.get(self.shown_by)

    def names(self, part: str, kind: str) -> tuple[str, ...]:
        """The names of one kind of one part ("item", "user", "context"), in order."""
        return tuple(name for name, field_kind in getattr(self, part) if field_kind == kind)


def kind_of(value: Any) -> str | None:
    """The kind of a field from one of its values; None if it can't be a feature (a mapping, a null)."""
    if isinstance(value, bool | str):
        return CATEGORICAL
    if isinstance(value, int | float):
        return NUMERIC
    if isinstance(value, list) and value:
        return VECTOR if all(isinstance(x, int | float) for x in value) else CATEGORICAL
    return None


def check_fields(schema: Schema, part: str, fields: Mapping[str, Any], where: str) -> None:
    """Raises Rejected for a value that a declared field of a part can't have. Null and "" are no value."""
    lengths = dict(schema.vectors)
    for name, kind in getattr(schema, part):
        value, expected = fields.get(name), "a text or a list of texts"
        values = value if isinstance(value, list) else [value]
        if value is None or value == "":
            continue
        if kind == NUMERIC:
            valid, expected = isinstance(value, int | float), "a number"
        elif kind == VECTOR:
            valid = isinstance(value, list) and len(value) == lengths.get(name, len(value))
            valid = valid and all(isinstance(x, int | float) for x in values)
            expected = f"a list of {lengths.get(name, 'some')} numbers"
        else:
            valid = all(isinstance(x, str | int | float | None) for x in values)
        if not valid:
            raise Rejected(f"{where}.{name}", value, expected)


def likely_misspelt(declared: tuple[str, ...], names: Collection[str]) -> tuple[str, str] | None:
    """The first of the ``names`` that resembles a declared one which isn't among them, and that one. Looks at
    eight undeclared names at most."""
    undeclared = (name for name in names if name not in declared)
    for name in islice(undeclared, 8):
        if (close := _resembling(declared, name)) and close not in names:
            return name, close
    return None


@lru_cache(4096)
def _resembling(declared: tuple[str, ...], name: str) -> str:
    """The declared name that is most like another name; empty if none is, or the name is long."""
    close = get_close_matches(name, declared, 1, 0.75) if len(name) <= 64 else []
    return close[0] if close else ""


def default_groups(categorical: tuple[str, ...]) -> tuple[str, ...]:
    """Default item fields to group by: author, tags, category and topic, else the first two."""
    usual = tuple(name for name in ("author", "tags", "category", "topic") if name in categorical)
    return (usual or categorical)[:2]


def values_of(value: Any) -> list[str]:
    """A categorical value as a list of texts."""
    if value is None or value == "":
        return []
    if isinstance(value, list):
        return [str(x) for x in value if x is not None and x != ""]
    return [str(value)]


def spellings_of(value: str) -> tuple[str, ...]:
    """The texts that mean a value: as features, ``true`` and ``false`` of JSON are "True" and "False"."""
    return (value, value.capitalize()) if value in ("true", "false") else (value,)
