"""A synthetic stream of examples as a trainer sees them: predictions, labels, features, and planted shifts.

Viewers come in lists of eight of one viewer, some viewers far more often than others; rates and mixes vary
with the time of day; some features wander on their own. None of that is drift. A shift starts at one example:
tastes differ from the model's belief, labels get rarer or commoner, a feature or a share changes.
"""

# N examples, F dense columns, K labels

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Floats = NDArray[np.float64]
LABELS: Final = ("long_view", "like")
COLUMNS: Final = (
    *(f"plain_{n}" for n in range(6)),
    *(f"viewer_{n}" for n in range(6)),
    *(f"heavy_{n}" for n in range(4)),
    *(f"daily_{n}" for n in range(2)),
    *(f"wandering_{n}" for n in range(2)),
)
SLOTS: Final = ("context", "profile", "tag")
_LIST: Final = 8
_USERS: Final = 500
_BASE: Final = (-0.6, -2.2)
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Shift:
    """The changed quantity, its size, and the number of examples that it takes (0: at once).

    ``taste``: fraction of a viewer's taste that changes; ``rate``: added to the log odds of labels;
    ``feature``: standard deviations of the column plain_0 or viewer_0; ``share``: of one tag, beside 0.1.
    """

    kind: str  # "" | taste | rate | feature | viewer_feature | share
    size: float = 0.0
    ramp: int = 0


@dataclass(frozen=True)
class Stream:
    """N examples in order: losses, predictions and labels (N, K), dense (N, F), keys by slot (N,), times."""

    losses_NK: Floats
    predicted_NK: Floats
    happened_NK: Floats
    dense_NF: NDArray[np.float32]
    keys: dict[str, NDArray[np.int64]]
    times_ms: NDArray[np.int64]


def make_stream(seed: int, examples: int, a_day: int, shift: Shift, at: int) -> Stream:
    """A stream whose shift begins at example ``at``; ``a_day``: examples in a day."""
    rng = np.random.default_rng([seed, 77])
    lists = -(-examples // _LIST)
    user = np.repeat((_USERS * rng.random(lists) ** 2).astype(np.int64), _LIST)[:examples]
    times_ms = (np.arange(examples) * (_DAY_MS / a_day)).astype(np.int64)
    turn = 2 * np.pi * (times_ms % _DAY_MS) / _DAY_MS
    grown = np.zeros(examples)
    grown[at:] = np.minimum(1.0, (np.arange(examples - at) + 1) / max(1, shift.ramp))
    losses, predicted, happened = _labels(rng, user, turn, shift, grown)
    return Stream(
        losses,
        predicted,
        happened,
        _dense(rng, user, turn, shift, grown).astype(np.float32),
        _keys(rng, user, turn, shift, grown),
        times_ms,
    )


def _labels(
    rng: np.random.Generator, user: NDArray[np.int64], turn: Floats, shift: Shift, grown: Floats
) -> tuple[Floats, Floats, Floats]:
    n = len(user)
    viewer = rng.normal(0, 0.6, _USERS)[user]
    taste, new_taste = rng.normal(0, 0.9, n), rng.normal(0, 0.9, n)
    share = shift.size * grown if shift.kind == "taste" else np.zeros(n)
    added = shift.size * grown if shift.kind == "rate" else np.zeros(n)
    mistaken = rng.normal(0, 0.15, _USERS)[user] + rng.normal(0, 0.25, n)
    losses, predicted, happened = [], [], []
    for base in _BASE:
        thought = base + viewer + taste + 0.25 * np.sin(turn)
        true = thought + share * (new_taste - taste) + added
        p = 1 / (1 + np.exp(-(thought + mistaken)))
        y = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(np.float64)
        losses.append(-np.log(np.where(y > 0, p, 1 - p)))
        predicted.append(p)
        happened.append(y)
    return np.stack(losses, 1), np.stack(predicted, 1), np.stack(happened, 1)


def _dense(
    rng: np.random.Generator, user: NDArray[np.int64], turn: Floats, shift: Shift, grown: Floats
) -> Floats:
    n = len(user)
    dense = rng.normal(size=(n, len(COLUMNS)))
    for at, name in enumerate(COLUMNS):
        kind = name.partition("_")[0]
        if kind == "viewer":
            dense[:, at] = 0.7 * rng.normal(size=_USERS)[user] + 0.7 * dense[:, at]
        elif kind == "heavy":
            dense[:, at] = np.exp(dense[:, at])
        elif kind == "daily":
            dense[:, at] = 0.5 * dense[:, at] + np.sin(turn + at)
        elif kind == "wandering":
            wander = lfilter([0.02], [1.0, -0.98], rng.normal(size=-(-n // 256)))
            dense[:, at] = 0.3 * dense[:, at] + np.repeat(wander, 256)[:n]
    column = {"feature": "plain_0", "viewer_feature": "viewer_0"}.get(shift.kind)
    if column:
        dense[:, COLUMNS.index(column)] += shift.size * grown
    return dense


def _keys(
    rng: np.random.Generator, user: NDArray[np.int64], turn: Floats, shift: Shift, grown: Floats
) -> dict[str, NDArray[np.int64]]:
    n = len(user)
    lists = np.repeat(rng.random(-(-n // _LIST)), _LIST)[:n]  # one context a list
    context = 1 + (lists > 0.6 + 0.1 * np.sin(turn)) + (lists > 0.85)
    profile = 1 + rng.integers(0, 7, _USERS)[user]
    weights = np.array([0.22, 0.16, 0.13, 0.11, 0.1, 0.08, 0.08, 0.06, 0.04, 0.02])
    tag = 1 + np.searchsorted(np.cumsum(weights), rng.random(n) * 0.9999)
    if shift.kind == "share":  # of tag 5, from 0.1 to ``size``: others turn into it
        turned = (shift.size - 0.1) / 0.9 * grown
        tag = np.where(rng.random(n) < turned, 5, tag)
    return {
        "context": context.astype(np.int64),
        "profile": profile.astype(np.int64),
        "tag": tag.astype(np.int64),
    }
