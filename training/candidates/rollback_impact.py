"""Lists the requests that a rolled-back model answered, and the steps trained on their examples."""

import logging
import threading
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from recsys.clock import is_due
from recsys.events.control_records import Control, Decision, Erasure, Live
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id
from recsys.events.records import CLICK_LIST, EVENTS, EXAMPLES, STEPS, Step
from recsys.log.protocol import Log, LogLost, LogUnavailable, read_range
from recsys.process.log_consumer import decoded, readable
from recsys.process.part_process import write_atomically
from training.lines.line import MAIN
from training.lines.offset_lookup import first_at, served_ms_of
from training.steps.lineage import Lineage

FOLDER: Final = "quarantine"
_LIST_AFTER_MS: Final = 10_000  # replicas have switched by then
_MARGIN_MS: Final = 600_000  # clocks of several servers differ
_LOG: Final = logging.getLogger(__name__)


class AffectedRequest(msgspec.Struct, frozen=True):
    """A request that was answered by the line."""

    request_id: str
    user_id: Id
    time_ms: int
    step: int


class AffectedStep(msgspec.Struct, frozen=True):
    """A step of the live line with examples of such requests: ``learned``, or ``excluded``."""

    epoch: int
    step: int
    learned: int = 0
    excluded: int = msgspec.field(default=0, name="quarantined")


class RollbackImpact(msgspec.Struct, frozen=True):
    """Requests that a rolled-back line answered, and the live line's steps with examples of them.
    ``complete``: whether the log still has all records since the line began to answer."""

    served_by: str
    requests: list[AffectedRequest]
    steps: list[AffectedStep]
    complete: bool = True


class _Impression(msgspec.Struct, tag="impression", tag_field="type"):
    request_id: str
    user_id: Id
    time_ms: int
    stamp: Stamp | None = None


class _Example(msgspec.Struct):
    served_by: str = ""


class ImpactLister:
    """Lists the impact of each line that no longer answers, once its last answers are on the log. That takes
    as long as the line had answered, so it runs in a thread if the log can be opened again (``open_again``).
    ``timer_ms``: machine time."""

    def __init__(
        self, log: Log, state: Path, timer_ms: Callable[[], int], open_again: Callable[[], Log] | None
    ) -> None:
        self._log, self._state, self._timer_ms, self._open = log, state, timer_ms, open_again
        self._thread: threading.Thread | None = None
        self._waiting: list[tuple[int, str, int]] = []  # due time, line/epoch, start of its answers
        self._forgotten: set[str] = set()  # users, whom lists must not name
        self._written = 0  # number of users who are forgotten in the stored lists

    def take(self, record: Control, before: Lifecycle) -> None:
        """Schedules the list of a line whose answers end with a record. ``before``: lifecycle without it."""
        due_ms, live = self._timer_ms() + _LIST_AFTER_MS, before.live
        if isinstance(record, Erasure) and record.user_id != "":
            self._forgotten.add(str(record.user_id))
        elif isinstance(record, Decision) and record.verdict == "rollback":
            state = before.candidates.get(record.line)
            if state is not None and state.is_candidate:
                self._waiting.append((due_ms, f"{record.line}/0", state.candidate.time_ms))
        elif isinstance(record, Live) and live and record.parent_epoch != live.epoch:
            self._waiting.append((due_ms, f"{live.line}/{live.epoch}", live.time_ms))
            state = before.candidates.get(live.candidate)
            if state is not None:  # its answers as a canary are excluded, too
                self._waiting.append((due_ms, f"{state.line}/0", state.candidate.time_ms))

    def forget(self) -> None:
        """Removes users who were forgotten since from the stored lists."""
        if len(self._forgotten) > self._written:
            self._written = len(self._forgotten)
            forget(self._state, self._forgotten)

    def turn(self, lives: Sequence[Live]) -> None:
        """Lists what is due; each line once. ``lives``: of the live line."""
        if not self._waiting or not is_due(self._timer_ms(), self._waiting[0][0], _LIST_AFTER_MS):
            return
        if self._thread is not None and self._thread.is_alive():
            return
        _, served_by, since_ms = self._waiting.pop(0)
        if read_impact(impact_file(self._state, served_by)) is not None:
            return
        work = partial(self._write, served_by, since_ms, list(lives))
        if self._open is None:
            work()
            return
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def _write(self, served_by: str, since_ms: int, lives: Sequence[Live]) -> None:
        log = self._log if self._open is None else self._open()
        try:
            write_impact(self._state, find_impact(log, served_by, since_ms, lives))
            forget(self._state, self._forgotten)
        except (LogLost, LogUnavailable, OSError) as error:
            _LOG.error("the requests that %s answered can't be listed: %s", served_by, error)


def find_impact(log: Log, served_by: str, since_ms: int, lives: Sequence[Live]) -> RollbackImpact:
    """Impact of a line/epoch that answered from ``since_ms`` on. ``lives``: of the live line."""
    requests, complete = list[AffectedRequest](), True
    line, _, epoch = served_by.rpartition("/")
    for partition in range(log.partitions(EVENTS)):
        start = first_at(log, EVENTS, partition, since_ms - _MARGIN_MS, served_ms_of)
        complete = complete and (start > log.begin(EVENTS, partition) or start == 0)
        records = read_range(log, EVENTS, partition, start, log.end(EVENTS, partition))
        for _, shown in decoded(records, _Impression):
            stamp = None if shown.request_id.startswith(CLICK_LIST) else shown.stamp
            if stamp is not None and (stamp.line, stamp.epoch) == (line, int(epoch)):
                request = (shown.request_id, shown.user_id, shown.time_ms, stamp.step)
                requests.append(AffectedRequest(*request))
    requests.sort(key=lambda request: (request.time_ms, request.request_id))
    return RollbackImpact(served_by, requests, _steps(log, served_by, since_ms, lives), complete)


def _steps(log: Log, served_by: str, since_ms: int, lives: Sequence[Live]) -> list[AffectedStep]:
    """Affected steps of the line's history; those of an abandoned epoch are no longer part of it."""
    lineage, steps = Lineage(log, MAIN, lives), list[AffectedStep]()
    for step in readable(log, STEPS, Step):
        counts = step.line == MAIN and step.epoch == lineage.epoch_of(step.step)
        if not counts or step.time_ms < since_ms - _MARGIN_MS:
            continue
        examples = sum(_count(log, served_by, r.partition, r.start, r.stop) for r in step.ranges)
        if examples:
            name = "excluded" if served_by in step.without else "learned"
            steps.append(AffectedStep(step.epoch, step.step, **{name: examples}))
    return steps


def _count(log: Log, served_by: str, partition: int, start: int, stop: int) -> int:
    start = max(start, log.begin(EXAMPLES, partition))
    records = read_range(log, EXAMPLES, partition, start, stop)
    return sum(example.served_by == served_by for _, example in decoded(records, _Example))


def forget(state: Path, users: Set[str]) -> None:
    """Removes the requests of users from all stored impacts."""
    for file in (state / FOLDER).glob("*.json"):
        if (impact := read_impact(file)) is None:
            continue  # the director writes it again
        left = [request for request in impact.requests if str(request.user_id) not in users]
        if len(left) < len(impact.requests):
            write_impact(state, msgspec.structs.replace(impact, requests=left))


def read_impact(file: Path) -> RollbackImpact | None:
    """A stored impact; None if there is none, or a power cut has emptied its file."""
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=RollbackImpact)
    return None


def impact_file(state: Path, served_by: str) -> Path:
    """Path of the stored impact of a line/epoch."""
    return state / FOLDER / f"{served_by.replace('/', '-')}.json"


def write_impact(state: Path, impact: RollbackImpact) -> None:
    """Stores it in the state folder, as JSON."""
    file = impact_file(state, impact.served_by)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(impact)), sync=True)
