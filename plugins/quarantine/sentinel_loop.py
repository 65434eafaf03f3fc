"""Part that looks for cohorts among the newest events, and holds those with enough evidence.

It runs where ``bounds.hold_nats`` is set. It stores nothing: after a restart it reads the log again.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final

from plugins.quarantine.cohorts import Accounts, Cohort
from recsys.config.system_config import Config
from recsys.events.event_types import Rejected, Verdict, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, Log, LogLost
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import Consumer
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop

_LOOK_MS: Final = 600_000
_WINDOW_MS: Final = 86_400_000
_LOG: Final = logging.getLogger(__name__)


def append_verdicts(
    log: Log, users: Iterable[str], quarantined: bool, why: str, now_ms: int
) -> dict[str, int]:
    """Appends a verdict among each user's events; returns their offsets."""
    users = list(dict.fromkeys(users))
    partitions = log.partitions(EVENTS)
    appends = list[Append]()
    for user in users:
        verdict = Verdict(time_ms=now_ms, user_id=user, quarantined=quarantined, why=why)
        appends.append(Append(partition_of(user, partitions), user.encode(), encode(verdict)))
    return dict(zip(users, log.append(EVENTS, appends), strict=True))


class SentinelLoop(PartFold):
    """Accounts of the last ``window_ms``. ``nats``: evidence to hold with; 0: it only looks."""

    def __init__(self, log: Log, nats: float, clock: Callable[[], int], window_ms: int = _WINDOW_MS) -> None:
        self._log, self._nats, self._clock, self._window_ms = log, nats, clock, window_ms
        self.accounts = Accounts()
        self.held = 0
        self._due_ms = 0
        self._events = self._consumer()

    def report(self, beat: Heartbeat, moved: int) -> None:
        beat.add("events", moved)
        beat.gauge("held", self.held)

    def wait(self) -> None:
        self._log.wait(EVENTS, 1.0)

    def _restore(self) -> None:
        """Nothing: what it knows stays true."""

    def _turn(self) -> int:
        """Reads events, and looks when it has read all and a look is due; returns the events read."""
        read = self.read()
        if self._nats and not read and self._clock() >= self._due_ms:
            self._due_ms = self._clock() + _LOOK_MS
            self.hold()
        return read

    def read(self, limit: int = 1_000) -> int:
        """Takes the next events of each partition; returns their number."""
        try:
            records = self._events.poll(limit)
        except LogLost:  # retention overtook it
            self._events = self._consumer()
            return 0
        oldest_ms = self._clock() - self._window_ms
        for _, record in records:
            try:
                event = decode(record.value)
            except Rejected:
                continue
            if event.time_ms >= oldest_ms or isinstance(event, Verdict):
                self.accounts.feed(event)
        return len(records)

    def hold(self) -> list[Cohort]:
        """Holds the cohorts with enough evidence; returns them."""
        now_ms = self._clock()
        self.accounts.forget_before(now_ms - self._window_ms)
        cohorts = self.accounts.over(self._nats)
        for cohort in cohorts:
            why = f"rule: {cohort.nats:.0f} nats, {', '.join(cohort.marks)}"
            append_verdicts(self._log, cohort.users, True, why, now_ms)
            self.held += len(cohort.users)
            _LOG.warning(
                "held %d users who push or sink %d items (%s)", len(cohort.users), len(cohort.items), why
            )
        return cohorts

    def _consumer(self) -> Consumer:
        return Consumer(self._log, EVENTS, range(self._log.partitions(EVENTS)))


def run(config: Config, stop: Stop) -> None:
    """Looks until asked to stop."""
    with closing(open_log(config)) as log:
        loop = SentinelLoop(log, config.bounds.hold_nats, clock_of(config))
        follow(loop, stop, _LOG)
