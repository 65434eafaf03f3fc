"""What ``control`` and ``dead_letters`` say, as the control room tells it: folds that read on."""

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
    Reaction,
    OperatorRequest,
)
from recsys.events.records import CONTROL, DEAD_LETTERS, unpack
from recsys.log.protocol import Log, LogLost
from recsys.process.log_consumer import UNREADABLE

KEPT: Final = 40  # of each kind
_LETTERS: Final = 8
_TOLD: Final = (Live, Candidate, Decision, OperatorRequest)


class ControlStory:
    """The newest records of ``control`` by what they are about, each with its offset. Whom it names stays
    out: an erasure's user isn't told."""

    def __init__(self, log: Log) -> None:
        self._log, self._offset = log, log.begin(CONTROL, 0)
        self.lifecycle = Lifecycle()
        self.decisions: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.alarms: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.reaction: dict[str, Any] | None = None
        self.experiments = Experiments(revision=0)
        self.revisions: deque[Experiments] = deque(maxlen=1_000)
        self.erasures = 0
        self.unreadable = 0

    def turn(self) -> None:
        """Reads what is new."""
        while records := self._log.read(CONTROL, 0, self._offset):
            for record in records:
                self._offset = record.offset + 1
                try:
                    self._fold(record.offset, unpack(record.value, Control))  # type: ignore[arg-type]
                except UNREADABLE:
                    self.unreadable += 1

    def _fold(self, offset: int, said: Control) -> None:
        self.lifecycle.fold(said)
        if isinstance(said, _TOLD):
            self.decisions.append(_told(offset, said))
        elif isinstance(said, Alarm):
            self.alarms.append(_told(offset, said))
        elif isinstance(said, Reaction):
            self.reaction = _told(offset, said)
        elif isinstance(said, Experiments):
            self.experiments = said
            self.revisions.append(said)

    def panel(self) -> dict[str, Any]:
        """Newest first."""
        live = self.lifecycle.live
        return {
            "live": None if live is None else msgspec.to_builtins(live),
            "candidates": [
                {
                    "line": its.line,
                    "kind": its.candidate.kind,
                    "stage": its.stage,
                    "share": its.share,
                    "since_ms": its.since_ms,
                    "why": its.why,
                }
                for its in reversed(self.lifecycle.candidates.values())
            ][:KEPT],
            "decisions": list(reversed(self.decisions)),
            "alarms": list(reversed(self.alarms)),
            "reaction": self.reaction,
        }


class _Letter(msgspec.Struct):
    """What is told of a dead letter. Its raw bytes may be about somebody, and aren't."""

    topic: str
    partition: int
    offset: int
    reason: str
    time_ms: int = 0


class LettersStory:
    """The newest dead letters. It begins near the end: what is older is counted, not told."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._offset = max(log.begin(DEAD_LETTERS, 0), log.end(DEAD_LETTERS, 0) - _LETTERS)
        self._newest: deque[dict[str, Any]] = deque(maxlen=_LETTERS)
        self._decoder = msgspec.msgpack.Decoder(_Letter)

    def turn(self) -> None:
        try:
            records = self._log.read(DEAD_LETTERS, 0, self._offset)
        except LogLost:  # retention passed it
            self._offset = self._log.begin(DEAD_LETTERS, 0)
            return
        for record in records:
            self._offset = record.offset + 1
            try:
                letter = self._decoder.decode(record.value)
            except UNREADABLE:
                continue
            told: dict[str, Any] = msgspec.to_builtins(letter)
            self._newest.append(told | {"at": record.offset, "reason": letter.reason[:200]})

    def panel(self) -> list[dict[str, Any]]:
        """Newest first."""
        return list(reversed(self._newest))


def _told(offset: int, said: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(said)
    return found | {"at": offset}
