"""Rejected gradients: the step's metrics name the shard and the lanes that they came from.

``Table.apply`` and ``Dense.apply`` ignore a summed gradient with a component that is not finite or beyond the
bound. The metrics are written to the write-ahead file with the sum, so a repeated delta has the same ones.
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

PREFIX: Final = "refused_"  # of these metrics; then the kind and the shard's part


def mark_rejected(total: StepSum, lanes: Sequence[LaneGradients], bound: float, part: int) -> StepSum:
    """The sum with its rejections as metrics: rows, dense, and each lane's gradients that would be rejected
    alone (none if only the sum is beyond the bound)."""
    rows = sum(_rejected_rows(table.gradients, bound) for table in total.tables.values())
    dense = total.dense is not None and not fits(total.dense, bound)
    if not rows and not dense:
        return total
    metrics = {f"{PREFIX}rows.{part}": float(rows), f"{PREFIX}dense.{part}": float(dense)}
    for lane in lanes:
        count = sum(_rejected_rows(table.gradients, bound) for table in lane.tables.values())
        count += lane.dense is not None and not fits(lane.dense, bound)
        if count:
            metrics[f"{PREFIX}lane.{part}.{lane.lane}"] = float(count)
    return replace(total, metrics={**total.metrics, **metrics})


def describe_rejections(metrics: Mapping[str, float], part: int) -> str:
    """Text on what a delta's metrics say that its shard rejected; empty if nothing."""
    rows = int(metrics.get(f"{PREFIX}rows.{part}", 0))
    dense = bool(metrics.get(f"{PREFIX}dense.{part}", 0))
    if not rows and not dense:
        return ""
    lane = f"{PREFIX}lane.{part}."
    lanes = sorted(int(name.removeprefix(lane)) for name in metrics if name.startswith(lane))
    what = [f"the gradients of {rows} rows"] * bool(rows) + ["the dense gradient"] * dense
    origin = f"of lanes {', '.join(map(str, lanes))}" if lanes else "of no lane alone, of their sum"
    return f"shard {part} refused {' and '.join(what)}, {origin}"


def _rejected_rows(gradients: NDArray[np.float32], bound: float) -> int:
    gradients = as_rows(gradients)
    return int(kernels.screen(gradients, bound, np.empty(len(gradients), np.bool_)))
