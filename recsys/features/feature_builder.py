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
from recsys.features.feature_kernels import LOG_COUNT, gather_rates, latest, lay_rates, operate
from recsys.features.feature_set import EVENTS_UNIT, FeatureSet, Floats, Keys, RequestFeatures
from recsys.features.item_counters import GLOBAL
from recsys.features.operators import SINCE, VALUE, Derivation
from recsys.features.session import NOBODY, USER, Session, newest_visit

_SMOOTHING: Final = 4.0  # prior examples added to every running rate
_RARE: Final = np.float32(1e-4)  # minimal distance of a rate from 0 and 1
_WATCH: Final = 8.0  # bound in log seconds: 50 minutes
_EQUAL: Final = np.float32(0.05)  # values of a list within this are ties, more or less
_NEAR: Final = 100.0  # scores of co-visits are about a hundredth
_NEVER: Final = np.float32(2.0)  # log seconds / 10 since a newest event: 15 years
_DAY_MS: Final = 86_400_000
_HOURS: Final = np.array([key_of("hour", hour) for hour in range(24)], np.int64)


class FeatureBuilder:
    """Turns (session, context, candidates, catalogue, item counters, time) into RequestFeatures."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self._context = features.slot("context").start
        self._profile = features.slot("profile").start
        kinds = features.kinds
        self.rates = np.array([kinds.index(label) for label in features.main_labels], np.int64)
        self.watch, self.watches = kinds.index("watch"), features.declared.watches
        entities = list(enumerate(features.entities))
        # Entities that are the same for all items, everybody's first, and entities of each item.
        same = sorted(((e.own, at) for at, e in entities if not e.right))
        self._same_at = np.array([at for _, at in same], np.int64)
        self._shared_lefts = [features.entities[at].left for own, at in same if not own]
        self._own_lefts = [features.entities[at].left for own, at in same if own]
        each = [(at, e, features.slot(e.right)) for at, e in entities if e.right]
        self._each_at = np.array([at for at, _, _ in each], np.int64)
        self._each_lefts = [e.left for _, e, _ in each]
        # As ``gather`` reads them; the key that they are crossed with is the request's.
        rows = [(e.own, e.left != "", 0, s.start, s.stop - s.start) for _, e, s in each]
        self._each = np.array(rows, np.int64).reshape(-1, 5)
        self._compared = np.array(features.compared, np.int64)
        self._ranked = np.array(features.ranked, np.int64)
        self._list = len(features.dense_names) - features.list_columns
        self._age, self._near, self._visit = map(features.span, ("age", "near", "visit"))
        self._moment, self._trend = features.span("moment"), features.span("trend")
        first = self._moment.start
        self._numbers = slice(first - features.number_columns, first)  # and vectors
        self._position, fields = features.span("position"), features.span("fields")
        starts = np.arange(len(entities)) * len(features.numbers)
        self._faster = (starts[:, None] + np.arange(len(features.speeds) - 1)).ravel()
        numbers = list(enumerate(features.declared.numbers, fields.start))
        self._user_numbers = [at for at, name in numbers if name.startswith("user.")]
        self._context_numbers = [at for at, name in numbers if name.startswith("context.")]
        # Places of the entities' counters: whether among those of each item, and the place there.
        places = {at: (False, n) for n, at in enumerate(self._same_at.tolist())}
        places |= {at: (True, n) for n, at in enumerate(self._each_at.tolist())}
        self._cells = _Cells(features, places, features.span("operators").start)
        self.derivation = Derivation(features.derived, features.dense_names)
        self.dense_width = len(features.dense_names)  # F: 0 unless the feature set is ``all``

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
            lefts = self.features.lefts
            keys = self.features.left_keys(session.fields, context) if lefts else ()
            named = dict(zip(lefts, keys, strict=True))
            self._fill_dense(dense, session, user, items_NI, counters, now_ms, named)
            if self.features.declared.numbers:
                dense[:, self._user_numbers] = session.numbers or 0.0
                dense[:, self._context_numbers] = self.features.own_numbers("context", context)
            dense[:, self._numbers] = catalogue.numbers[candidates]
            dense[:, self._moment] = _moment(session, now_ms)
            if self.features.declared.item_age:
                dense[:, self._age] = _ages(catalogue.published_ms[candidates], now_ms)[:, None]
            if self.features.declared.near and covisits is not None:
                near_N = covisits.scores(items_NI[:, 0], session.history, now_ms)
                dense[:, self._near] = np.log1p(_NEAR * near_N)[:, None]
            if (visit_s := self.features.declared.visit_s) and covisits is not None:
                visit = newest_visit(session.history, visit_s, now_ms)
                near_N = covisits.scores(items_NI[:, 0], visit, now_ms)
                dense[:, self._visit] = np.log1p(_NEAR * near_N)[:, None]
            if self.features.declared.trend:
                change = dense[:, self._faster] - dense[:, self._faster + 1]
                dense[:, self._trend] = LOG_COUNT * change
            self.derivation.write(dense, dense)
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
        """The features of a list with the position of each item, as they are logged and learned from: log
        positions, less their mean, so that 0 is a place in the middle."""
        if not self.features.declared.position or not features.dense_NF.size:
            return features
        dense = features.dense_NF.copy()
        positions = np.log1p(np.arange(len(dense)))
        dense[:, self._position] = (positions - positions.mean())[:, None]
        return replace(features, dense_NF=dense)

    def compare(self, dense: Floats) -> None:
        """Writes how the items' columns compare within a list, in place: the difference to the mean, and the
        rank from -1/2 to 1/2, in which nearly equal values are nearly equal: it must not depend on the last
        bits of counters. Then the list's length."""
        if not self.features.list_columns or not len(dense):
            return
        values, n = dense[:, self._compared], len(dense)
        ranks = self._list + len(self._compared)
        dense[:, self._list : ranks] = values - values.mean(0)
        if len(self._ranked):
            values = dense[:, self._ranked]
            wins = np.tanh((values[:, None] - values[None]) / _EQUAL).sum(1)
            dense[:, ranks : ranks + len(self._ranked)] = wins / np.float32(2 * max(1, n - 1))
        if self.features.declared.whole_list:
            dense[:, -1] = np.log(n)

    def _fill_dense(
        self, dense: Floats, session: Session, user: Keys, items_NI: Keys, counters: CounterTable,
        now_ms: int, named: dict[str, int],
    ) -> None:  # fmt: skip
        """Writes the numbers of ``FeatureSet.entities``. Those shared by all items are computed once."""
        lefts = {CONTEXT: int(user[self._context]), PROFILE: int(user[self._profile])} | named
        shared = [GLOBAL, *(lefts.get(left, GLOBAL) for left in self._shared_lefts)]
        keys = np.array([*shared, *(lefts.get(left, USER) for left in self._own_lefts)], np.int64)
        each = self._each.copy()
        each[:, 2] = [lefts.get(left, 0) for left in self._each_lefts]
        items_NI = np.ascontiguousarray(items_NI)
        speeds, labels = counters.speeds, len(self.rates)
        sums = np.zeros((len(items_NI), len(each), counters.columns), np.float32)
        same = np.zeros((len(keys), counters.columns), np.float32)
        prior, mean = np.empty((speeds, labels), np.float32), np.empty(self.watches, np.float32)
        rows = len(keys) - 1 + len(items_NI) * len(each)
        logs = np.empty(prior.size + rows * (speeds + prior.size), np.float32)
        tables = *counters.arrays, *session.counters.arrays
        gather_rates(*tables, counters.half_lives_ms, items_NI, each, keys, len(shared), now_ms,
                     self.rates, self.watch, _SMOOTHING, _RARE, sums, same, prior, mean,
                     logs)  # fmt: skip
        np.log(logs, out=logs)
        # Bounded, since an imported log may report watch time without impressions.
        lay_rates(
            logs, sums, same, prior, self.watch, mean, _SMOOTHING, _WATCH, self._same_at, self._each_at, dense
        )
        if self.features.cells:
            operate(sums, same[1:], same[0], self.rates, prior, self._cells.of_counters, _SMOOTHING,
                    _RARE, _WATCH, dense)  # fmt: skip
            last = self._cells.of_last(lefts | {"": GLOBAL})
            latest(*tables, items_NI, last, now_ms, _NEVER, dense)


class _Cells:
    """Columns of operators, as kernels read them."""

    def __init__(self, features: FeatureSet, places: dict[int, tuple[bool, int]], start: int) -> None:
        entities, columns = features.entities, list(enumerate(features.cells, start))
        rows = [
            (c.operator, *places[c.entity], c.kind, c.speed, *places[c.base], column)
            for column, c in columns
            if c.operator not in (SINCE, VALUE)
        ]
        self.of_counters = np.array(rows, np.int64).reshape(-1, 8)
        values = {(c.entity, c.kind): column for column, c in columns if c.operator == VALUE}
        last = [(column, c, entities[c.entity]) for column, c in columns if c.operator == SINCE]
        self._lefts = [(e.left, e.own) for _, _, e in last]
        self._last = np.array(
            [
                (e.left != "", 0, *features.slot_starts[e.right], c.kind, e.own,
                 column, values.get((c.entity, c.kind), -1))
                for column, c, e in last
            ],
            np.int64,
        ).reshape(-1, 8)  # fmt: skip

    def of_last(self, halves: dict[str, int]) -> Keys:
        """Rows for ``latest``, with the other halves of entities."""
        rows = self._last.copy()
        rows[:, 1] = [USER if own and not left else halves[left] for left, own in self._lefts]
        return rows


def _moment(session: Session, now_ms: int) -> Floats:
    """Time of day, time since the last event, and number of events of the user."""
    turn = 2 * np.pi * (now_ms % _DAY_MS) / _DAY_MS
    gap_s = (now_ms - session.last_ms) / 1000.0 if session.last_ms else 1e6
    since, events = np.log1p(max(0.0, gap_s)) / 10.0, np.log1p(session.events) / EVENTS_UNIT
    return np.array([np.sin(turn), np.cos(turn), since, events], np.float32)


def _ages(published_ms: Keys, now_ms: int) -> Floats:
    """Logarithm of the hours since publication, at most about 2; -1 for an item that was never published."""
    hours = np.maximum(0, now_ms - published_ms) / 3_600_000.0
    ages: Floats = np.where(published_ms != 0, np.log1p(hours) / 5.0, -1.0).astype(np.float32)
    return ages
