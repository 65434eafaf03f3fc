"""What is left of what was learned: panels of examples, scored right after they were learned and again later.

A *panel* is a sample of the newest examples before a snapshot of the live line. Three numbers of it, each an
AUC of the first label over the same examples and labels:

    before    what was said of them when they were served
    learned   by the snapshot that had just learned them
    now       by the newest snapshot

``learned − now`` is the forgetting of Chaudhry et al. 2018 ("Riemannian Walk for Incremental Learning",
section 4.1), f_j^k = max_{l<k} a_{l,j} − a_{k,j}, for a stream that has no tasks: j is a panel, k the newest
snapshot, and in the place of the best of all earlier scores stands the first, since a panel is scored seldom.
Above 0 it has forgotten, below 0 what came later helped. Where ``now`` is no more than ``before``, nothing is
left of what these examples taught.

Panels are kept at distances that grow with their age. What is kept of an example is its place on the log,
its id, its first label, and what was said of it: no features, and nobody's name.
"""

# N examples

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.model.prediction_metrics import auc

ROW: Final = np.dtype(
    [
        ("partition", "<i4"), ("offset", "<i8"),  # on ``examples``
        ("of", "<i8"), ("index", "<i4"),  # with the partition: the id of the example
        ("label", "<f4"), ("weight", "<f4"),
        ("said", "<f4"),  # when it was served; NaN where nothing was
        ("learned", "<f4"),  # by the snapshot that had just learned it
    ]
)  # fmt: skip
Rows = NDArray[np.void]
Floats = NDArray[np.float32]
LEAST: Final = 200  # examples below which a panel says nothing
MOST: Final = 16  # panels
# Three neighbours whose ages lie within this factor are two: so panels are dense where ages are small.
SPACING: Final = 3.0
PREVIOUS: Final = "previous"
# The ages that are told of, in ms; the panel nearest to each, where one is within a factor of two.
AGES: Final = {"10min": 600_000, "1h": 3_600_000, "6h": 21_600_000, "1d": 86_400_000}
_NEAR: Final = math.log(2.0)


@dataclass(frozen=True)
class Panel:
    """Examples that the step of a snapshot, or one shortly before it, learned. ``time_ms``: event time."""

    epoch: int
    step: int
    time_ms: int
    rows_N: Rows

    def __len__(self) -> int:
        return len(self.rows_N)

    def only(self, there_N: NDArray[np.bool_]) -> "Panel":
        """Without those whose places are empty, or gone with the log's retention."""
        return self if there_N.all() else replace(self, rows_N=self.rows_N[there_N])

    def learned(self, scores_N: Floats) -> "Panel":
        """As it was scored right after it was learned."""
        rows_N = self.rows_N.copy()
        rows_N["learned"] = scores_N
        return replace(self, rows_N=rows_N)

    def corrected(self, labels: Mapping[tuple[int, int, int], Sequence[float]]) -> "Panel":
        """With the labels as they are now, by the ids of their examples. Who stood for others as a negative
        stands for itself alone once a label of it is true."""
        if not labels:
            return self
        ids = zip(self.rows_N["partition"], self.rows_N["of"], self.rows_N["index"], strict=True)
        found = {n: labels[key] for n, key in enumerate(map(_id, ids)) if key in labels}
        if not found:
            return self
        rows_N = self.rows_N.copy()
        rows_N["label"][list(found)] = [its[0] for its in found.values()]
        rows_N["weight"][[n for n, its in found.items() if any(its)]] = 1.0
        return replace(self, rows_N=rows_N)


@dataclass(frozen=True)
class Kept:
    """What is left of one panel. ``before``: NaN where nothing was said of its examples."""

    age_ms: int
    examples: int
    before: float
    learned: float
    now: float

    @property
    def forgotten(self) -> float:
        return self.learned - self.now


def kept(panel: Panel, now_N: Floats, time_ms: int) -> Kept | None:
    """What is left of a panel, by the scores of the newest snapshot, at its event time. None where it has too
    few examples, or but one kind of them."""
    rows = panel.rows_N
    aucs = [auc(s, rows["label"], rows["weight"]) for s in (rows["learned"], now_N)]
    if len(panel) < LEAST or not all(map(math.isfinite, aucs)):
        return None
    said = not np.isnan(rows["said"]).any()
    before = auc(rows["said"], rows["label"], rows["weight"]) if said else math.nan
    return Kept(max(0, time_ms - panel.time_ms), len(panel), before, *aucs)


def thinned(ages_ms: Sequence[int]) -> list[int]:
    """Which panels stay, by their places; ``ages_ms`` ascend. The youngest stays, and of those that are a
    day old the first; between them the ages of neighbours lie within a factor of three, or no nearer than
    panels come. At most MOST."""
    stay = [n for n, age in enumerate(ages_ms) if n == 0 or ages_ms[n - 1] < AGES["1d"]]
    while (gap := _narrowest(ages_ms, stay)) is not None:
        if gap[0] > SPACING and len(stay) <= MOST:
            break
        del stay[gap[1]]
    return stay


def _narrowest(ages_ms: Sequence[int], stay: Sequence[int]) -> tuple[float, int] | None:
    """The place in ``stay`` whose neighbours' ages are nearest to each other, and by what factor; the younger
    where two are equal. The youngest panel is nobody's neighbour: its age is 0."""
    found = [
        (max(1, ages_ms[stay[n + 1]]) / max(1, ages_ms[stay[n - 1]]), n)
        for n in range(1, len(stay) - 1)
    ]
    return min(found, default=None)


def told(ages_ms: Sequence[int]) -> dict[str, int]:
    """Which panels are told of, by the names of their ages; ``ages_ms`` ascend. The youngest has just been
    learned, so there is nothing to say of it; the next is the one of the snapshot before."""
    older = range(1, len(ages_ms))
    found = {PREVIOUS: 1} if len(ages_ms) > 1 else {}
    for name, age_ms in AGES.items():
        off = {n: abs(math.log(max(1, ages_ms[n]) / age_ms)) for n in older}
        nearest = min(older, key=off.__getitem__, default=None)
        if nearest is not None and off[nearest] <= _NEAR:
            found[name] = nearest
    return found


class _Packed(msgspec.Struct):
    epoch: int
    step: int
    time_ms: int
    rows: bytes


def pack(panels: Sequence[Panel]) -> bytes:
    its = [_Packed(p.epoch, p.step, p.time_ms, p.rows_N.tobytes()) for p in panels]
    return msgspec.msgpack.encode(its)


def unpack(blob: bytes) -> list[Panel]:
    """Raises msgspec.MsgspecError or ValueError where it isn't one of ``pack``."""
    its = msgspec.msgpack.decode(blob, type=list[_Packed])
    return [Panel(p.epoch, p.step, p.time_ms, np.frombuffer(p.rows, ROW)) for p in its]


def _id(found: Sequence[Any]) -> tuple[int, int, int]:
    partition, of, index = found
    return int(partition), int(of), int(index)
