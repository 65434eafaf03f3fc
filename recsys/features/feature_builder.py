"""Builds a request's features from the state at the time of the answer, for serving, replay and backfill.

Legend: N candidates, C counter columns, K kinds, F dense.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.columns import CONTEXT, PROFILE
from recsys.features.counters import CounterTable
from recsys.features.covisits import Covisits
from recsys.features.families.base import Family, RequestView
from recsys.features.families.declared import FAMILIES
from recsys.features.families.derived import DerivedColumns
from recsys.features.families.rates import EntityCounters
from recsys.features.feature_set import FeatureSet, Floats, Keys
from recsys.features.request_features import RequestFeatures
from recsys.features.session import NOBODY, Session

_HOURS: Final = np.array([key_of("hour", hour) for hour in range(24)], np.int64)


class FeatureBuilder:
    """Turns (session, context, candidates, catalogue, item counters, time) into RequestFeatures."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self._context = features.slot("context").start
        self._profile = features.slot("profile").start
        self._counters = EntityCounters(features)
        used = {column.family for column in features.dense}
        families = [family(features) for family in FAMILIES]
        (self.derivation,) = (one.derivation for one in families if isinstance(one, DerivedColumns))
        self._families = [one for one in families if one.name in used]
        self._shown = [one for one in self._families if type(one).write_shown is not Family.write_shown]
        self.dense_width = len(features.dense)  # F: 0 unless the feature set is ``all``

    def build(
        self, session: Session, surface: str, context: dict[str, Any], candidates: Keys,
        catalogue: Catalogue, counters: CounterTable, now_ms: int, base: RequestFeatures | None = None,
        is_list: bool = False, covisits: Covisits | None = None,
    ) -> RequestFeatures:  # fmt: skip
        """Features of the candidates, given by their catalogue indices (N,). ``base``: features of the same
        request with other candidates, whose user part is reused. ``is_list``: the candidates are the list
        that is shown, so that they can be compared; else these columns are 0. Without ``covisits`` so is
        theirs."""
        items_NI = catalogue.keys[candidates]
        if base is None:
            contexts = self.features.context_keys(surface, context)
            user = self._user_keys(session, contexts, now_ms)
            history, outcomes = session.read_history(now_ms)
        else:
            user, history, outcomes = base.user_U, base.history_TH, base.outcomes_TO
        dense = np.zeros((len(candidates), self.dense_width), np.float32)
        if dense.size:
            items_NI = np.ascontiguousarray(items_NI)
            halves = {CONTEXT: int(user[self._context]), PROFILE: int(user[self._profile])}
            if lefts := self.features.lefts:
                named = self.features.left_keys(session.fields, context)
                halves |= dict(zip(lefts, named, strict=True))
            gathered = self._counters.gather(items_NI, halves, counters, session.counters, now_ms)
            request = RequestView(session, context, candidates, items_NI, catalogue, counters, covisits,
                                  halves, gathered, now_ms)  # fmt: skip
            for family in self._families:
                family.write(request, dense)
            if is_list:
                self.compare(dense)
        return RequestFeatures(self.features.digest, user, items_NI, history, outcomes, dense)

    def _user_keys(self, session: Session, contexts: list[int], now_ms: int) -> Keys:
        keys = np.zeros(self.features.user_columns, np.int64)
        user, profile, context, hour = self.features.user_slots
        if session.user_id != NOBODY:
            keys[user.start] = key_of("user", session.user_id)
            first = session.profile[: profile.stop - profile.start]
            keys[profile.start : profile.start + len(first)] = first
        keys[context.start : context.start + len(contexts)] = contexts
        keys[hour.start] = _HOURS[(now_ms // 3_600_000) % 24]
        return keys

    def as_shown(self, features: RequestFeatures) -> RequestFeatures:
        """The features of a list with the position of each item, as they are logged and learned from."""
        if not self._shown or not features.dense_NF.size:
            return features
        dense = features.dense_NF.copy()
        for family in self._shown:
            family.write_shown(dense)
        return replace(features, dense_NF=dense)

    def compare(self, dense: Floats) -> None:
        """Writes how the items' columns compare within a list, in place."""
        for family in self._families if len(dense) else ():
            family.write_list(dense)
