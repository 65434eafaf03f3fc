"""Panels measure forgetting: examples that are scored right after they were learned, and again later.

A *panel* is a sample of the newest examples before a snapshot of the live line. It has three AUCs of the
first label over the same examples and labels: ``before``, of the predictions when they were served;
``learned``, of the snapshot that had just learned them; ``now``, of the newest snapshot. ``learned − now`` is
the forgetting of Chaudhry et al. 2018 ("Riemannian Walk for Incremental Learning", section 4.1), f_j^k =
max_{l<k} a_{l,j} − a_{k,j}, for a stream without tasks: j is a panel, k the newest snapshot, and the first
score replaces the best of all earlier ones. If ``now`` is at most ``before``, nothing is left of what these
examples taught.

A panel row is an example's place on the log, its id, first label and prediction: no features, and no user.
"""

# N examples

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.model.prediction_metrics import auc

ROW: Final = np.dtype(
    [
        ("partition", "<i4"), ("offset", "<i8"),  # on ``examples``
        ("impression", "<i8"), ("index", "<i4"),  # with the partition: the id of the example
        ("label", "<f4"), ("weight", "<f4"),
        ("served", "<f4"),  # prediction when it was served; NaN if there was none
        ("learned", "<f4"),  # prediction of the snapshot that had just learned it
    ]
)  # fmt: skip
Rows = NDArray[np.void]
Floats = NDArray[np.float32]
LEAST: Final = 200  # examples that a panel needs
MOST: Final = 16  # panels
# Of three neighbours whose ages lie within this factor one is dropped, so panels are dense at small ages.
SPACING: Final = 3.0
PREVIOUS: Final = "previous"
# The reported ages in ms: of each, the nearest panel within a factor of two.
AGES: Final = {"10min": 600_000, "1h": 3_600_000, "6h": 21_600_000, "1d": 86_400_000}
_NEAR: Final = math.log(2.0)


@dataclass(frozen=True)
class Panel:
    """Examples learned by the step of a snapshot, or shortly before it. ``time_ms``: event time."""

    epoch: int
    step: int
    time_ms: int
    rows_N: Rows

    def __len__(self) -> int:
        return len(self.rows_N)

    def only(self, present_N: NDArray[np.bool_]) -> "Panel":
        """Without examples that became tombstones or fell out of the log's retention."""
        return self if present_N.all() else replace(self, rows_N=self.rows_N[present_N])

    def learned(self, scores_N: Floats) -> "Panel":
        """With the scores right after learning."""
        rows_N = self.rows_N.copy()
        rows_N["learned"] = scores_N
        return replace(self, rows_N=rows_N)

    def corrected(self, labels: Mapping[tuple[int, int, int], Sequence[float]]) -> "Panel":
        """With the current labels, by example id. A negative with a label represents only itself."""
        if not labels:
            return self
        columns = (self.rows_N[name].tolist() for name in ("partition", "impression", "index"))
        ids = zip(*columns, strict=True)
        changed = {n: labels[id_] for n, id_ in enumerate(ids) if id_ in labels}
        if not changed:
            return self
        rows_N = self.rows_N.copy()
        rows_N["label"][list(changed)] = [new[0] for new in changed.values()]
        rows_N["weight"][[n for n, new in changed.items() if any(new)]] = 1.0
        return replace(self, rows_N=rows_N)


@dataclass(frozen=True)
class Retention:
    """The AUCs of one panel. ``before``: NaN without predictions when served."""

    age_ms: int
    examples: int
    before: float
    learned: float
    now: float

    @property
    def forgotten(self) -> float:
        return self.learned - self.now


def retention(panel: Panel, now_N: Floats, time_ms: int) -> Retention | None:
    """AUCs of a panel and the newest scores; None with too few examples, or only positives or negatives."""
    rows = panel.rows_N
    aucs = [auc(s, rows["label"], rows["weight"]) for s in (rows["learned"], now_N)]
    if len(panel) < LEAST or not all(map(math.isfinite, aucs)):
        return None
    has_served = not np.isnan(rows["served"]).any()
    before = auc(rows["served"], rows["label"], rows["weight"]) if has_served else math.nan
    return Retention(max(0, time_ms - panel.time_ms), len(panel), before, *aucs)


def thinned(ages_ms: Sequence[int]) -> list[int]:
    """Indices of the panels to keep (at most MOST); ``ages_ms`` ascend. Keeps the youngest, and the first
    that is a day old; between them the ages of neighbours lie within a factor of three, if possible."""
    stay = [n for n, age in enumerate(ages_ms) if n == 0 or ages_ms[n - 1] < AGES["1d"]]
    while (gap := _narrowest(ages_ms, stay)) is not None:
        if gap[0] > SPACING and len(stay) <= MOST:
            break
        del stay[gap[1]]
    return stay


def _narrowest(ages_ms: Sequence[int], stay: Sequence[int]) -> tuple[float, int] | None:
    """The index in ``stay`` whose neighbours' ages are nearest to each other, with their ratio; the younger
    of two equal ones. The youngest panel is nobody's neighbour: its age is 0."""
    ages = [max(1, ages_ms[n]) for n in stay]
    ratios = [(ages[n + 1] / ages[n - 1], n) for n in range(1, len(stay) - 1)]
    return min(ratios, default=None)


def reported(ages_ms: Sequence[int]) -> dict[str, int]:
    """Indices of the panels to report, by age name; ``ages_ms`` ascend. The youngest has just been learned,
    so there is nothing to report; the next is that of the previous snapshot."""
    older = range(1, len(ages_ms))
    indices = {PREVIOUS: 1} if len(ages_ms) > 1 else {}
    for name, age_ms in AGES.items():
        off = {n: abs(math.log(max(1, ages_ms[n]) / age_ms)) for n in older}
        nearest = min(older, key=off.__getitem__, default=None)
        if nearest is not None and off[nearest] <= _NEAR:
            indices[name] = nearest
    return indices


class _Packed(msgspec.Struct):
    epoch: int
    step: int
    time_ms: int
    rows: bytes


def pack(panels: Sequence[Panel]) -> bytes:
    packed = [_Packed(p.epoch, p.step, p.time_ms, p.rows_N.tobytes()) for p in panels]
    return msgspec.msgpack.encode(packed)


def unpack(blob: bytes) -> list[Panel]:
    """Unpacks the result of ``pack``; raises msgspec.MsgspecError or ValueError for anything else."""
    packed = msgspec.msgpack.decode(blob, type=list[_Packed])
    return [Panel(p.epoch, p.step, p.time_ms, np.frombuffer(p.rows, ROW)) for p in packed]
