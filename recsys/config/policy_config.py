"""The policy: how an answer is made of what was predicted. An experiment's arm may override any of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from recsys.config.checks import check
from recsys.events.event_types import ENGAGEMENT_KINDS
from recsys.events.hashing import Id

WATCH: Final = "watch"  # the weight of predicted watch time, beside those of the labels
# Of candidates. What is on trial comes first: the others may fill all places, and the quota needs some of it.
SOURCES: Final = ("trial", "vector", "similar", "topic", "segment", "popular", "fresh")
RANKS: Final = 100  # of the longest list that may be asked for
RULES: Final = ("boost", "bury", "require", "limit")


@dataclass(frozen=True)
class Rule:
    """A business rule for items whose ``field`` holds ``value``: a text, or one of a list of texts.

    ``boost`` adds ``amount`` to their score, ``bury`` takes it away; ``require`` leaves no other items (of
    several on one field, one must hold); ``limit`` lets ``amount`` of them into a list, 0 none.
    """

    field: str
    value: str
    do: str
    amount: float = 1.0

    def __post_init__(self) -> None:
        name = f"policy.rules, {self.do} {self.field}"
        check(self.do in RULES, f"{name}: do", self.do, f"one of {', '.join(RULES)}")
        check(bool(self.field), f"{name}: field", self.field, "the name of an item's field")
        check(0 <= self.amount < 1e6, f"{name}: amount", self.amount, "0 or more, below a million")
        whole = self.do != "limit" or self.amount == int(self.amount)
        check(whole, f"{name}: amount", self.amount, "a whole number of items")


@dataclass(frozen=True)
class PolicyConfig:
    """What an arm may override by a dotted path: it changes the answer, never the model."""

    # The weighted sum of predicted engagements: probabilities, and watch time in minutes.
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "long_view": 1.0,
            "click": 0.2,
            "like": 1.0,
            "follow": 1.5,
            "comment": 1.0,
            "share": 1.5,
            "hide": -3.0,
            "watch": 0.5,
        }  # fmt: skip
    )
    temperature: float = 0.03  # of the Plackett–Luce draw over scores: lower is greedier
    explore: float = 0.05  # share of each rank given to a uniform draw over the candidates
    per_author: int = 2  # items of one author in one list
    # What an item loses of its score for being as near as can be to one above it in the list; 0 is off.
    diversity: float = 0.0
    # What an item loses at most for its author or tags being those of items that the viewer hid; 0 is off.
    not_interested: float = 0.3
    rules: tuple[Rule, ...] = ()
    quota: float = (
        0.05  # share of each rank given to items on trial: those shown less often than ...
    )
    trust_after: int = 50  # ... so many times; their part of the quota falls as they are shown
    sources: dict[str, int] = field(
        default_factory=lambda: {
            "trial": 20,
            "vector": 150,
            "similar": 80,
            "topic": 80,
            "segment": 60,
            "popular": 60,
            "fresh": 30,
        }
    )
    # Items that stand at a rank, 0 being the first: {0: "v7"}. Text that is a number is a rank too.
    fixed: dict[int | str, Id] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            known = name == WATCH or name in ENGAGEMENT_KINDS
            check(known, f"policy.weights.{name}", weight,
                   f"only labels of the schema (of {', '.join(ENGAGEMENT_KINDS)}) and {WATCH!r}")  # fmt: skip
        for name, share in self.sources.items():
            check(name in SOURCES, f"policy.sources.{name}", share,
                   f"only the sources {', '.join(SOURCES)}")  # fmt: skip
        object.__setattr__(self, "fixed", _ranks(self.fixed))
        object.__setattr__(self, "rules", _rules(self.rules))
        for name in ("diversity", "not_interested"):
            weight = getattr(self, name)
            check(0 <= weight < 1e6, f"policy.{name}", weight, "0 (off) or more, below a million")
        check(0 <= self.quota <= 1, "policy.quota", self.quota, "0 to 1")
        check(self.trust_after >= 0, "policy.trust_after", self.trust_after,
               "0 (nothing is on trial) or more impressions")  # fmt: skip
        check(self.temperature > 0, "policy.temperature", self.temperature, "a positive number")
        check(0 <= self.explore <= 1, "policy.explore", self.explore, "0 to 1")


def _rules(rules: Sequence[Any]) -> tuple[Rule, ...]:
    """The rules, also those that an experiment gives as mappings."""
    try:
        return tuple(r if isinstance(r, Rule) else msgspec.convert(r, Rule) for r in rules)
    except msgspec.ValidationError as error:
        raise ValueError(f"policy.rules is {rules!r}: {error}") from None


def _ranks(fixed: dict[int | str, Id]) -> dict[int | str, Id]:
    """The items by rank, as numbers, in order."""
    found: dict[int, Id] = {}
    for key, item_id in fixed.items():
        rank = int(key) if isinstance(key, str) and key.isdecimal() else key
        sound = isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank < RANKS
        check(sound, f"policy.fixed.{key}", item_id, f"a rank of 0 to {RANKS - 1} before the item")
        text = isinstance(item_id, str) and 0 < len(item_id) <= 256
        whole = isinstance(item_id, int) and not isinstance(item_id, bool)
        check(text or whole, f"policy.fixed.{key}", item_id, "an item's id")
        assert isinstance(rank, int)
        found[rank] = item_id
    for rank, item_id in found.items():
        twice = [other for other, its in found.items() if str(its) == str(item_id)]
        check(
            len(twice) == 1, f"policy.fixed.{rank}", item_id, f"an item at one rank, not at {twice}"
        )
    return {rank: found[rank] for rank in sorted(found)}


def check_weights(policy: PolicyConfig, labels: Sequence[str]) -> None:
    """Raises ValueError for a weight of what isn't predicted: neither a label of the schema nor watch time.

    A default that nobody changed may stay, though a data set knows fewer labels: it weighs nothing.
    """
    usual = PolicyConfig().weights
    for name, weight in policy.weights.items():
        known = name == WATCH or name in labels or usual.get(name) == weight
        check(known, f"policy.weights.{name}", weight,
               f"only labels of the schema ({', '.join(labels)}) and {WATCH!r}")  # fmt: skip


def check_rules(policy: PolicyConfig, fields: Sequence[str]) -> None:
    """Raises ValueError for a rule on a field that no item has, or that isn't text: it would never hold.

    ``fields`` are the categorical item fields of the schema.
    """
    for rule in policy.rules:
        check(rule.field in fields, f"policy.rules, {rule.do}: field", rule.field,
               f"a field of items that holds text: one of {', '.join(fields)}")  # fmt: skip
