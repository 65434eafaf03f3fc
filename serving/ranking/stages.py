"""The stages between the ranker and the draw: each adds to scores or takes candidates out, under its name.

A stage sees the candidates as ranked and what was asked; it neither keeps anything nor knows of the others.
What a stage adds and whom it lets through stays in ``Ranked``, so that an answer can be explained.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.policy_config import PolicyConfig, Rule
from recsys.events.hashing import key_of
from recsys.features.feature_set import FeatureSet
from recsys.features.session import Session
from serving.ranking.selection import Cap
from serving.replica.replica import Replica
from serving.request import Ranked

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_HIDDEN: Final = 20  # the newest hidden items whose authors and tags count


@dataclass(frozen=True)
class Staged:
    """What a stage did: what each score gains by it (None: nothing), and who stays (None: all)."""

    added_N: Floats | None = None
    kept_N: Mask | None = None


Stage = Callable[[Replica, Session, PolicyConfig, Ranked], Staged]


def not_interested(
    replica: Replica, session: Session, policy: PolicyConfig, ranked: Ranked
) -> Staged:
    """Items by the authors and with the tags of what the viewer hid lose up to ``policy.not_interested``.

    A group weighs hidden / (hidden + liked + 1): one hide among many likes is about the item, not about all
    that shares a tag with it. Of an item's groups the heaviest counts.
    """
    if not policy.not_interested or not session.hidden or not ranked.indices:
        return Staged()
    keys, hidden = _hidden_groups(replica, session)
    if not len(keys):
        return Staged()
    features = replica.features
    liked = len(features.kinds) + features.kinds.index(features.main_labels[0])  # slow counters
    met = session.counters.read(keys, session.last_ms)[:, liked]
    weights = hidden / (hidden + met + 1.0)
    groups_NG = ranked.features.items_NI[:, features.group_columns()]
    places = np.searchsorted(keys, groups_NG).clip(max=len(keys) - 1)
    heaviest = np.where(keys[places] == groups_NG, weights[places], 0.0).max(1, initial=0.0)
    return Staged(-policy.not_interested * heaviest)


def _hidden_groups(replica: Replica, session: Session) -> tuple[NDArray[np.int64], Floats]:
    """The group keys of the newest hidden items, in order, and in how many of these each stands."""
    catalogue, columns = replica.catalogue, replica.features.group_columns()
    newest = np.array(list(session.hidden)[-_HIDDEN:], np.int64)
    known = catalogue.indices_of_keys(newest)
    keys, counts = np.unique(catalogue.keys[known[known >= 0]][:, columns], return_counts=True)
    return keys[keys != 0], counts[keys != 0].astype(np.float64)


def rules(replica: Replica, session: Session, policy: PolicyConfig, ranked: Ranked) -> Staged:
    """``policy.rules``: what is boosted, buried, required, or limited to none. Other limits are caps."""
    if not policy.rules:
        return Staged()
    added_N, kept_N = np.zeros(len(ranked.indices)), np.ones(len(ranked.indices), np.bool_)
    required: dict[str, Mask] = {}
    for rule in policy.rules:
        holds_N = holding(ranked, rule)
        if rule.do == "require":
            required[rule.field] = holds_N | required.get(rule.field, False)
        elif rule.do == "limit":
            kept_N &= ~holds_N if rule.amount < 1 else True
        else:
            added_N += holds_N * (rule.amount if rule.do == "boost" else -rule.amount)
    for holds_N in required.values():
        kept_N &= holds_N
    return Staged(added_N, kept_N)


def holding(ranked: Ranked, rule: Rule) -> Mask:
    """Which candidates hold the rule's value in its field, by the keys that the ranker reads."""
    held: Mask = (ranked.features.items_NI == key_of(f"item.{rule.field}", rule.value)).any(1)
    return held


# In the order in which they are done: the names are those in ``removed`` and ``Ranked.added``.
STAGES: Final[tuple[tuple[str, Stage], ...]] = (
    ("not_interested", not_interested),
    ("rules", rules),
)


def staged(
    replica: Replica, session: Session, policy: PolicyConfig, ranked: Ranked
) -> tuple[Ranked, dict[str, int]]:
    """The candidates after all stages, and how many each took out, by name."""
    removed: dict[str, int] = {}
    for name, stage in STAGES:
        did = stage(replica, session, policy, ranked)
        if did.added_N is not None:
            ranked = replace(ranked, added=ranked.added | {name: did.added_N})
        if did.kept_N is not None:
            removed[name] = int((ranked.open_N & ~did.kept_N).sum())
            ranked = replace(ranked, open_N=ranked.open_N & did.kept_N)
    return ranked, removed


def caps_of(
    features: FeatureSet, policy: PolicyConfig, ranked: Ranked, given: bool
) -> tuple[Cap, ...]:
    """How many of one author, and of what a rule limits, a list may hold. Authors aren't counted where the
    candidates are ``given``: the caller chose them."""
    caps = []
    items_NI = ranked.features.items_NI
    if features.schema.groups and policy.per_author and not given:
        column = features.slot(f"item.{features.schema.groups[0]}").start
        caps.append(Cap("per_author", items_NI[:, column], policy.per_author))
    for rule in policy.rules:
        if rule.do == "limit" and rule.amount >= 1:
            name = f"limit {rule.field}={rule.value}"
            caps.append(Cap(name, holding(ranked, rule).astype(np.int64), int(rule.amount)))
    return tuple(caps)


def trust_of(shown_N: Floats, trust_after: int) -> Floats:
    """What is left of an item's trial: 1 where it was never shown, 0 from ``trust_after`` times on."""
    if not trust_after:
        return np.zeros(len(shown_N))
    left: Floats = np.maximum(0.0, 1.0 - shown_N / trust_after)
    return left
