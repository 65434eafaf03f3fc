"""A player that keeps past states of the replica, and lets them predict beside the live one.

A kept state consists of weights and viewers' sessions as they were; items and their counters stay live. It
neither learns nor folds. The predictions are mixed by the recent accuracy of each state
(benchmarks/studies/drift/online_ensemble.py). They don't affect the live model.
"""

# N examples, E models (live, then the kept ones, oldest first)

import copy
import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.drift.online_ensemble import FixedShare
from recsys.events.event_types import Event, Impression
from recsys.features.request_features import RequestFeatures
from recsys.features.session import Session
from replay.player import Player
from serving.ranking.scoring import probabilities

Floats = NDArray[np.float64]
MOST_STATES: Final = 16  # kept
_KNOWN_AFTER_MS: Final = 600_000  # delay of a label, as late as a step of the replay


@dataclass(frozen=True)
class KeptState:
    """Weights and sessions of a replica at ``at_ms``."""

    at_ms: int
    model: Any
    rows: Any
    sessions: dict[str, Session]


@dataclass(frozen=True)
class Parts:
    """Predictions of the past weights with live sessions, and of live weights with the past sessions;
    (N,)."""

    weights_N: Floats
    sessions_N: Floats


class KeepingPlayer(Player):
    """Keeps a state at each of ``keep_at_ms``. ``split``: number of the state whose parts are judged."""

    keep_at_ms: tuple[int, ...] = ()
    split: int = -1

    def keeps(self, keep_at_ms: list[int], split: int) -> None:
        if len(keep_at_ms) > MOST_STATES:
            raise ValueError(
                f"{len(keep_at_ms)} states would be kept, expected at most {MOST_STATES}: keep fewer"
            )
        self.keep_at_ms, self.split = tuple(keep_at_ms), split
        self.states: list[KeptState] = []
        # Features of each waiting impression, by state.
        self._state_features: list[list[RequestFeatures]] = []
        self._scores: list[Floats] = []
        self._parts: list[Floats] = []

    def play(self, event: Event) -> None:
        due = len(self.states) < len(self.keep_at_ms)
        if due and event.time_ms >= self.keep_at_ms[len(self.states)]:
            self.advance(event.time_ms)
            self.flush()
            self.states.append(self._state(event.time_ms))
        super().play(event)

    def scores_NE(self) -> Floats:
        """Prediction of the first label of every example by each kept state; NaN before it was kept."""
        scores_NE = np.full((sum(len(part) for part in self._scores), len(self.keep_at_ms)), np.nan)
        start = 0
        for part in self._scores:
            scores_NE[start : start + len(part), : part.shape[1]] = part
            start += len(part)
        return scores_NE

    def parts(self) -> Parts:
        """Parts of the state ``split``; NaN before it was kept."""
        both = np.concatenate(self._parts)
        return Parts(both[:, 0], both[:, 1])

    def flush(self) -> None:
        live, state_features = [features for features, _ in self._waiting], self._state_features
        self._state_features = []
        if live:
            rows = sum(len(features.items_NI) for features in live)
            scores, parts = np.empty((rows, len(self.states))), np.full((rows, 2), np.nan)
            for n, state in enumerate(self.states):
                features_of_state = [features[n] for features in state_features]
                scores[:, n] = probabilities(state.model, state.rows, features_of_state)[:, 0]
                if n == self.split:
                    parts[:, 0] = probabilities(state.model, state.rows, live)[:, 0]
                    parts[:, 1] = probabilities(self.replica.model, self.replica.rows, features_of_state)[
                        :, 0
                    ]
            self._scores.append(scores)
            self._parts.append(parts)
        super().flush()

    def _impression(self, event: Impression) -> None:
        indices = self._indices(event)
        self._state_features.append(
            [
                self.pipeline.builder.build(
                    state.sessions.get(str(event.user_id)) or self.session(event.user_id),
                    event.surface,
                    event.context,
                    indices,
                    self.replica.catalogue,
                    self.replica.counters,
                    event.time_ms,
                )
                for state in self.states
            ]
        )
        super()._impression(event)

    def _state(self, at_ms: int) -> KeptState:
        seen = self.config.sessions.seen
        return KeptState(
            at_ms,
            copy.deepcopy(self.replica.model),
            copy.deepcopy(self.replica.rows),
            {
                user: Session.unpack(session.pack(), self.features, seen)
                for user, session in self.sessions.items()
            },
        )


def mixed(time_ms_N: NDArray[np.int64], scores_NE: Floats, labels_N: Floats) -> Floats:
    """Mixed prediction of live and kept states (N,), in order of time. A column is NaN until its state
    exists. Labels arrive ten minutes late, so that no future label is used."""
    out, mix, learned = np.empty(len(scores_NE)), FixedShare(), 0
    starts = [0, *(np.flatnonzero(np.diff(time_ms_N)) + 1).tolist(), len(time_ms_N)]
    for start, stop in itertools.pairwise(starts):
        while learned < start and time_ms_N[learned] <= time_ms_N[start] - _KNOWN_AFTER_MS:
            models = len(mix.weights_E)
            rows = scores_NE[learned, :models]
            rows = np.where(np.isnan(rows), rows[0], rows)  # a state that doesn't exist yet counts as live
            mix.learn(rows[None], labels_N[learned : learned + 1])
            learned += 1
        while len(mix.weights_E) < np.isfinite(scores_NE[start]).sum():
            mix.add()
        out[start:stop] = mix.mix(scores_NE[start:stop, : len(mix.weights_E)])
    return out
