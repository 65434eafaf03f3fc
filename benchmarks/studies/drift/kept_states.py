"""A player that keeps what it answered from, each few hours, and lets all that speak beside what is live.

A kept state is the weights and the viewers' sessions as they were; items and their counters go on. Nothing of
it learns or folds any more. What all say of an example is mixed by how right each has been lately
(experiments/statistics/online_ensemble.py). Nothing hangs on what they say, so live learns as if they weren't there.
"""

# N examples, E models (live, then the kept ones, oldest first)

import copy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.statistics.online_ensemble import FixedShare
from recsys.events.event_types import Event, Impression
from recsys.features.feature_set import RequestFeatures
from recsys.features.session import Session
from replay.player import Player
from serving.ranking.scoring import probabilities

Floats = NDArray[np.float64]
MOST_STATES: Final = 16  # kept
_KNOWN_AFTER_MS: Final = 600_000  # when a label counts as known: a step of the replay is as late


@dataclass(frozen=True)
class KeptState:
    """What a replica answered from at ``at_ms``."""

    at_ms: int
    model: Any
    rows: Any
    sessions: dict[str, Session]


@dataclass(frozen=True)
class Parts:
    """What is of the weights, and what of the sessions: each as kept, the other as it is live; (N,)."""

    weights_N: Floats
    sessions_N: Floats


class KeepingPlayer(Player):
    """Keeps a state at each of ``keep_at_ms``. ``split``: the number of the one whose parts are judged."""

    keep_at_ms: tuple[int, ...] = ()
    split: int = -1

    def keeps(self, keep_at_ms: list[int], split: int) -> None:
        if len(keep_at_ms) > MOST_STATES:
            raise ValueError(
                f"{len(keep_at_ms)} states would be kept, expected at most {MOST_STATES}: keep fewer"
            )
        self.keep_at_ms, self.split = tuple(keep_at_ms), split
        self.states: list[KeptState] = []
        # Of each impression that waits: its features as each state would tell them.
        self._told: list[list[RequestFeatures]] = []
        self._said: list[Floats] = []
        self._parts: list[Floats] = []

    def play(self, event: Event) -> None:
        due = len(self.states) < len(self.keep_at_ms)
        if due and event.time_ms >= self.keep_at_ms[len(self.states)]:
            self.advance(event.time_ms)
            self.flush()
            self.states.append(self._state(event.time_ms))
        super().play(event)

    def said_NE(self) -> Floats:
        """What each kept state says of the first label of every example; NaN before it was kept."""
        found = np.full((sum(len(its) for its in self._said), len(self.keep_at_ms)), np.nan)
        start = 0
        for its in self._said:
            found[start : start + len(its), : its.shape[1]] = its
            start += len(its)
        return found

    def parts(self) -> Parts:
        """NaN before the state was kept."""
        both = np.concatenate(self._parts)
        return Parts(both[:, 0], both[:, 1])

    def flush(self) -> None:
        live, told = [features for features, _ in self._waiting], self._told
        self._told = []
        if live:
            rows = sum(len(features.items_NI) for features in live)
            said, parts = np.empty((rows, len(self.states))), np.full((rows, 2), np.nan)
            for n, state in enumerate(self.states):
                its = [features[n] for features in told]
                said[:, n] = probabilities(state.model, state.rows, its)[:, 0]
                if n == self.split:
                    parts[:, 0] = probabilities(state.model, state.rows, live)[:, 0]
                    parts[:, 1] = probabilities(self.replica.model, self.replica.rows, its)[:, 0]
            self._said.append(said)
            self._parts.append(parts)
        super().flush()

    def _impression(self, event: Impression) -> None:
        indices = self._indices(event)
        self._told.append(
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


def mixed(time_ms_N: NDArray[np.int64], said_NE: Floats, labels_N: Floats) -> Floats:
    """What live and the kept states say together (N,), in order of time. A column is NaN until its state is
    there. What happened is told ten minutes later, so nobody knows what they couldn't."""
    out, mix, learned = np.empty(len(said_NE)), FixedShare(), 0
    starts = [0, *(np.flatnonzero(np.diff(time_ms_N)) + 1).tolist(), len(time_ms_N)]
    for start, stop in zip(starts, starts[1:], strict=False):
        while learned < start and time_ms_N[learned] <= time_ms_N[start] - _KNOWN_AFTER_MS:
            models = len(mix.weights_E)
            its = said_NE[learned, :models]
            its = np.where(np.isnan(its), its[0], its)  # what wasn't there yet counts as live
            mix.learn(its[None], labels_N[learned : learned + 1])
            learned += 1
        while len(mix.weights_E) < np.isfinite(said_NE[start]).sum():
            mix.add()
        out[start:stop] = mix.mix(said_NE[start:stop, : len(mix.weights_E)])
    return out
