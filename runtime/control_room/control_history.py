"""Histories of ``control`` and ``dead_letters`` for the control room, updated incrementally."""

from collections import deque
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from recsys.events.control_records import (
    Alarm,
    Candidate,
    Control,
    Decision,
    Experiments,
    LineHold,
    Live,
    OperatorRequest,
)
from recsys.events.records import CONTROL, DEAD_LETTERS, unpack
from recsys.log.protocol import Log, LogLost, newest_first
from recsys.process.log_consumer import UNREADABLE, Consumer, decoded
from runtime.reports.experiment_summary import starts_in

MAX_RECORDS: Final = 40  # of each kind
_MAX_LETTERS: Final = 8
_MAX_READ: Final = 4 * _MAX_LETTERS  # some can be unreadable
_DECISIONS: Final = (Live, Candidate, Decision, LineHold, OperatorRequest)


class ControlHistory:
    """Newest records of ``control`` by kind, each with its offset. Erasures are left out: they name users."""

    def __init__(self, log: Log) -> None:
        self._records = Consumer(log, CONTROL, [0])
        self.lifecycle = Lifecycle()
        self.decisions: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)
        self.alarms: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)
        self.experiments = Experiments(revision=0)  # the newest revision
        self.starts: dict[str, int] = {}  # of experiments

    def turn(self) -> None:
        """Reads new records."""
        for record, control in decoded(self._records.drain(), Control):
            self._fold(record.offset, control)

    def _fold(self, offset: int, record: Control) -> None:
        self.lifecycle.fold(record)
        if isinstance(record, _DECISIONS):
            self.decisions.append(_values(offset, record))
        elif isinstance(record, Alarm):
            self.alarms.append(_values(offset, record))
        elif isinstance(record, Experiments):
            self.experiments, self.starts = record, starts_in(record) | self.starts

    def panel(self) -> dict[str, Any]:
        """Plain values, newest first."""
        live = self.lifecycle.live
        names = ("line", "stage", "share", "since_ms", "why")
        return {
            "live": None if live is None else msgspec.to_builtins(live),
            "candidates": [
                {"kind": state.candidate.kind} | {name: getattr(state, name) for name in names}
                for state in reversed(self.lifecycle.candidates.values())
            ][:MAX_RECORDS],
            "decisions": list(reversed(self.decisions)),
            "alarms": list(reversed(self.alarms)),
        }


class _Letter(msgspec.Struct):
    """A dead letter without its raw bytes, which may be personal data."""

    topic: str
    partition: int
    offset: int
    reason: str
    time_ms: int = 0


def newest_dead_letters(log: Log) -> list[dict[str, Any]]:
    """Newest dead letters as plain values, the newest first."""
    letters: list[dict[str, Any]] = []
    with suppress(LogLost):  # retention has dropped them meanwhile
        for record in islice(newest_first(log, DEAD_LETTERS, 0, first=_MAX_LETTERS), _MAX_READ):
            with suppress(*UNREADABLE):
                letter = unpack(record.value, _Letter)
                values = _values(record.offset, letter) | {"reason": letter.reason[:200]}
                letters.append(values)
    return letters[:_MAX_LETTERS]


def _values(offset: int, record: msgspec.Struct) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(record)
    return values | {"at": offset}
