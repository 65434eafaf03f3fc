"""Gradients that a shard refuses: which lanes they came from, told in the delta of their step.

A summed gradient with a component that isn't finite, or is beyond the bound, changes nothing
(``Table.apply``, ``Dense.apply``). What is told of it is a function of the lanes alone and stands in the
write-ahead file with the sum, so a delta that is published again says the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.lanes import LaneGradients, StepSum
from parameter_server.table import kernels
from parameter_server.table.dense import fits
from parameter_server.table.routing import as_rows

PREFIX: Final = "refused_"  # of the metrics that tell it; then what, and the shard's part


def mark_rejected(total: StepSum, lanes: Sequence[LaneGradients], bound: float, part: int) -> StepSum:
    """The sum, with what will be refused of it among its metrics: rows, dense, and how much each lane has
    of it that would be refused alone (none, where only the sum is beyond the bound)."""
    rows = {name: _unsound(its.gradients, bound) for name, its in total.tables.items()}
    dense = total.dense is not None and not fits(total.dense, bound)
    refused = sum(int(its.sum()) for its in rows.values())
    if not refused and not dense:
        return total
    told = {f"{PREFIX}rows.{part}": float(refused), f"{PREFIX}dense.{part}": float(dense)}
    for lane in lanes:
        its = sum(int(_unsound(t.gradients, bound).sum()) for t in lane.tables.values())
        its += lane.dense is not None and not fits(lane.dense, bound)
        if its:
            told[f"{PREFIX}lane.{part}.{lane.lane}"] = float(its)
    return replace(total, metrics={**total.metrics, **told})


def describe_rejections(metrics: Mapping[str, float], part: int) -> str:
    """What a delta's metrics say that its shard refused, in words; empty where that is nothing."""
    rows = int(metrics.get(f"{PREFIX}rows.{part}", 0))
    dense = bool(metrics.get(f"{PREFIX}dense.{part}", 0))
    if not rows and not dense:
        return ""
    lane = f"{PREFIX}lane.{part}."
    lanes = sorted(int(name.removeprefix(lane)) for name in metrics if name.startswith(lane))
    what = [f"the gradients of {rows} rows"] * bool(rows) + ["the dense gradient"] * dense
    whose = f"of lanes {', '.join(map(str, lanes))}" if lanes else "of no lane alone, of their sum"
    return f"shard {part} refused {' and '.join(what)}, {whose}"


def _unsound(gradients: NDArray[np.float32], bound: float) -> NDArray[np.bool_]:
    gradients = as_rows(gradients)
    sound = np.empty(len(gradients), np.bool_)
    kernels.screen(gradients, bound, sound)
    return ~sound
