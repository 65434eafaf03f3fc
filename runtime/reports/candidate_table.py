"""Candidates beside the live model, with the evidence that the director decides by."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

from experiments.promotion.lifecycle import CandidateState
from experiments.statistics.significance import AnytimeEstimate
from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from runtime.reports.tables import plain_table
from training.candidates.candidate_evidence import evidence_numbers
from training.candidates.promoter import Promoter
from training.lines.control import ControlReader


class CandidateView:
    """Read-only copy of the director's view of candidates, folded from the log.

    ``clock``: milliseconds, on the same clock as the log's records.
    """

    def __init__(self, log: Log, config: Config, clock: Callable[[], int] = wall_ms) -> None:
        self._control = ControlReader(log)
        self.promoter = Promoter(log, config, feature_set(config), clock)

    def turn(self) -> list[dict[str, Any]]:
        """Reads new records; returns one row per candidate, the newest last."""
        for record in self._control.turn():
            self.promoter.fold(record)
        self.promoter.read()
        return [self._row(state) for state in self.promoter.lifecycle.candidates.values()]

    def _row(self, state: CandidateState) -> dict[str, Any]:
        evidence = self.promoter.evidence(state)
        return {
            "line": state.line, "kind": state.candidate.kind, "stage": state.stage, "share": state.share,
            "step": self.promoter.collected[state.line].step, "failed": list(evidence.failed),
            "why": self.promoter.opinion(state) if state.active else state.why,
            **evidence_numbers(evidence),
        }  # fmt: skip

    def table(self, rows: list[dict[str, Any]]) -> Table:
        """Lays out the rows of ``turn`` for a terminal."""
        live = self.promoter.lifecycle.live
        title = f"live: {live.line}, epoch {live.epoch}" if live else "nothing is live yet"
        columns = ("candidate", "stage", "examples", "log loss gained", "AUC gained",
                   "within users", "calibration", "status")  # fmt: skip
        return plain_table(columns, map(self._cells, rows), title=title, fold=("status",))

    def _cells(self, row: dict[str, Any]) -> tuple[str, ...]:
        state = self.promoter.lifecycle.candidates[row["line"]]
        result = self.promoter.evidence(state).compared
        stage = f"{row['stage']} {row['share']:.0%}" if row["share"] else row["stage"]
        calibration = f"{result.candidate_calibration:.3f} (live {result.live_calibration:.3f})"
        return (
            row["line"], stage, f"{result.examples:,}", _interval(result.loss),
            _interval(result.auc), _interval(result.user_auc),
            calibration if result.examples else "–", "; ".join(row["failed"]) or row["why"],
        )  # fmt: skip


def _interval(estimate: AnytimeEstimate) -> str:
    if not estimate.weight:
        return "–"
    return f"{estimate.mean:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"
