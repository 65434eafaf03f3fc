"""The definition of an app as data: its events, labels, fields, features and objective.

``recsys.app.app_file`` reads it from ``app.yaml``; Python code may build it directly. One definition serves
replay and a running system: both take the feature set and the settings from it.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import msgspec

from recsys.app.page import LIST, OPENING, SHOWN_FIELDS, SWIPE, WATCHING, Page
from recsys.config.policy_config import WATCH, PolicyConfig
from recsys.config.system_config import Config
from recsys.events.field_schema import CATEGORICAL, NUMERIC, VECTOR, Schema, default_groups
from recsys.events.hashing import digest_of
from recsys.features.families.declared import Declared, faults
from recsys.features.feature_set import FeatureSet

BY_VIEW: Final = "view"  # the client reports with a `view` what was on screen
BY_LIST: Final = "list"  # all items of a list, once the viewer's side confirms it
BY_CLICK: Final = "clicks"  # the log has engagements only, without lists
# Kinds of declared fields, and the kind that features read.
FIELD_KINDS: Final = {
    "category": CATEGORICAL,
    "list": CATEGORICAL,
    "number": NUMERIC,
    "vector": VECTOR,
    "time": "",  # of items: read by ``age`` and by filters only
}

# Rates of learning from clicks without lists: an item's popularity changes faster than its row should learn,
# and such streams are small (docs/decisions/shown-items.md).
CLICK_RATES: Final[dict[str, Any]] = {"row_rate": 0.001, "dense_rate": 0.002}

_TEMPERATURE: Final = 0.1  # of a relative policy, unless the configuration has another
_SHOWN_BY: Final = {BY_VIEW: "view", BY_LIST: "impression", BY_CLICK: "click"}


@dataclass(frozen=True)
class EventKind:
    """A kind of engagement. ``label``: positive, negative, or "" if it isn't predicted. ``weight``: of its
    predicted probability in the score; negative labels subtract theirs. ``value``: name of the number that
    such events carry, e.g. amount."""

    label: str = ""
    weight: float = 1.0
    value: str = ""


@dataclass(frozen=True)
class Field:
    """A field of items, users or contexts. ``length``: of a vector."""

    kind: str
    length: int = 0


@dataclass(frozen=True)
class App:
    """An app: see docs/reference/app.md for each part.

    ``fields``: by name, under item, user and context; the first of users and of contexts is crossed with
    others. ``groups``: categorical item fields with counters of their own; none: the first two usual ones.
    ``repeats``: whether items that were seen may be shown again. ``shown``: when an item counts as shown.
    ``rendered``: whether lists that are asked for with an API key count at once, with ``shown: list``.
    ``window_s``: event time after which a shown item without engagement is a negative. ``page``: how the feed
    page shows it; no part of the digest.
    """

    name: str = "app"
    events: dict[str, EventKind] = field(default_factory=lambda: {"click": EventKind("positive")})
    fields: dict[str, dict[str, Field]] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    shown: str = BY_VIEW
    window_s: float = 60.0
    features: Declared = Declared()
    history: int = 20
    repeats: bool = False
    sources: dict[str, int] = field(default_factory=dict)
    rendered: bool = False
    page: Page = Page()

    @property
    def labels(self) -> tuple[str, ...]:
        """Kinds of engagement that are predicted: positive ones first, each in the order of declaration."""
        ordered = sorted(self.events.items(), key=lambda event: event[1].label != "positive")
        return tuple(kind for kind, event in ordered if event.label)

    @cached_property
    def schema(self) -> Schema:
        """The schema of fields and labels."""
        items = self.fields.get("item", {})
        texts = tuple(name for name, f in items.items() if FIELD_KINDS[f.kind] == CATEGORICAL)
        by_part = {
            part: tuple(
                (name, FIELD_KINDS[f.kind])
                for name, f in self.fields.get(part, {}).items()
                if FIELD_KINDS[f.kind]
            )
            for part in ("item", "user", "context")
        }
        return Schema(
            **by_part,
            groups=self.groups or default_groups(texts),
            labels=self.labels,
            vectors=tuple((name, f.length) for name, f in items.items() if f.kind == "vector"),
            shown_by=_SHOWN_BY[self.shown],
            kinds=tuple(self.events | ({"view": EventKind()} if self.shown == BY_VIEW else {})),
            times=tuple(name for name, f in items.items() if f.kind == "time"),
        )

    def feature_set(self, kind: str = "all") -> FeatureSet:
        """The features of the app. Raises ValueError for a fault in their definition."""
        features = self.features_as_declared(kind)
        for _, reason in faults(features):
            raise ValueError(reason)
        return features

    def features_as_declared(self, kind: str = "all") -> FeatureSet:
        """The features, not checked."""
        values = tuple((kind, event.value) for kind, event in self.events.items() if event.value)
        return FeatureSet(self.schema, kind, self.history, replace(self.features, values=values))

    def config(self, base: Config) -> Config:
        """A system's configuration for the app: its window, objective and sources, and rates of learning."""
        weights = {
            kind: event.weight if event.label == "positive" else -event.weight
            for kind, event in self.events.items()
            if event.label
        }
        # The cap is on the first group: many items of one author are dull, many of one category aren't.
        per_author = base.policy.per_author if "author" in self.schema.groups[:1] else 0
        usual = base.policy.temperature == PolicyConfig.temperature
        policy = replace(
            base.policy, weights=weights | {WATCH: 0.0}, per_author=per_author, relative=True,
            temperature=_TEMPERATURE if usual else base.policy.temperature,
        )  # fmt: skip
        if self.sources:
            policy = replace(policy, sources=self.sources)
        elif self.repeats:
            policy = replace(policy, sources=policy.sources | {"again": 20})
        join = replace(base.join, window_s=self.window_s)
        sessions = replace(base.sessions, history=self.history, repeats=self.repeats)
        if self.shown == BY_CLICK:
            base = replace(base, model=replace(base.model, **CLICK_RATES))
        slow_h = self.features.half_lives_h[-1]
        if self.features.half_lives_h != Declared.half_lives_h:
            pairs_h = max(base.covisits.pairs_h, slow_h)  # of the same time scale as the counters
            base = replace(base, covisits=replace(base.covisits, pairs_h=pairs_h, trend_h=slow_h))
        serve = replace(base.serve, rendered=self.rendered)
        return replace(base, policy=policy, join=join, sessions=sessions, serve=serve)

    @property
    def shown_as(self) -> dict[str, Any]:
        """The parts of the definition that a page needs, as ``/v1/app`` answers it (``AppOut``)."""
        watched = WATCHING if self.shown == BY_VIEW else ()
        opens = next((kind for kind in OPENING if kind in self.events and kind not in watched), None)
        kinds = [
            {
                "kind": kind, "label": event.label,
                "name": self.page.names.get(kind) or kind.replace("_", " ").capitalize(),
                "button": bool(event.label) and kind not in (opens, *watched),
            }
            for kind, event in self.events.items()
        ]  # fmt: skip
        own, items = self.page.fields, self.fields.get("item", {})
        return {
            "app": self.name, "layout": self.page.layout or (SWIPE if self.shown == BY_VIEW else LIST),
            "shown": self.shown, "opens": opens, "kinds": kinds,
            "fields": {n: [own[n]] if n in own else list(usual) for n, usual in SHOWN_FIELDS.items()},
            "categories": [name for name, one in items.items() if one.kind in ("category", "list")],
            "groups": list(self.schema.groups),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """Digest of all parts that answers depend on; without newer ones that are empty, so that older
        definitions keep theirs."""
        parts = msgspec.to_builtins(self)
        del parts["page"]
        for event in parts["events"].values():
            if not event["value"]:
                del event["value"]
        if not self.rendered:
            del parts["rendered"]
        parts["features"] = self.features.as_dict()
        for name in ("events", "sources", "fields"):
            parts[name] = dict(sorted(parts[name].items()))
        parts["fields"] = {part: dict(sorted(n.items())) for part, n in parts["fields"].items()}
        return digest_of(msgspec.json.encode(parts))
