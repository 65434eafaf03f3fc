"""Candidates beside the live model, with the evidence that the director decides by."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from experiments.promotion.kinds.line_state import LineState
from recsys.config.system_config import Config
from recsys.events.control_records import Decision
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from runtime.reports.tables import plain_table
from training.candidates.promoter import Promoter
from training.lines.control import ControlReader


class CandidateView:
    """Read-only copy of the director's view of candidates, folded from the log.

    ``clock``: milliseconds, on the same clock as the log's records.
    """

    def __init__(self, log: Log, config: Config, clock: Callable[[], int]) -> None:
        self._control = ControlReader(log)
        self.promoter = Promoter(log, config, feature_set(config), clock)
        self._decided: dict[str, Mapping[str, float]] = {}  # newest decisions' evidence, by line

    def turn(self) -> list[dict[str, Any]]:
        """Reads new records; returns one row per candidate, the newest last."""
        for record in self._control.turn():
            self.promoter.fold(record)
            if isinstance(record, Decision) and record.evidence:
                self._decided[record.line] = record.evidence
        self.promoter.read()
        return [self._row(state) for state in self.promoter.lifecycle.candidates.values()]

    def _row(self, state: LineState) -> dict[str, Any]:
        evidence = self.promoter.evidence(state)
        return {
            "line": state.line, "kind": state.candidate.kind, "stage": state.stage, "share": state.share,
            "step": self.promoter.collected[state.line].step, "failed": list(evidence.failed),
            "why": self.promoter.opinion(state) if state.active else state.why,
            **evidence.numbers(), **({} if state.active else self._decided.get(state.line, {})),
        }  # fmt: skip

    def table(self, rows: list[dict[str, Any]]) -> Table:
        """Lays out the rows of ``turn`` for a terminal."""
        live = self.promoter.lifecycle.live
        title = f"live: {live.line}, epoch {live.epoch}" if live else "nothing is live yet"
        columns = ("candidate", "stage", "examples", "log loss gained", "AUC gained",
                   "within users", "calibration", "status")  # fmt: skip
        return plain_table(columns, map(self._cells, rows), title=title, fold=("status",))

    def _cells(self, row: dict[str, Any]) -> tuple[str, ...]:
        stage = f"{row['stage']} {row['share']:.0%}" if row["share"] else row["stage"]
        own, live = (row.get(name, math.nan) for name in ("calibration", "live_calibration"))
        return (
            row["line"],
            stage,
            f"{row['examples']:,.0f}",
            *(_interval(row, name) for name in ("loss", "auc", "user auc")),
            f"{own:.3f} (live {live:.3f})" if row["examples"] else "–",
            "; ".join(row["failed"]) or row["why"],
        )


def _interval(row: Mapping[str, Any], name: str) -> str:
    if (gained := row.get(f"{name} gained")) is None:
        return "–"
    low, high = row.get(f"{name} at least", -math.inf), row.get(f"{name} at most", math.inf)
    return f"{gained:+.4f} ({low:+.4f} to {high:+.4f})"
