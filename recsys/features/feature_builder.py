"""Builds a request's features from the state at the time of the answer, for serving, replay and backfill.

Legend: N candidates, C counter columns, K kinds, F dense.
"""

from typing import Any, Final

import numpy as np

from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.counters import SPEEDS, CounterTable
from recsys.features.dense_columns import MOMENT, entities
from recsys.features.feature_kernels import gather, lay, ratios
from recsys.features.feature_set import GROUP_WIDTH, FeatureSet, Floats, Keys, RequestFeatures
from recsys.features.item_counters import GLOBAL
from recsys.features.session import NOBODY, USER, Session

_SMOOTHING: Final = 4.0  # prior examples added to every running rate
_SAME_AT: Final = np.array([0, 1, 5, 6])  # indices of the entities that are the same for all items
_RARE: Final = np.float32(1e-4)  # minimal distance of a rate from 0 and 1
_WATCH: Final = 8.0  # bound in log seconds: 50 minutes
_DAY_MS: Final = 86_400_000
_HOURS: Final = np.array([key_of("hour", hour) for hour in range(24)], np.int64)


class FeatureBuilder:
    """Turns (session, context, candidates, catalogue, item counters, time) into RequestFeatures."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self._groups = [features.slot(f"item.{name}") for name in features.schema.groups]
        self._group_starts = np.array([slot.start for slot in self._groups], np.int64)
        self._duration = features.slot("duration").start
        self._context = features.slot("context").start
        kinds = features.kinds
        self.rates = np.array([kinds.index(label) for label in features.main_labels], np.int64)
        self.watch = kinds.index("watch")
        self._each_at = np.setdiff1d(np.arange(len(entities(features.schema))), _SAME_AT)

    @property
    def dense_width(self) -> int:
        """F: 0 unless the feature set is ``all``."""
        return len(self.features.dense_names)

    def build(
        self,
        session: Session,
        surface: str,
        context: dict[str, Any],
        candidates: Keys,
        catalogue: Catalogue,
        counters: CounterTable,
        now_ms: int,
        base: RequestFeatures | None = None,
    ) -> RequestFeatures:
        """Features of the candidates, given by their catalogue indices (N,). ``base``: features of the same
        request with other candidates, whose user part is reused."""
        items_NI = catalogue.keys[candidates]
        if base is None:
            contexts = self.features.context_keys(surface, context)
            user = self._user_keys(session, contexts, now_ms)
            history, outcomes = session.read_history(now_ms)
        else:
            user, history, outcomes = base.user_U, base.history_TH, base.outcomes_TO
        dense = np.zeros((len(candidates), self.dense_width), np.float32)
        if dense.size:
            main_context = int(user[self._context])
            self._fill_dense(dense, session, main_context, items_NI, counters, now_ms)
            moment = self.dense_width - len(MOMENT)
            dense[:, moment - self.features.number_columns : moment] = catalogue.numbers[candidates]
            dense[:, moment:] = _moment(session, now_ms)
        return RequestFeatures(self.features.digest, user, items_NI, history, outcomes, dense)

    def _user_keys(self, session: Session, contexts: list[int], now_ms: int) -> Keys:
        keys = np.zeros(self.features.user_columns, np.int64)
        user, profile, context, hour = self.features.user_slots
        if session.user_id != NOBODY:
            keys[user.start] = key_of("user", session.user_id)
            keys[profile.start : profile.start + len(session.profile)] = session.profile
        keys[context.start : context.start + len(contexts)] = contexts
        keys[hour.start] = _HOURS[(now_ms // 3_600_000) % 24]
        return keys

    def _fill_dense(
        self,
        dense: Floats,
        session: Session,
        context: int,
        items_NI: Keys,
        counters: CounterTable,
        now_ms: int,
    ) -> None:
        """Writes the rates of ``dense_columns.entities``: all viewers and the context; the item, and the item
        and its duration in the context; the user overall and in the context; the user with the item and its
        duration; all viewers and the user with each group. Rates shared by all items are computed once."""
        shared = counters.read(np.array([GLOBAL, context], np.int64), now_ms)
        own = session.counters.read(np.array([USER, context], np.int64), now_ms)
        sums = np.zeros((len(items_NI), len(self._each_at), counters.columns), np.float32)
        gather(
            *counters.arrays, *session.counters.arrays, np.ascontiguousarray(items_NI),
            self._duration, self._group_starts, GROUP_WIDTH, context, now_ms, sums,
        )  # fmt: skip
        rates = _Rates(self, shared[0])
        rates.write(np.concatenate([shared, own])[None], _SAME_AT, dense)
        rates.write(sums, self._each_at, dense)


class _Rates:
    """Log counts, smoothed rates as log odds relative to the overall rate, and mean log watch time."""

    def __init__(self, builder: FeatureBuilder, overall_C: Floats) -> None:
        self._rates, self._watch = builder.rates, builder.watch
        overall = overall_C.reshape(SPEEDS, -1)
        prior = (overall[:, self._rates] + np.float32(0.5)) / (overall[:, :1] + np.float32(1))
        self._prior = np.ascontiguousarray(np.clip(prior, _RARE, 1 - _RARE), np.float32)
        self._prior_odds = np.log(self._prior / (1 - self._prior))
        self._mean_watch = overall[-1, self._watch] / max(float(overall[-1, 0]), 1.0)

    def write(self, sums_NEC: Floats, places_E: Keys, dense: Floats) -> None:
        """Writes the rates of counters to their entities' places; one row (N = 1) applies to all items."""
        n, entities, _ = sums_NEC.shape
        logs = np.empty((n, entities, SPEEDS * (1 + len(self._rates))), np.float32)
        ratios(sums_NEC, self._rates, self._prior, _SMOOTHING, _RARE, logs)
        np.log(logs, out=logs)
        # Bounded, since an imported log may report watch time without impressions.
        lay(logs, sums_NEC, self._watch, self._prior_odds, self._mean_watch, _SMOOTHING, _WATCH,
            places_E, dense)  # fmt: skip


def _moment(session: Session, now_ms: int) -> Floats:
    """Time of day, time since the last event, and number of events of the user."""
    turn = 2 * np.pi * (now_ms % _DAY_MS) / _DAY_MS
    gap_s = (now_ms - session.last_ms) / 1000.0 if session.last_ms else 1e6
    return np.array(
        [
            np.sin(turn),
            np.cos(turn),
            np.log1p(max(0.0, gap_s)) / 10.0,
            np.log1p(session.events) / 5.0,
        ],
        np.float32,
    )
