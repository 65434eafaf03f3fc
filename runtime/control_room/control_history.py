"""Histories of ``control`` and ``dead_letters`` for the control room, updated incrementally."""

from collections import deque
from typing import Any, Final

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from recsys.events.control_records import (
    Alarm,
    Candidate,
    Control,
    Decision,
    Experiments,
    Live,
    OperatorRequest,
    Reaction,
)
from recsys.events.records import CONTROL, DEAD_LETTERS, unpack
from recsys.log.protocol import Log, LogLost
from recsys.process.log_consumer import UNREADABLE

MAX_RECORDS: Final = 40  # of each kind
_MAX_LETTERS: Final = 8
_DECISIONS: Final = (Live, Candidate, Decision, OperatorRequest)


class ControlHistory:
    """Newest records of ``control`` by kind, each with its offset. Erasures are left out: they name users."""

    def __init__(self, log: Log) -> None:
        self._log, self._offset = log, log.begin(CONTROL, 0)
        self.lifecycle = Lifecycle()
        self.decisions: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)
        self.alarms: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)
        self.reaction: dict[str, Any] | None = None
        self.revisions: deque[Experiments] = deque(maxlen=1_000)
        self.unreadable = 0

    def turn(self) -> None:
        """Reads new records."""
        while records := self._log.read(CONTROL, 0, self._offset):
            for record in records:
                self._offset = record.offset + 1
                try:
                    self._fold(record.offset, unpack(record.value, Control))  # type: ignore[arg-type]
                except UNREADABLE:
                    self.unreadable += 1

    def _fold(self, offset: int, record: Control) -> None:
        self.lifecycle.fold(record)
        if isinstance(record, _DECISIONS):
            self.decisions.append(_values(offset, record))
        elif isinstance(record, Alarm):
            self.alarms.append(_values(offset, record))
        elif isinstance(record, Reaction):
            self.reaction = _values(offset, record)
        elif isinstance(record, Experiments):
            self.revisions.append(record)

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
            "reaction": self.reaction,
        }


class _Letter(msgspec.Struct):
    """A dead letter without its raw bytes, which may be personal data."""

    topic: str
    partition: int
    offset: int
    reason: str
    time_ms: int = 0


class DeadLetterHistory:
    """Newest dead letters. Starts near the end of the topic; older ones are only counted elsewhere."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._offset = max(log.begin(DEAD_LETTERS, 0), log.end(DEAD_LETTERS, 0) - _MAX_LETTERS)
        self._newest: deque[dict[str, Any]] = deque(maxlen=_MAX_LETTERS)
        self._decoder = msgspec.msgpack.Decoder(_Letter)

    def turn(self) -> None:
        """Reads new records."""
        try:
            records = self._log.read(DEAD_LETTERS, 0, self._offset)
        except LogLost:  # retention has dropped this offset
            self._offset = self._log.begin(DEAD_LETTERS, 0)
            return
        for record in records:
            self._offset = record.offset + 1
            try:
                letter = self._decoder.decode(record.value)
            except UNREADABLE:
                continue
            self._newest.append(_values(record.offset, letter) | {"reason": letter.reason[:200]})

    def panel(self) -> list[dict[str, Any]]:
        """Plain values, newest first."""
        return list(reversed(self._newest))


def _values(offset: int, record: msgspec.Struct) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(record)
    return values | {"at": offset}
