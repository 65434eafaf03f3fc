"""Reads users and their engagements from the newest records of the log, newest first. Pure but for the log.

Each call reads a bounded part of the log, backwards from its end; older records are not reported.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from recsys.events.event_types import Engagement, Rejected, User, decode, dedupe_key
from recsys.events.records import EVENTS
from recsys.log.protocol import Log, LogLost, Record, newest_first

MOST_RECORDS: Final = 50_000  # examined: an idle partition has a tick each second
MOST_BYTES: Final = 32 * 2**20  # examined: impressions contain their features
_FIRST, _READ = 16, 500  # records of the first block, and of the largest
Matches = Callable[[Engagement], bool]


@dataclass(frozen=True)
class EngagementPage:
    """Engagements, newest first. ``before``: by partition, the offset where the next page ends; None if there
    are no more within the examined records."""

    engagements: tuple[Engagement, ...]
    before: tuple[int, ...] | None


@dataclass(frozen=True)
class UserRecord:
    """State of a user. ``profile``: as sent last; ``certain``: whether that is known, including that there is
    none; ``gone``: the user was erased, and did nothing since."""

    profile: User | None
    certain: bool
    gone: bool = False


class _ReadEvent(NamedTuple):
    """A profile or an engagement. ``place``: number of its partition among those that are read."""

    event: User | Engagement
    offset: int
    place: int


def _backwards(log: Log, partitions: Sequence[int], place: int, key: bytes | None) -> Iterator[_ReadEvent]:
    """Profiles and engagements of one of the partitions, which share the limits, from its end on."""
    partition, bytes_left = partitions[place], MOST_BYTES // len(partitions)
    begin = log.end(EVENTS, partition) - MOST_RECORDS // len(partitions)
    with suppress(LogLost):  # retention removed the records meanwhile
        for record in newest_first(log, EVENTS, partition, begin, first=_FIRST, most=_READ):
            bytes_left -= len(record.value)
            if bytes_left < 0:
                return
            if key in (None, record.key) and (event := _decode(record)) is not None:
                yield _ReadEvent(event, record.offset, place)


def read_page(
    log: Log, most: int, matches: Matches, before: Sequence[int] | None = None,
    partition: int | None = None, key: bytes | None = None,
) -> EngagementPage:  # fmt: skip
    """Reads the newest matching engagements, at most ``most``, of all partitions or of one. ``key``: decodes
    only records with it. Raises LogUnavailable, and ValueError for another log's ``before``.

    A page holds repeats once, and nothing that a user did before being erased, although the log may still
    have it: for that each page is read from the end.
    """
    parts = range(log.partitions(EVENTS)) if partition is None else (partition,)
    if before is not None and len(before) != len(parts):
        raise ValueError(f"{len(before)} offsets, expected {len(parts)}")
    streams = [_backwards(log, parts, place, key) for place in range(len(parts))]
    newest = heapq.merge(*streams, key=lambda read: (-read.event.time_ms, -read.place))
    ends = list(before or [1 << 62] * len(parts))
    engagements, seen, erased = list[Engagement](), set[str](), set[str]()
    while len(engagements) < most and (read := next(newest, None)) is not None:
        event, offset, place = read
        if isinstance(event, User) and event.removed:
            erased.add(str(event.user_id))
        if not isinstance(event, Engagement) or offset >= ends[place]:
            continue
        ends[place], name = offset, dedupe_key(event)
        if str(event.user_id) not in erased and name not in seen and matches(event):
            seen.add(name)
            engagements.append(event)
    return EngagementPage(tuple(engagements), None if next(newest, None) is None else tuple(ends))


def read_user(log: Log, partition: int, key: bytes) -> UserRecord | None:
    """Reads one user; None without any record. Raises LogUnavailable."""
    users = _read_users(_backwards(log, [partition], 0, key), one=True)
    return next(iter(users.values()), None)


def read_users(log: Log) -> dict[str, UserRecord]:
    """Reads the users in the newest records, by id, without those that are gone. Raises LogUnavailable."""
    parts, users = range(log.partitions(EVENTS)), dict[str, UserRecord]()
    for place in parts:
        users |= _read_users(_backwards(log, parts, place, None))
    return {user_id: user for user_id, user in users.items() if not user.gone}


def _read_users(newest: Iterator[_ReadEvent], one: bool = False) -> dict[str, UserRecord]:
    """Reads backwards, so that the first profile or erasure of a user counts. ``one``: all records are of one
    user, and the rest needn't be read."""
    active, users = set[str](), dict[str, UserRecord]()
    for event, _, _ in newest:
        user_id = str(event.user_id)
        if isinstance(event, Engagement):
            active.add(user_id)
        elif user_id not in users:
            profile = None if event.removed else event
            users[user_id] = UserRecord(profile, True, event.removed and user_id not in active)
            if one:
                break
    return {user_id: UserRecord(None, False) for user_id in active} | users


def _decode(record: Record) -> User | Engagement | None:
    try:
        event = decode(record.value)
    except Rejected:  # the joiner counts it and puts it into dead_letters
        return None
    return event if isinstance(event, User | Engagement) else None
