"""What the newest records of the log say of users and what they did, newest first. Pure but for the log.

Nothing is kept for it: who asks has a bounded part of the log read, backwards from its end. So one sees what
stands there now, and what is older isn't told although the log may have it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from recsys.events.event_types import Engagement, Rejected, User, decode, dedupe_key
from recsys.events.records import EVENTS
from recsys.log.protocol import Log, LogLost, Record, newest_first

MOST_RECORDS: Final = 50_000  # that are looked at: an idle partition has a tick each second
MOST_BYTES: Final = 32 * 2**20  # as many: impressions carry their features
_FIRST, _READ = 16, 500  # records of the first block, and of one at the most
Wanted = Callable[[Engagement], bool]


@dataclass(frozen=True)
class Page:
    """Engagements, newest first. ``before``: by partition, the offset that the next page's are before; None
    where there are no more within what is looked at."""

    engagements: tuple[Engagement, ...]
    before: tuple[int, ...] | None


@dataclass(frozen=True)
class Known:
    """A user. ``profile``: as it was sent last; ``sure``: whether it is that, and where there is none, that
    none is older than what was looked at; ``gone``: they are forgotten, and did nothing since."""

    profile: User | None
    sure: bool
    gone: bool = False


class _Partition:
    """Profiles and engagements of one partition, from its end backwards; ``head`` is the next one."""

    def __init__(self, log: Log, partition: int, parts: int, key: bytes | None) -> None:
        self._log, self._partition, self._key = log, partition, key
        self._records, self._bytes = MOST_RECORDS // parts, MOST_BYTES // parts
        self._events = self._read()
        self.offset = -1  # of the head
        self.head = next(self._events, None)

    def step(self) -> None:
        self.head = next(self._events, None)

    def _read(self) -> Iterator[User | Engagement]:
        for record in self._backwards():
            event = None if self._key not in (None, record.key) else _event(record)
            if event is not None:
                self.offset = record.offset
                yield event

    def _backwards(self) -> Iterator[Record]:
        begin = self._log.end(EVENTS, self._partition) - self._records
        newest = newest_first(self._log, EVENTS, self._partition, begin, first=_FIRST, most=_READ)
        with suppress(LogLost):  # retention passed it meanwhile: what is older went with it
            for record in newest:
                self._bytes -= len(record.value)
                if self._bytes < 0:
                    return
                yield record


def page_of(
    log: Log, most: int, wanted: Wanted, before: Sequence[int] | None = None,
    partition: int | None = None, key: bytes | None = None,
) -> Page:  # fmt: skip
    """The newest engagements that are wanted, at most so many, of all partitions or of one. ``key`` leaves
    the records of others undecoded. Raises LogUnavailable, and ValueError for another log's ``before``.

    Repeats come once in a page. What somebody did who was forgotten since isn't told, though it may stand
    there still: so each page is read from the end.
    """
    parts = range(log.partitions(EVENTS)) if partition is None else (partition,)
    if before is not None and len(before) != len(parts):
        raise ValueError(f"{len(before)} offsets, expected {len(parts)}")
    reading = [_Partition(log, part, len(parts), key) for part in parts]
    ends = list(before or [1 << 62] * len(parts))
    found, seen, forgotten = list[Engagement](), set[str](), set[str]()
    while (at := _newest(reading)) is not None and len(found) < most:
        event, offset = reading[at].head, reading[at].offset
        reading[at].step()
        if isinstance(event, User) and event.removed:
            forgotten.add(str(event.user_id))
        if not isinstance(event, Engagement) or offset >= ends[at]:
            continue
        ends[at], name = offset, dedupe_key(event)
        if str(event.user_id) not in forgotten and name not in seen and wanted(event):
            seen.add(name)
            found.append(event)
    return Page(tuple(found), None if _newest(reading) is None else tuple(ends))


def known_of(log: Log, partition: int, key: bytes) -> Known | None:
    """What is known of one user; None where nothing is found. Raises LogUnavailable."""
    found = _known(_Partition(log, partition, 1, key), one=True)
    return next(iter(found.values()), None)


def users_of(log: Log) -> dict[str, Known]:
    """Everybody whom the newest records say something of, by id, but for those who are gone. Raises
    LogUnavailable."""
    parts = log.partitions(EVENTS)
    found = dict[str, Known]()
    for partition in range(parts):
        found |= _known(_Partition(log, partition, parts, None))
    return {user_id: its for user_id, its in found.items() if not its.gone}


def _known(part: _Partition, one: bool = False) -> dict[str, Known]:
    """Backwards, so that of a user's profiles and wishes the first one met counts; ``one``: of one user, so
    that nothing more is read then."""
    did, found = set[str](), dict[str, Known]()
    while part.head is not None and not (one and found):
        event, user_id = part.head, str(part.head.user_id)
        part.step()
        if isinstance(event, Engagement):
            did.add(user_id)
        elif user_id not in found:
            profile = None if event.removed else event
            found[user_id] = Known(profile, True, event.removed and user_id not in did)
    return {user_id: Known(None, False) for user_id in did} | found


def _newest(reading: Sequence[_Partition]) -> int | None:
    heads = [(one.head.time_ms, at) for at, one in enumerate(reading) if one.head is not None]
    return max(heads)[1] if heads else None


def _event(record: Record) -> User | Engagement | None:
    try:
        event = decode(record.value)
    except Rejected:  # the joiner counts it, and puts it into dead_letters
        return None
    return event if isinstance(event, User | Engagement) else None
