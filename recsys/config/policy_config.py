"""The serving policy: from predictions to an answer. An experiment's arm may override any of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from recsys import plugins
from recsys.config.checks import Section, bounded, check, limited, positive
from recsys.events.hashing import Id

WATCH: Final = "watch"  # the weight of predicted watch time, beside those of the labels
UNWANTED: Final = ("hide", "skip")  # labels of which fewer are better, whatever they weigh
# Sources of candidates. Items on trial come first: the others may fill all places, and the quota needs some.
SOURCES: Final = ("trial", "covisit", "vector", "similar", "topic", "segment", "popular", "fresh", "again")
MAX_SOURCES: Final = 60  # a candidate has a bit for each
MAX_LIST_LENGTH: Final = 100  # items of a list that is an impression
_WEIGHT: Final = (lambda weight: 0 <= weight < 1e6, "0 (off) or more, below a million")
RULES: Final = ("boost", "bury", "require", "limit", "vary")
ANY: Final = "*"  # value of a rule for each value of its field


@dataclass(frozen=True)
class Rule:
    """A business rule for items whose ``field`` is ``value`` or a list that contains it.

    ``boost`` adds ``amount`` to their score, ``bury`` subtracts it; ``require`` excludes other items (of
    several rules on one field, one must hold); ``limit`` allows ``amount`` of them in a list, 0 none.
    ``vary``, whose value is ``*``, is about each value that the viewer liked lately: at most ``amount`` such
    items one after the other, and a share of the list that grows with the likes, from a third after one.
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
        varies = self.do == "vary"
        whole = self.do not in ("limit", "vary") or self.amount == int(self.amount)
        check(whole, f"{name}: amount", self.amount, "a whole number of items")
        check(self.amount >= 1 or not varies, f"{name}: amount", self.amount, "1 item or more")
        check(self.value == ANY or not varies, f"{name}: value", self.value, f"{ANY!r}: any")

    @property
    def excludes(self) -> bool:
        return self.do == "require" or (self.do == "limit" and self.amount < 1)


@dataclass(frozen=True)
class PolicyConfig(Section):
    """Settings that an arm may override by dotted paths: they change the answer, never the model."""

    section = "policy"
    # The weighted sum of predicted engagements: probabilities, and watch time in minutes.
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "long_view": 1.0, "click": 0.2, "like": 1.0, "follow": 1.5, "comment": 1.0, "share": 1.5,
            "hide": -3.0, "watch": 0.5,
        }
    )  # fmt: skip
    temperature: float = positive(0.03)  # of Plackett–Luce sampling over scores: lower is greedier
    # Whether it is a share of the level of the candidates' scores, for labels of any frequency.
    relative: bool = False
    # Share of each rank given to a uniform draw over the candidates.
    explore: float = bounded(0.05, 0, 1)
    per_author: int = 2  # items of one author in one list
    # Score penalty of an item identical in content to one above it in the list; 0 is off.
    diversity: float = limited(0.0, *_WEIGHT)
    # Maximal score penalty for sharing author or tags with items that the viewer hid; 0 is off.
    not_interested: float = limited(0.3, *_WEIGHT)
    rules: tuple[Rule, ...] = ()
    # Share of each rank given to items on trial: those shown less often than trust_after.
    quota: float = bounded(0.05, 0, 1)
    trust_after: int = bounded(50, 0)  # an item's part of the quota falls as it is shown
    sources: dict[str, int] = field(
        default_factory=lambda: {
            "trial": 15, "covisit": 150, "vector": 40, "similar": 15, "topic": 15, "segment": 15,
            "popular": 40, "fresh": 10,
        }
    )  # fmt: skip
    # Pinned items by rank, 0 being the first: {0: "v7"}. Ranks may be given as text.
    fixed: dict[int | str, Id] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in self.sources.items():
            sources = f"only the sources {', '.join(SOURCES)}, and plug-ins as name@version"
            check(name in SOURCES or "@" in name, f"policy.sources.{name}", share, sources)
        most = f"at most {MAX_SOURCES} sources"
        check(len(self.sources) <= MAX_SOURCES, "len(policy.sources)", len(self.sources), most)
        object.__setattr__(self, "fixed", _ranks(self.fixed))
        object.__setattr__(self, "rules", _rules(self.rules))

    @property
    def unwanted(self) -> tuple[str, ...]:
        """Labels of which fewer are better; those that an app calls negative have a weight below 0."""
        return *UNWANTED, *(label for label, weight in self.weights.items() if weight < 0)


def _rules(rules: Sequence[Any]) -> tuple[Rule, ...]:
    """Converts rules that an experiment gives as mappings."""
    try:
        return tuple(r if isinstance(r, Rule) else msgspec.convert(r, Rule) for r in rules)
    except msgspec.ValidationError as error:
        raise ValueError(f"policy.rules is {rules!r}: {error}") from None


def _ranks(fixed: dict[int | str, Id]) -> dict[int | str, Id]:
    """Pinned items by integer rank, in order."""
    pinned: dict[int, Id] = {}
    for key, item_id in fixed.items():
        rank = int(key) if isinstance(key, str) and key.isdecimal() else key
        valid = isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank < MAX_LIST_LENGTH
        check(valid, f"policy.fixed.{key}", item_id, f"a rank of 0 to {MAX_LIST_LENGTH - 1} before the item")
        text = isinstance(item_id, str) and 0 < len(item_id) <= 256
        whole = isinstance(item_id, int) and not isinstance(item_id, bool)
        check(text or whole, f"policy.fixed.{key}", item_id, "an item's id")
        assert isinstance(rank, int)
        pinned[rank] = item_id
    for rank, item_id in pinned.items():
        ranks = [r for r, pinned_id in pinned.items() if str(pinned_id) == str(item_id)]
        expected = f"an item at one rank, not at {ranks}"
        check(len(ranks) == 1, f"policy.fixed.{rank}", item_id, expected)
    return {rank: pinned[rank] for rank in sorted(pinned)}


def check_plugins(policy: PolicyConfig, stages: Sequence[str] = ()) -> None:
    """Raises ValueError for a source or a stage that is a plug-in and can't be loaded."""
    for name in policy.sources:
        if name not in SOURCES:
            plugins.load_version(plugins.SOURCES, name)
    for name in stages:
        plugins.load_version(plugins.STAGES, name)


def check_weights(policy: PolicyConfig, labels: Sequence[str]) -> None:
    """Raises ValueError for a weight that is neither a label of the schema nor watch time.

    Unchanged defaults may stay, though a data set has fewer labels: they have no effect.
    """
    defaults = PolicyConfig().weights
    for name, weight in policy.weights.items():
        valid = name == WATCH or name in labels or defaults.get(name) == weight
        check(valid, f"policy.weights.{name}", weight,
              f"only labels of the schema ({', '.join(labels)}) and {WATCH!r}")  # fmt: skip


def check_rules(policy: PolicyConfig, fields: Sequence[str]) -> None:
    """Raises ValueError for a rule on a field that no item has or that isn't text: it would never apply.

    ``fields`` are the categorical item fields of the schema.
    """
    for rule in policy.rules:
        check(rule.field in fields, f"policy.rules, {rule.do}: field", rule.field,
              f"a field of items that holds text: one of {', '.join(fields)}")  # fmt: skip
