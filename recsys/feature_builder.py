"""Builds a request's features from what is known when it is answered.

One function for the server, for replay and for backfill. Vectorised over the N candidates: a few gathers, no
work per candidate in Python.

Legend: N candidates, C counter columns, K kinds, F dense.
"""

from typing import Any, Final

import numpy as np

from recsys.catalogue import Catalogue
from recsys.counters import SPEEDS, Counters
from recsys.features import GROUP_WIDTH, FeatureSet, Floats, Keys, RequestFeatures
from recsys.hashing import cross, key_of
from recsys.item_counters import GLOBAL
from recsys.session import USER, Session

_SMOOTHING: Final = 4.0  # prior examples behind every running rate
_ENTITIES: Final = 9  # beside two for each group: see _fill_dense
_WATCH: Final = 8.0  # log seconds: 50 minutes
_DAY_MS: Final = 86_400_000
_HOURS: Final = np.array([key_of("hour", hour) for hour in range(24)], np.int64)


class FeatureBuilder:
    """Turns (session, context, candidates, catalogue, item counters, time) into RequestFeatures."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self._groups = [features.slot(f"item.{name}") for name in features.schema.groups]
        self._duration = features.slot("duration").start
        kinds = features.kinds
        self._rates = [kinds.index(label) for label in features.main_labels]
        self._watch = kinds.index("watch")

    @property
    def dense_width(self) -> int:
        """F: 0 unless the feature set is ``all``."""
        if self.features.kind != "all":
            return 0
        entities = _ENTITIES + 2 * len(self._groups)
        return entities * self._per_entity + self.features.number_columns + 4

    @property
    def _per_entity(self) -> int:
        return SPEEDS + SPEEDS * len(self._rates) + 1

    def build(
        self,
        session: Session,
        surface: str,
        context: dict[str, Any],
        candidates: Keys,
        catalogue: Catalogue,
        counters: Counters,
        now_ms: int,
    ) -> RequestFeatures:
        """Features of the candidates, given by their indices (N,) in the catalogue."""
        items_NI = catalogue.keys[candidates]
        contexts = self.features.context_keys(surface, context)
        history, outcomes = session.read_history(now_ms)
        dense = np.zeros((len(candidates), self.dense_width), np.float32)
        if dense.size:
            self._fill_dense(dense, session, contexts[0], items_NI, counters, now_ms)
            numbers = self.features.number_columns
            if numbers:
                dense[:, -4 - numbers : -4] = catalogue.numbers[candidates]
            dense[:, -4:] = _moment(session, now_ms)
        return RequestFeatures(
            self.features.digest,
            self._user_keys(session, contexts, now_ms),
            items_NI,
            history,
            outcomes,
            dense,
        )

    def _user_keys(self, session: Session, contexts: list[int], now_ms: int) -> Keys:
        keys = np.zeros(self.features.user_columns, np.int64)
        user, profile, context, hour = self.features.user_slots
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
        counters: Counters,
        now_ms: int,
    ) -> None:
        """One read of the item-side counters and one of the session's, then rates for each entity: all
        viewers and the context; the item, it and its duration in the context; the user as a whole and in
        the context; the user with the item and its duration; all viewers and the user with each group."""
        duration_N = items_NI[:, self._duration]
        groups = [items_NI[:, slot.start : slot.stop] for slot in self._groups]
        crossed = cross(context, items_NI[:, [0, self._duration]])
        same = np.array([GLOBAL, context], np.int64)
        shared = counters.read(same, now_ms)
        item_side = counters.read(np.concatenate([items_NI[:, :1], crossed, *groups], 1), now_ms)
        user_own = session.counters.read(np.array([USER, context], np.int64), now_ms)
        user_items = np.concatenate([items_NI[:, :1], duration_N[:, None], *groups], 1)
        user_side = session.counters.read(user_items, now_ms)
        sums = np.empty((len(items_NI), _ENTITIES + 2 * len(groups), counters.columns), np.float32)
        sums[:, 0:2] = shared
        sums[:, 2:5] = item_side[:, :3]
        sums[:, 5:7] = user_own
        sums[:, 7:9] = user_side[:, :2]
        for place in range(len(groups)):
            at = GROUP_WIDTH * place
            item_side[:, at + 3 : at + 3 + GROUP_WIDTH].sum(1, out=sums[:, 9 + 2 * place])
            user_side[:, at + 2 : at + 2 + GROUP_WIDTH].sum(1, out=sums[:, 10 + 2 * place])
        dense[:, : sums.shape[1] * self._per_entity] = self._rates_of(sums, shared[0])

    def _rates_of(self, sums_NEC: Floats, overall_C: Floats) -> Floats:
        """Counts as logarithms, smoothed rates as log odds against the overall rate, mean log watch."""
        n, entities, _ = sums_NEC.shape
        cells = sums_NEC.reshape(n, entities, SPEEDS, len(self.features.kinds))
        overall = overall_C.reshape(SPEEDS, -1)
        shown = cells[..., 0]
        prior = _rate(overall[:, self._rates], overall[:, :1], 0.5, 1.0)
        rates = _rate(cells[..., self._rates], shown[..., None], prior, _SMOOTHING)
        odds = np.log(rates / (1 - rates)) - np.log(prior / (1 - prior))
        mean_watch = overall[-1, self._watch] / max(float(overall[-1, 0]), 1.0)
        watch = (cells[..., -1, self._watch] + _SMOOTHING * mean_watch) / (
            shown[..., -1] + _SMOOTHING
        )
        parts = [
            np.log1p(shown) / 3.0,
            odds.reshape(n, entities, -1),
            # Bounded, as a foreign log may report what was watched and not what was shown.
            np.clip(watch - mean_watch, -_WATCH, _WATCH)[..., None],
        ]
        return np.concatenate(parts, 2).reshape(n, -1).astype(np.float32)


def _rate(happened: Floats, shown: Floats, prior: Floats | float, weight: float) -> Floats:
    """A smoothed rate, kept off 0 and 1 (a label may come more than once per showing)."""
    rate = (happened + weight * prior) / (shown + weight)
    kept: Floats = np.clip(rate, 1e-4, 1 - 1e-4)
    return kept


def _moment(session: Session, now_ms: int) -> Floats:
    """Where the user is: time of day, how long since the last event, how much is known."""
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
