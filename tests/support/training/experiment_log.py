"""A log on which users of an experiment are served and watch, joined as everywhere."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from experiments.assignment.policy import Policies
from experiments.statistics.revision import running
from recsys.config.system_config import Config, JoinConfig
from recsys.events.control_records import Experiments
from recsys.events.event_types import Engagement, Impression, ServedItem, Stamp, encode
from recsys.events.hashing import partition_of, uniform
from recsys.events.records import CLICK_LIST, EVENTS, EXAMPLES, Example, pack, topics, unpack
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.log_consumer import UNREADABLE
from training.joining.joiner import Joiner

LABELS = ("long_view", "click", "like", "follow", "comment", "share", "hide")
HOUR_MS = 3_600_000
BEGAN_MS = 1_790_000_000_000
ITEMS = 3  # of a list


class ToyTrial:
    """Serves lists by whatever the newest revision says. ``liked``: the share of long views, and of hides,
    by arm of the experiment ``mine``; of others 0.4 and 0.1."""

    def __init__(self, join: JoinConfig | None = None, log: Log | None = None) -> None:
        self.config = replace(Config(), join=join or JoinConfig())
        self._log = log or MemoryLog()
        for topic in topics(2) if log is None else ():
            self._log.create(topic)
        self._unsent: dict[str, list[Append]] = {EVENTS: [], EXAMPLES: []}  # a file takes many at once
        self._offsets = [0, 0]
        self.now_ms = BEGAN_MS
        self.liked: dict[str, tuple[float, float]] = {}
        self._joiners = [Joiner(p, LABELS, self.config.join) for p in range(2)]
        self._policies = Policies(self.config.policy)
        self._served = 0

    @property
    def log(self) -> Log:
        """With all that was served on it."""
        for topic, records in self._unsent.items():
            if records:
                self._log.append(topic, records)
                records.clear()
        return self._log

    def take(self, said: Experiments) -> None:
        self._policies = Policies(self.config.policy, running(said, self.config.policy, LABELS))

    def arm(self, user: str) -> str | None:
        return self._policies.resolve(user).arms.get("mine")

    def serve(
        self, user: str, arms: dict[str, str] | None = None, watch: bool = True, surface: str = "feed"
    ) -> str:
        """One list, a second later; ``arms``: instead of those that are assigned."""
        self.now_ms += 1_000
        self._served += 1
        request_id = f"r{self._served}"
        given = self._policies.resolve(user).arms if arms is None else arms
        items = [ServedItem(item_id=f"v{n}") for n in range(ITEMS)]
        self._append(
            Impression(
                time_ms=self.now_ms, request_id=request_id, user_id=user, items=items,
                surface=surface, stamp=Stamp(arms=given),
            )
        )  # fmt: skip
        if watch:
            self._watch(user, request_id, self.liked.get(given.get("mine", ""), (0.4, 0.1)))
        return request_id

    def _watch(self, user: str, request_id: str, shares: tuple[float, float]) -> None:
        for n in range(ITEMS):
            for kind, share in zip(("long_view", "hide"), shares, strict=True):
                if uniform(3, kind, user, request_id, n) < share:
                    self.engage(user, request_id, n, kind)
            self.engage(user, request_id, n, "view", watch_ms=2_000)

    def engage(self, user: str, request_id: str, n: int, kind: str, watch_ms: int = 0) -> None:
        self._append(
            Engagement(
                time_ms=self.now_ms, request_id=request_id, user_id=user, item_id=f"v{n}", kind=kind,
                watch_ms=watch_ms or None,
            )
        )  # fmt: skip

    def pass_time(self, hours: float) -> None:
        """Somebody, who is in no experiment, closes all windows."""
        self.now_ms += int(hours * HOUR_MS)
        for partition, joiner in enumerate(self._joiners):
            self._emit(partition, joiner.advance(self.now_ms))
        for n in range(8):
            self.serve(f"nobody{n}", {})
        assert self.log

    def _append(self, event: Any) -> None:
        partition = partition_of(event.user_id, 2)
        self._offsets[partition] += 1
        self._unsent[EVENTS].append(Append(partition, b"", encode(event)))
        self._emit(partition, self._joiners[partition].feed(self._offsets[partition], event))

    def _emit(self, partition: int, joined: Any) -> None:
        self._unsent[EXAMPLES] += [Append(partition, b"", pack(example)) for example in joined]


def of_clicks(log: Log) -> list[Append]:
    """The examples of a log again, as if their lists had been made of clicks."""
    examples = list[Append]()
    for partition in range(2):
        for record in log.read(EXAMPLES, partition, 0, log.end(EXAMPLES, partition)):
            with suppress(*UNREADABLE):
                shown = unpack(record.value, Example)
                named = {"request_id": CLICK_LIST + shown.request_id, "stamp": Stamp()}
                value = pack(msgspec.structs.replace(shown, **named))
                examples.append(Append(partition, b"", value))
    return examples
