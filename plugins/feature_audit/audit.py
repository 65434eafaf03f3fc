"""Audits training/serving skew: compares logged features with features recomputed from events.

Keys, history and outcomes must be equal, counter features within a tolerance, as sums of many small numbers
depend on their order. Impressions that can't be recomputed are counted by reason. Pure.
"""

# N items of an impression, F dense columns

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plugins.feature_audit.audit_source import PlacedImpression
from plugins.feature_audit.recompute import CantRecompute, CountersAsOf, Recomputer
from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniform
from recsys.features.families.derived import DerivedColumns
from recsys.features.families.list_comparison import ListComparison
from recsys.features.families.near import Near
from recsys.features.families.visit import Visit
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures, UnknownFeatureSet, read_block
from recsys.features.session import Session

TOLERANCE: Final = 1e-4  # of dense columns from counters
_EXACT: Final = 1e-6  # of other dense columns
_COVISITED: Final = (Near.name, Visit.name)  # families that depend on co-visits
_SALT: Final = 77
Differences = dict[str, NDArray[np.float64]]  # of differing numbers, by feature


@dataclass
class FeatureDifference:
    """Differences of one feature. A differing key counts as 1."""

    impressions: int = 0
    numbers: int = 0
    largest: float = 0.0
    total: float = 0.0
    first: str = ""  # request id of the first impression that differs

    @property
    def mean(self) -> float:
        return self.total / max(1, self.numbers)


@dataclass
class AuditReport:
    """Result of an audit. ``without_features``: impressions with no features logged, such as imported ones,
    which an archive's sample leaves out; ``without_counters``: compared except for counters, by reason."""

    sampled: int = 0
    without_features: int = 0
    equal: int = 0
    without_counters: Counter[str] = field(default_factory=Counter)
    differing: dict[str, FeatureDifference] = field(default_factory=dict)
    not_recomputed: Counter[str] = field(default_factory=Counter)

    @property
    def compared(self) -> int:
        return self.sampled - sum(self.not_recomputed.values())

    @property
    def skewed(self) -> bool:
        return self.equal < self.compared


def is_sampled(request_id: str, share: float) -> bool:
    """Whether a hashed sample contains an impression; the same impressions on every run."""
    return share >= 1.0 or uniform(_SALT, request_id) < share


class Audit:
    """Compares impressions with their recomputed features."""

    def __init__(
        self,
        recomputer: Recomputer,
        features: FeatureSet,
        tolerance: float = TOLERANCE,
        report: AuditReport | None = None,
    ) -> None:
        """``report``: one to go on with, by default a new one."""
        self._recomputer = recomputer
        self._compare = _BlockComparison(features, recomputer.builder, tolerance)
        self.report = report or AuditReport()

    def look(
        self,
        impressions: Iterable[PlacedImpression],
        session_of: Callable[[PlacedImpression], Session],
        counters: CountersAsOf,
    ) -> None:
        """Audits impressions, in the order that ``counters`` requires. A ValueError of ``session_of`` becomes
        the reason why an impression can't be recomputed."""
        report = self.report
        for placed in impressions:
            report.sampled += 1
            logged, has_counters = placed.impression.features, True
            try:
                if logged is None:
                    raise CantRecompute("no features were logged: see recsys backfill")
                try:
                    past_counters = counters.of(placed)
                except CantRecompute as error:
                    past_counters, has_counters = counters.nothing, False
                    report.without_counters[str(error)] += 1
                session, covisits = session_of(placed), counters.covisits
                recomputed = self._recomputer.block(placed, session, past_counters, covisits)
                differences = self._compare(logged, recomputed, has_counters)
            except UnknownFeatureSet:
                report.not_recomputed["logged with another feature set: see recsys backfill"] += 1
            except ValueError as error:
                report.not_recomputed[str(error)] += 1
            else:
                report.equal += not differences
                for name, errors in differences.items():
                    difference = report.differing.setdefault(name, FeatureDifference())
                    difference.first = difference.first or placed.impression.request_id
                    difference.impressions += 1
                    difference.numbers += len(errors)
                    difference.largest = max(difference.largest, float(errors.max()))
                    difference.total += float(errors.sum())


class _BlockComparison:
    """Compares two blocks of one feature set, feature by feature."""

    def __init__(self, features: FeatureSet, builder: FeatureBuilder, tolerance: float) -> None:
        self._features = features
        self._dense = np.array(features.dense_names)
        counted = [bool(one.entity) or one.family in _COVISITED for one in features.dense]
        self._counted = np.array(counted, np.bool_)
        compared = [*features.compared, *features.ranked]
        start = features.span(ListComparison.name).start
        self._counted[start : start + len(compared)] = self._counted[compared]
        self._within = np.where(self._counted, tolerance, _EXACT)
        self._derivation = builder.derivation
        self._derived = features.span(DerivedColumns.name)
        self._within[self._derived] = tolerance

    def __call__(self, logged: FeatureBlock, recomputed: FeatureBlock, counters: bool = True) -> Differences:
        """Absolute differences of the differing numbers, by feature; ignores counter features without
        ``counters``. Raises UnknownFeatureSet if ``logged`` is of another set."""
        old, new = read_block(logged, self._features), read_block(recomputed, self._features)
        if old.items_NI.shape != new.items_NI.shape or old.dense_NF.shape != new.dense_NF.shape:
            return {"number of items": np.ones(1)}
        differences = self._keys(old, new) | self._outcomes(old, new)
        if len(old.items_NI):  # an empty block doesn't tell its widths
            differences |= self._numbers(old, new, counters)
        return differences

    def _keys(self, old: RequestFeatures, new: RequestFeatures) -> Differences:
        wrong = {}
        for slot in self._features.user_slots:
            columns = slice(slot.start, slot.stop)
            wrong[f"user.{slot.name}"] = old.user_U[columns] != new.user_U[columns]
        for slot in self._features.item_slots:
            columns = slice(slot.start, slot.stop)
            wrong[f"item.{slot.name}"] = old.items_NI[:, columns] != new.items_NI[:, columns]
        wrong["history"] = old.history_TH != new.history_TH
        return {name: np.ones(int(flags.sum())) for name, flags in wrong.items() if flags.any()}

    def _outcomes(self, old: RequestFeatures, new: RequestFeatures) -> Differences:
        names = (*self._features.schema.labels, "watch", "recency")
        errors = _errors(old.outcomes_TO, new.outcomes_TO)
        columns = {f"history.{name}": errors[:, n] for n, name in enumerate(names)}
        return {name: column[column > 0] for name, column in columns.items() if (column > 0).any()}

    def _numbers(self, old: RequestFeatures, new: RequestFeatures, counters: bool) -> Differences:
        errors = _errors(old.dense_NF, new.dense_NF)
        if self._derived.stop:
            # Against what follows from the logged columns: the last bits of a counter may change a bucket.
            again = old.dense_NF.copy()
            self._derivation.write(old.dense_NF, again)
            errors[:, self._derived] = _errors(old.dense_NF, again)[:, self._derived]
        wrong = errors > self._within
        if not counters:
            wrong &= ~self._counted
        wrong_at = np.flatnonzero(wrong.any(0))
        return {str(self._dense[at]): errors[wrong[:, at], at] for at in wrong_at}


def _errors(old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float64]:
    """|old − new|, infinite if only one of the two is a number."""
    errors = np.abs(old.astype(np.float64) - new.astype(np.float64))
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    return np.where(same, 0.0, np.where(np.isfinite(errors), errors, np.inf))
