"""Disk budget: how much each kind of data in the state folder may take, and the space level. Pure.

Shares are of the budget less a reserve. Levels follow from the room that is left in the budget and on the
disk. A level is entered at once. It is left, for the one below, once there has been half as much room again
for 30 seconds.

    low    the archive is not written, and its oldest hours go until there is room
    lower  old deltas go, two snapshots stay, the archive no longer holds back the log's retention
    full   events are refused
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import msgspec

from recsys.config.safety_config import DiskConfig
from recsys.events.records import DEAD_LETTERS, DELTAS, EVENTS, EXAMPLES, ITEM_COUNTS, ITEM_STATE, SCORES

GB: Final = 10**9
_RESERVE: Final = 0.05  # of the budget, at most
_LEAVE: Final = 1.5  # times the bound of a level
_LEAVE_MS: Final = 30_000
_OVER: Final = 1.1  # times its share: a topic that something holds
# Shares of the log's bytes. The rest is for topics without retention and for write-ahead files.
_TOPIC_SHARES: Final = {
    EVENTS: 0.26, EXAMPLES: 0.36, DELTAS: 0.2, ITEM_COUNTS: 0.02, ITEM_STATE: 0.03, SCORES: 0.03,
    DEAD_LETTERS: 0.02,
}  # fmt: skip
# Bytes of records by bytes of file: 0.82 (events) to 0.97 (deltas) were measured.
_FILL: Final = 0.8
ARCHIVE: Final = "archive"
SNAPSHOTS: Final = "snapshots"
LOG: Final = "log/"  # before a topic's name


class Level(IntEnum):
    OK, LOW, LOWER, FULL = range(4)


_BOUNDS: Final = {Level.LOW: 2.0, Level.LOWER: 1.0, Level.FULL: 0.25}


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by kind, what archive and snapshots may have, and the level; the content of ``space.json``.
    ``over``: topics beyond their share. ``since_ms``: of the level."""

    level: Level = Level.OK
    free: int = 0
    used: int = 0
    budget: int = 0
    kinds: dict[str, int] = {}
    archive: int = 0
    snapshots: int = 0
    over: list[str] = []
    why: str = ""
    since_ms: int = 0
    time_ms: int = 0


class DiskBudget:
    """Plans from measured bytes; only the level depends on plans before."""

    def __init__(self, config: DiskConfig) -> None:
        self._config = config
        self._level, self._since_ms = Level.OK, 0
        self._roomy_ms: int | None = None  # since when the level could be left

    def plan(self, kinds: Mapping[str, int], free: int, now_ms: int) -> Space:
        """``kinds``: bytes on the disk by kind; topics as ``log/NAME``. ``free``: bytes of the whole disk."""
        config, used = self._config, sum(kinds.values())
        left, reserve, free_bound = _budget(config) - used, reserve_of(config), config.free_gb * GB
        room = min(left / reserve, free / free_bound)
        self._turn(room, now_ms)
        archive, usable = kinds.get(ARCHIVE, 0), usable_of(config)
        most = max(int(config.archive * usable), usable - used + archive)
        if self._level > Level.OK:
            wanted = _LEAVE * _BOUNDS[Level.LOW] * 1.05
            lacking = max(wanted * reserve - left, wanted * free_bound - free)
            most = max(0, min(most, archive - int(lacking)))
        shares = _shares(config).items()
        return Space(
            level=self._level, free=free, used=used, budget=_budget(config), kinds=dict(kinds),
            archive=most, snapshots=int(config.snapshots * usable),
            over=[t for t, share in shares if kinds.get(LOG + t, 0) > _OVER * share],
            why=self._why(left / reserve <= free / free_bound), since_ms=self._since_ms,
            time_ms=now_ms,
        )  # fmt: skip

    def _turn(self, room: float, now_ms: int) -> None:
        needed = max((level for level, bound in _BOUNDS.items() if room < bound), default=Level.OK)
        if needed > self._level:
            self._set(needed, now_ms)
        elif self._level and room >= _LEAVE * _BOUNDS[self._level]:
            if self._roomy_ms is None or now_ms < self._roomy_ms:  # or the clock was set back
                self._roomy_ms = now_ms
            if now_ms - self._roomy_ms >= _LEAVE_MS:
                self._set(Level(self._level - 1), now_ms)
        else:
            self._roomy_ms = None

    def _set(self, level: Level, now_ms: int) -> None:
        self._level, self._since_ms, self._roomy_ms = level, now_ms, None

    def _why(self, by_budget: bool) -> str:
        if self._level is Level.OK:
            return ""
        if by_budget:
            return f"the state folder comes near disk.budget_gb, {self._config.budget_gb:g} GB"
        free_gb = self._config.free_gb
        return f"the disk has little more room than disk.free_gb, {free_gb:g} GB, or less"


def topic_bytes(config: DiskConfig, partitions: int) -> dict[str, int]:
    """Bytes of records that a partition of a topic may have, for topics with retention."""
    shares = _shares(config)
    divided = {EVENTS, EXAMPLES, ITEM_COUNTS}
    return {t: int(s * _FILL / (partitions if t in divided else 1)) for t, s in shares.items()}


def reserve_of(config: DiskConfig) -> int:
    """Bytes at which the level is ``lower``."""
    return int(min(config.free_gb, _RESERVE * config.budget_gb) * GB)


def usable_of(config: DiskConfig) -> int:
    """Bytes that are shared out. Above them, there is less room than leaving ``low`` takes."""
    leave = _LEAVE * _BOUNDS[Level.LOW] * 1.1
    return _budget(config) - int(leave * reserve_of(config))


def _shares(config: DiskConfig) -> dict[str, float]:
    log = config.log * usable_of(config)
    return {topic: share * log for topic, share in _TOPIC_SHARES.items()}


def _budget(config: DiskConfig) -> int:
    return int(config.budget_gb * GB)
