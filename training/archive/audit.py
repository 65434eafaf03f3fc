"""Whether features as they were served are those that the events of then give: a sample, number by number.

Features are computed again by the one definition of each (training/archive/recompute.py) and compared with
the block in the impression: keys, history and outcomes to the last bit, what the counters gave within a
tolerance, as sums of many small numbers depend a little on their order. Differences are gathered by feature;
what can't be computed again is counted by its reason, and is no difference.

Pure: it doesn't know where events come from, nor how a session is folded.
"""

# N items of an impression, F dense columns

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniform
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, RequestFeatures, UnknownFeatureSet, read_block
from recsys.features.session import Session
from training.archive.recompute import CantRecompute, PastCounters, Recomputer, PlacedImpression

TOLERANCE: Final = 1e-4  # of a dense column that counters gave
_EXACT: Final = 1e-6  # of the others
_SALT: Final = 77


@dataclass
class FeatureDifference:
    """Where one feature wasn't what it should have been. Differences of keys count as 1."""

    impressions: int = 0
    numbers: int = 0
    largest: float = 0.0
    total: float = 0.0
    first: str = ""  # the request that showed it first

    @property
    def mean(self) -> float:
        return self.total / max(1, self.numbers)


@dataclass
class AuditReport:
    """What an audit found. ``without_counters``: of the sampled, how many were compared but for counters."""

    sampled: int = 0
    equal: int = 0
    without_counters: dict[str, int] = field(default_factory=dict)
    differing: dict[str, FeatureDifference] = field(default_factory=dict)
    not_recomputed: dict[str, int] = field(default_factory=dict)

    @property
    def compared(self) -> int:
        return self.sampled - sum(self.not_recomputed.values())

    @property
    def skewed(self) -> bool:
        return self.equal < self.compared


def is_sampled(request_id: str, share: float) -> bool:
    """Whether an impression is in a hashed sample: the same ones whenever and wherever it is asked."""
    return share >= 1.0 or uniform(_SALT, request_id) < share


class Audit:
    """Compares impressions with what they should have been."""

    def __init__(
        self, recomputer: Recomputer, features: FeatureSet, tolerance: float = TOLERANCE
    ) -> None:
        self._recomputer, self._features = recomputer, features
        self._compare = Comparison(features, recomputer.builder, tolerance)
        self.report = AuditReport()

    def look(
        self, shown: Iterable[PlacedImpression], session_of: Callable[[PlacedImpression], Session], counters: PastCounters
    ) -> None:
        """Looks at impressions, in the order that the counters can be asked in. What ``session_of`` raises as
        ValueError is a reason why it can't be computed again."""
        for its in shown:
            self._one(its, session_of, counters)

    def _one(
        self, its: PlacedImpression, session_of: Callable[[PlacedImpression], Session], counters: PastCounters
    ) -> None:
        report = self.report
        report.sampled += 1
        logged, counted = its.impression.features, True
        try:
            if logged is None:
                raise CantRecompute("no features were logged: see recsys backfill")
            try:
                then = counters.of(its)
            except CantRecompute as error:
                then, counted = counters.nothing, False
                _count(report.without_counters, str(error))
            again = self._recomputer.block(its, session_of(its), then)
            differences = self._compare(logged, again, counted)
        except UnknownFeatureSet:
            _count(report.not_recomputed, "logged with another feature set: see recsys backfill")
        except ValueError as error:
            _count(report.not_recomputed, str(error))
        else:
            report.equal += not differences
            for name, apart in differences.items():
                _add(report.differing.setdefault(name, FeatureDifference()), apart, its)


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1


def _add(found: FeatureDifference, apart: NDArray[np.float64], its: PlacedImpression) -> None:
    found.first = found.first or its.impression.request_id
    found.impressions += 1
    found.numbers += len(apart)
    found.largest = max(found.largest, float(apart.max()))
    found.total += float(apart.sum())


class Comparison:
    """Two blocks of one feature set, feature by feature."""

    def __init__(self, features: FeatureSet, builder: FeatureBuilder, tolerance: float) -> None:
        self._features = features
        self._dense = np.array(builder.features.dense_names)
        counted = np.array(["/" in name for name in builder.features.dense_names], np.bool_)
        self._within = np.where(counted, tolerance, _EXACT)
        self._counted = counted

    def __call__(
        self, logged: FeatureBlock, again: FeatureBlock, counters: bool = True
    ) -> dict[str, NDArray[np.float64]]:
        """By feature, how far apart the numbers are that differ. Without ``counters`` what they gave isn't
        looked at. Raises UnknownFeatureSet where ``logged`` is of another set."""
        its, our = read_block(logged, self._features), read_block(again, self._features)
        if its.items_NI.shape != our.items_NI.shape or its.dense_NF.shape != our.dense_NF.shape:
            return {"number of items": np.ones(1)}
        return self._keys(its, our) | self._outcomes(its, our) | self._numbers(its, our, counters)

    def _keys(self, its: RequestFeatures, our: RequestFeatures) -> dict[str, NDArray[np.float64]]:
        found = {}
        for slot in self._features.user_slots:
            wrong = its.user_U[slot.start : slot.stop] != our.user_U[slot.start : slot.stop]
            found[f"user.{slot.name}"] = wrong
        for slot in self._features.item_slots:
            part = np.s_[:, slot.start : slot.stop]
            found[f"item.{slot.name}"] = its.items_NI[part] != our.items_NI[part]
        found["history"] = its.history_TH != our.history_TH
        return {name: np.ones(int(wrong.sum())) for name, wrong in found.items() if wrong.any()}

    def _outcomes(
        self, its: RequestFeatures, our: RequestFeatures
    ) -> dict[str, NDArray[np.float64]]:
        names = (*self._features.schema.labels, "watch", "recency")
        apart = _apart(its.outcomes_TO, our.outcomes_TO)
        columns = {f"history.{name}": apart[:, n] for n, name in enumerate(names)}
        return {name: column[column > 0] for name, column in columns.items() if (column > 0).any()}

    def _numbers(
        self, its: RequestFeatures, our: RequestFeatures, counters: bool
    ) -> dict[str, NDArray[np.float64]]:
        apart = _apart(its.dense_NF, our.dense_NF)
        wrong = apart > self._within
        if not counters:
            wrong &= ~self._counted
        return {
            str(self._dense[at]): apart[wrong[:, at], at] for at in np.flatnonzero(wrong.any(0))
        }


def _apart(its: NDArray[np.float32], our: NDArray[np.float32]) -> NDArray[np.float64]:
    """|its − our|, infinite where only one is a number."""
    apart = np.abs(its.astype(np.float64) - our.astype(np.float64))
    same = (its == our) | (np.isnan(its) & np.isnan(our))
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))
