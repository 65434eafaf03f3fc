"""Quotas: calls a second and a day of an API key, lists and events a second of a user. Pure.

Each replica has its share of a quota. A bucket holds ten seconds' worth, so that a phone that was offline may
send what it has kept.
"""

from typing import Final

from recsys.config.system_config import Config
from recsys.events.control_records import ApiKey
from recsys.events.hashing import Id
from serving.access.caller import Caller
from serving.admission.admission import TokenBuckets

BURST_S: Final = 10.0
_NAMES: Final = 100_000  # buckets; a forgotten one restarts full
_DAY_S: Final = 86_400


class Quotas:
    """Quotas of one of ``serve.replicas``. Each method returns the seconds to wait, 0 for a call that may go
    on."""

    def __init__(self, config: Config) -> None:
        self._access = config.access
        self._replicas = max(config.serve.replicas, config.serve.max_replicas)
        self._calls, self._lists, self._events = (
            TokenBuckets(clients=_NAMES, burst_s=BURST_S) for _ in range(3)
        )
        self._days: dict[str, tuple[int, int]] = {}  # day, calls

    def call(self, key: ApiKey, now_s: float) -> float:
        """Counts a call with a key."""
        day = int(now_s // _DAY_S)
        since, calls = self._days.get(key.id, (day, 0))
        calls = calls if since == day else 0
        if key.daily and calls * self._replicas >= key.daily:
            return (day + 1) * _DAY_S - now_s
        wait_s = self._calls.take(key.id, now_s, self._share(key.rate or self._access.key_rate))
        if not wait_s:
            self._days[key.id] = day, calls + 1
        return wait_s

    def list(self, caller: Caller, user_id: Id, now_s: float) -> float:
        """Counts a list of a user."""
        rate = 0.0 if caller.attributes else self._share(self._access.user_lists)
        return self._lists.take(_name(caller, user_id), now_s, rate)

    def event(self, caller: Caller, user_id: Id, now_s: float) -> float:
        """Counts an event of a user. Each replica takes the whole burst, which comes on one connection."""
        rate = 0.0 if caller.attributes else self._access.user_events
        share, burst = self._share(rate), rate * BURST_S
        return self._events.take(_name(caller, user_id), now_s, share, burst)

    def _share(self, rate: float) -> float:
        return rate / self._replicas


def _name(caller: Caller, user_id: Id) -> str:
    """Bucket of a user. Where the user isn't proven it is of the source too: others can't empty it."""
    return str(user_id) if caller.user_id is not None else f"{caller.source}\x1f{user_id}"
