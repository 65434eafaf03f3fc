"""A crowd whose taste is known: every person likes one topic. Drives the whole loop in one process.

What they do is a hash of (request, rank), so that the same feed gives the same events.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from benchmarks.harness.answering_player import AnsweringPlayer
from recsys.config.system_config import (
    Config,
    JoinConfig,
    ModelConfig,
    ParameterServerConfig,
    ServeConfig,
    StepConfig,
)
from recsys.events.event_types import Engagement, Item
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.events.hashing import uniform
from recsys.features.feature_set import FeatureSet
from replay.direct_loop import DirectLoop
from serving.request import Answer, Request

START_MS = 1_700_000_000_000
TOPICS = 8
SCHEMA = Schema(
    item=(("author", CATEGORICAL), ("duration_ms", NUMERIC), ("tags", CATEGORICAL)),
    user=(("country", CATEGORICAL),),
    context=(("surface", CATEGORICAL),),
    labels=("long_view", "like"),
)
FEATURES = FeatureSet(SCHEMA, "all", history=8)


def crowd_config(shards: int = 1) -> Config:
    """Small and quick to learn with."""
    return Config(
        join=JoinConfig(window_s=60),
        step=StepConfig(examples=64, every_ms=5_000, lanes=2),
        model=ModelConfig(dim=8, vector_dim=8, hidden=(16,), dense_rate=0.005, dense_first=1.0),
        serve=ServeConfig(candidates=80),
        parameter_server=ParameterServerConfig(shards=shards),
    )


def topic_of(item_id: object) -> int:
    return int(str(item_id)[1:]) % TOPICS


def items(count: int) -> list[Item]:
    """Items v0, v1, ... in turn about each topic; an author has about five of one topic."""
    return [
        Item(
            time_ms=START_MS,
            item_id=f"v{n}",
            fields={
                "author": f"a{n % TOPICS}.{n // TOPICS // 5}",
                "tags": [f"topic{n % TOPICS}"],
                "duration_ms": 5_000 + 1_000 * (n % 7),
            },
        )
        for n in range(count)
    ]


def true_like(user: int, item_id: object) -> float:
    """P(long view): the truth that is to be found out."""
    return 0.9 if topic_of(item_id) == user % TOPICS else 0.1


def watch(answer: Answer, user: int, now_ms: int) -> Iterator[Engagement]:
    """What the viewer does with a list, item by item, four seconds each."""
    for rank, shown in enumerate(answer.items):
        at_ms = now_ms + 4_000 * (rank + 1)
        liked = uniform(1, answer.request_id, rank) < true_like(user, shown.item_id)
        kinds = [("long_view", 8_000)] if liked else []
        if liked and uniform(2, answer.request_id, rank) < 0.5:
            kinds.append(("like", None))
        for kind, watch_ms in [*kinds, ("view", 8_000 if liked else 1_000)]:
            yield Engagement(
                time_ms=at_ms, request_id=answer.request_id, user_id=f"u{user}",
                item_id=shown.item_id, kind=kind, watch_ms=watch_ms,
            )  # fmt: skip


@dataclass
class Crowd:
    """People who ask for lists, one after the other, and watch them."""

    config: Config = field(default_factory=crowd_config)
    people: int = 40
    num_items: int = 1600
    gap_ms: int = 1_500

    def __post_init__(self) -> None:
        self.loop = DirectLoop(FEATURES, self.config)
        self.player = AnsweringPlayer(FEATURES, self.config, self.loop)
        self.now_ms = START_MS
        self.likings: list[float] = []  # mean true probability of each list
        self._coming: list[tuple[int, int, Engagement]] = []
        self._count = 0
        for item in items(self.num_items):
            self.player.play(item)

    def run(self, requests: int, n: int = 6) -> None:
        for _ in range(requests):
            self.now_ms += self.gap_ms
            self._happen()
            user = self._count % self.people
            self._count += 1
            answer = self.player.recommend(Request(f"u{user}", n=n), self.now_ms)
            truth = [true_like(user, item.item_id) for item in answer.items]
            self.likings.append(sum(truth) / len(truth))
            self._expect(watch(answer, user, self.now_ms))

    def _happen(self) -> None:
        while self._coming and self._coming[0][0] <= self.now_ms:
            self.player.play(heapq.heappop(self._coming)[2])

    def _expect(self, events: Iterable[Engagement]) -> None:
        for event in events:
            heapq.heappush(self._coming, (event.time_ms, len(self._coming) + self._count * 100, event))


def share(answer: Answer, topic: int) -> float:
    """Which part of a list is about a topic."""
    return sum(topic_of(item.item_id) == topic for item in answer.items) / len(answer.items)
