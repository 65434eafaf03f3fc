"""Counts and rates of entities at each half-life, relative to everybody's, and the counters they are from.

Legend: N candidates, E entities of a candidate, M entities that all share, C counter columns, S speeds, L
labels, W speeds with watch time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import GLOBAL, VIEWER, Column, Hours, entity_measure, entity_of
from recsys.features.counters import CounterTable
from recsys.features.families.base import Family, Fault, Floats, Keys, RequestView
from recsys.features.feature_kernels import gather_rates, lay_rates

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

SMOOTHING: Final = 4.0  # prior examples added to every running rate
RARE: Final = np.float32(1e-4)  # minimal distance of a rate from 0 and 1
BOUND: Final = 8.0  # in log seconds: 50 minutes. An imported log may report watch time without impressions


@dataclass(frozen=True)
class DeclaredRates:
    """``half_lives_h``: of all counters, ascending. ``entities``: names as in ``columns.entity_of``, none:
    the default ones. ``watches``: at how many half-lives, the slowest, watch time is a column."""

    half_lives_h: tuple[float, ...] = (6.0, 336.0)
    entities: tuple[str, ...] = ()
    watches: int = 1


class Rates(Family):
    """Log counts, log odds of the first labels, and watch time at the slowest half-lives."""

    name, keys = "rates", ("half_lives", "rates")

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """At most six half-lives, in any order."""
        hours = DeclaredRates.half_lives_h
        if "half_lives" in raw:
            path = ("features", "half_lives")
            if not isinstance(raw["half_lives"], list) or not 1 <= len(raw["half_lives"]) <= 6:
                raise values.expected("one to six durations", raw["half_lives"], *path)
            seconds = [values.seconds(x, *path, at) for at, x in enumerate(raw["half_lives"])]
            hours = tuple(sorted({s / 3600.0 for s in seconds}))
        entities = values.names(raw.get("rates", []), "features", "rates", pattern=None)
        return {"half_lives_h": hours, "entities": entities}

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """Names that aren't entities."""
        for at, name in enumerate(features.declared.entities):
            try:
                entity_of(name, features.schema)
            except ValueError as error:
                yield ("features", "rates", at), f"rates: {error}"

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """Counts at each half-life, rates of each label at each half-life, then watch time."""
        declared, labels = features.declared, features.main_labels
        fades = [*zip(features.speeds, map(Hours, declared.half_lives_h), strict=True)]
        numbers = [("shown", fade, False) for fade in fades]
        numbers += [(label, fade, True) for fade in fades for label in labels]
        numbers += [("watch", fade, False) for fade in fades[-declared.watches :]]
        for entity in features.entities:
            of, own, differs = entity_measure(entity), entity.own, bool(entity.right)
            for what, (speed, hours), is_rate in numbers:
                name, measure = f"{entity.name}/{what}.{speed}", (cls.name, of, what, hours)
                yield Column(cls.name, name, measure, differs, own, entity.name, is_rate)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """Its columns are the first, each entity's side by side."""
        one = request.gathered
        np.log(one.logs, out=one.logs)
        lay_rates(one.logs, one.sums_NEC, one.same_MC, one.prior_SL, self.features.watch_kind,
                  one.mean_W, SMOOTHING, BOUND, one.same_at, one.each_at, dense_NF)  # fmt: skip


class Gathered(NamedTuple):
    """Counters of each candidate's entities and of those that all share, first everybody's; the usual rates
    and watch time; the arguments of logarithms, which ``lay_rates`` reads; the places of both kinds among
    ``FeatureSet.entities``."""

    sums_NEC: Floats
    same_MC: Floats
    prior_SL: Floats
    mean_W: Floats
    logs: Floats
    same_at: Keys
    each_at: Keys


def entity_places(features: "FeatureSet") -> tuple[list[int], list[int]]:
    """Entities that are the same for all items, everybody's first, and entities of each item."""
    entities = list(enumerate(features.entities))
    same = sorted((entity.own, at) for at, entity in entities if not entity.right)
    return [at for _, at in same], [at for at, entity in entities if entity.right]


class EntityCounters:
    """Reads the counters of the entities of a feature set."""

    def __init__(self, features: "FeatureSet") -> None:
        self._labels, self._watch = features.label_kinds, features.watch_kind
        self._watches = features.declared.watches
        same_at, each_at = entity_places(features)
        self._same_at, self._each_at = np.array(same_at, np.int64), np.array(each_at, np.int64)
        same = [features.entities[at] for at in same_at]
        self._shared_lefts = [entity.left for entity in same if not entity.own]
        self._own_lefts = [entity.left for entity in same if entity.own]
        each = [(e, features.slot(e.right)) for e in (features.entities[at] for at in each_at)]
        self._each_lefts = [entity.left for entity, _ in each]
        # As ``gather`` reads them; the key that they are crossed with is the request's.
        rows = [(e.own, e.left != "", 0, s.start, s.stop - s.start) for e, s in each]
        self._each = np.array(rows, np.int64).reshape(-1, 5)

    def gather(
        self,
        items_NI: Keys,
        halves: Mapping[str, int],
        counters: CounterTable,
        own: CounterTable,
        now_ms: int,
    ) -> Gathered:
        """Counters of candidates by their keys, from everybody's and the viewer's ``own``."""
        shared = [GLOBAL, *(halves.get(left, GLOBAL) for left in self._shared_lefts)]
        keys = np.array([*shared, *(halves.get(left, VIEWER) for left in self._own_lefts)], np.int64)
        each = self._each.copy()
        each[:, 2] = [halves.get(left, 0) for left in self._each_lefts]
        speeds, labels = counters.speeds, len(self._labels)
        sums = np.zeros((len(items_NI), len(each), counters.columns), np.float32)
        same = np.zeros((len(keys), counters.columns), np.float32)
        prior, mean = np.empty((speeds, labels), np.float32), np.empty(self._watches, np.float32)
        rows = len(keys) - 1 + len(items_NI) * len(each)
        logs = np.empty(prior.size + rows * (speeds + prior.size), np.float32)
        gather_rates(*counters.arrays, *own.arrays, counters.half_lives_ms, items_NI, each, keys, len(shared),
                     now_ms, self._labels, self._watch, SMOOTHING, RARE, sums, same, prior, mean,
                     logs)  # fmt: skip
        return Gathered(sums, same, prior, mean, logs, self._same_at, self._each_at)
