"""The simulated world answered by the whole system in one process: lists of newcomers, and exposure of new
items.

Pipeline, folds, joiner and learner are those of the live parts (``Player``, ``DirectLoop``); they get no more
information than a live system. The worth of a slot is ``World.true_long_view``, the expected outcome instead
of the drawn one, which needs fewer viewers.
"""

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.answering_player import AnsweringPlayer
from benchmarks.studies.quality.coldstart_ceiling import Ceiling, swipes_of
from examples.short_video.dataset_warmup import SURFACE
from examples.short_video.world import World
from experiments.assignment.policy import Policy
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config, JoinConfig, ModelConfig, ServeConfig, StepConfig
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem
from recsys.events.hashing import Id
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.session import Session
from replay.direct_loop import DirectLoop
from serving.query import Query
from serving.request import Request

LIST: Final = 8  # items of a list
Past = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
ARMS: Final = ("whole", "no session", "greedy", "ceiling", "popularity")
_NEVER: Final = 2**62
_HOUR_MS: Final = 3_600_000


def small(policy: PolicyConfig, candidates: int = 200) -> Config:
    """Configuration that learns quickly from little data: steps of 64 examples, a smaller network."""
    return Config(
        step=StepConfig(examples=64, every_ms=600_000, snapshot_every=10**9),
        join=JoinConfig(window_s=60.0, horizon_s=600.0),
        model=ModelConfig(dim=8, vector_dim=16, hidden=(32,)),
        serve=ServeConfig(candidates=candidates),
        policy=policy,
    )


@dataclass(frozen=True)
class Slot:
    """One seen item, and its worth: P(long view) there and then."""

    time_ms: int
    item_id: Id
    worth: float


@dataclass
class Feed:
    """A world and the system that answers it. Viewers in ``away`` don't come on their own.

    ``panel`` people try each item published from ``measured_ms`` on at once: the system learns their
    outcomes, which count for nothing else. That is the oracle, which knows new items from the beginning.
    ``past``: earlier counters, from ``past_of``.
    """

    world: World
    config: Config
    away: Collection[str] = ()
    panel: int = 0
    measured_ms: int = _NEVER
    past: Past | None = None
    slots: list[Slot] = field(default_factory=list)
    ranks: int = 0  # of all measured lists ...
    offered: int = 0  # ... with an item on trial ...
    given: int = 0  # ... and taken by the quota

    def __post_init__(self) -> None:
        features = FeatureSet(FEED_SCHEMA, "all", self.config.sessions.history)
        self.player = AnsweringPlayer(features, self.config, DirectLoop(features, self.config))
        self.now_ms = self.world.start_ms
        self._later: list[tuple[int, int, Event]] = []
        self._numbers = 0
        for item in self.world.items(self.now_ms):
            self.player.play(item)
        for user in self.world.users():
            self.player.play(user)
        if self.past is not None:
            self.player.item_counters.counters.set(*self.past)
            self.player.replica.popularity.update(*self.past)

    def run(self, until_ms: int) -> None:
        """Serves all visitors until then, and learns from them."""
        for request in self.world.next_requests(self.now_ms, until_ms):
            if request.user_id not in self.away:
                self._pass(request.time_ms)
                self._serve(request.user_id, request.time_ms)
        self._pass(until_ms)

    def earned(self, items: Mapping[Id, int], within_ms: int) -> dict[Id, float]:
        """Total worth of each item's slots in its first ``within_ms``. ``items``: publication times."""
        worth_by_item = dict.fromkeys(items, 0.0)
        for slot in self.slots:
            if slot.item_id in items and slot.time_ms - items[slot.item_id] < within_ms:
                worth_by_item[slot.item_id] += slot.worth
        return worth_by_item

    def _serve(self, user_id: str, now_ms: int) -> None:
        answer = self.player.recommend(Request(user_id, LIST), now_ms)
        done = self.world.react(
            user_id, [item.item_id for item in answer.items], answer.request_id, now_ms
        )
        for event in done:
            self._await(event)
        if now_ms < self.measured_ms:
            return
        self.ranks += len(answer.items)
        self.offered += answer.offered
        self.given += sum("quota" in item.sources for item in answer.items)
        seen = {event.item_id for event in done if event.kind == "view"}
        for item in answer.items:
            if item.item_id in seen:
                worth = self.world.true_long_view(user_id, item.item_id, now_ms, item.rank)
                self.slots.append(Slot(now_ms, item.item_id, worth))

    def _pass(self, until_ms: int) -> None:
        """Moves time: items are published, and engagements arrive."""
        for item in self.world.new_items(self.now_ms + 1, until_ms + 1):
            self._await(item)
        self.now_ms = max(self.now_ms, until_ms)
        while self._later and self._later[0][0] <= until_ms:
            event = heapq.heappop(self._later)[2]
            self.player.play(event)
            if isinstance(event, Item) and self.panel and event.time_ms >= self.measured_ms:
                self._try_out(event)

    def _try_out(self, item: Item) -> None:
        at_ms = item.time_ms + 1
        for number in range(self.panel):
            shown = _alone(item, f"panel-{item.item_id}-{number}", at_ms)
            self.player.play(shown)
            for event in self.world.react(shown.user_id, [item.item_id], shown.request_id, at_ms):
                self._await(event)

    def _await(self, event: Event) -> None:
        self._numbers += 1
        heapq.heappush(self._later, (event.time_ms, self._numbers, event))


def past_of(world: World, people: int) -> Past:
    """Counters of a first catalogue whose items were each shown to ``people`` outsiders.

    So its items are no longer on trial, as in a feed that has run for long. Only counters contain them: the
    model has learned nothing, and no viewer has seen anything.
    """
    counters = (player := Feed(world, small(PolicyConfig())).player).item_counters
    at_ms = world.start_ms - _HOUR_MS // 6
    for index, item in enumerate(world.items(world.start_ms)):
        keys_I = player.replica.catalogue.keys[index]
        for number in range(people):
            shown = _alone(item, f"past-{item.item_id}-{number}", at_ms)
            counters.impression(shown, keys_I[None])
            for event in world.react(shown.user_id, [item.item_id], shown.request_id, at_ms):
                counters.engagement(event, keys_I)
    return counters.counters.export()


def _alone(item: Item, request_id: str, at_ms: int) -> Impression:
    """One item shown alone to a one-time viewer; the request has the viewer's name."""
    return Impression(
        time_ms=at_ms,
        request_id=request_id,
        user_id=request_id,
        items=[ServedItem(item_id=item.item_id)],
        surface=SURFACE,
    )


def newcomers(feed: Feed, users: Sequence[str], swipes: Sequence[int]) -> NDArray[np.float64]:
    """Hit rate (users, swipes, arms) of a list of 8 after some swipes: mean P(long view) of its items, each
    at its rank. ``ARMS`` names the arms; all are asked at the same moment for the same viewer.

    Viewers swipe along the lists of the whole system. Their actions reach their session and the counters; the
    model learns nothing from them, so any gain is due to the session.
    """
    ceiling = Ceiling(feed.world, feed.now_ms)
    return np.array([_Visit(feed, ceiling, user_id).rates(swipes) for user_id in users])


class _Visit:
    """One newcomer, who swipes along the lists of the whole system."""

    def __init__(self, feed: Feed, ceiling: Ceiling, user_id: str) -> None:
        self.feed, self.ceiling, self.user_id = feed, ceiling, user_id
        self.now_ms = feed.now_ms
        self.session = feed.player.session(user_id)
        self._waiting: list[Engagement] = []
        self._happened: list[Engagement] = []
        self._ranks: dict[Id, int] = {}

    def rates(self, swipes: Sequence[int]) -> list[list[float]]:
        """Hit rate of each arm's list after the given numbers of swipes."""
        rates: dict[int, list[float]] = {}
        while True:
            swiped = len(self.session.seen)
            if swiped in swipes and swiped not in rates:
                rates[swiped] = [self._worth(items) for items in self._lists()]
            if len(rates) == len(swipes):
                return [rates[number] for number in swipes]
            self._swipe()

    def _worth(self, items: Sequence[Id]) -> float:
        world, now_ms = self.feed.world, self.now_ms
        return float(
            np.mean([world.true_long_view(self.user_id, i, now_ms, r) for r, i in enumerate(items)])
        )

    def _swipe(self) -> None:
        """Sees the next item, of a new list when the last one has ended."""
        player = self.feed.player
        if not self._waiting:
            request_id = f"{self.user_id}-{len(self.session.seen)}-{self.now_ms}"
            ids = self._ask(
                self.session, player.policies.resolve(self.user_id), request_id, fold=True
            )
            self._ranks |= {item_id: rank for rank, item_id in enumerate(ids)}
            self._waiting = self.feed.world.react(self.user_id, ids, request_id, self.now_ms)
        while self._waiting:
            event = self._waiting.pop(0)
            player.fold(event)
            self._happened.append(event)
            self.now_ms = max(self.now_ms, event.time_ms)
            if event.kind == "view":
                break

    def _lists(self) -> list[list[Id]]:
        """Current list of each arm. All know the seen and hidden items, and repeat none."""
        player, session, user_id = self.feed.player, self.session, self.user_id
        player.sync_popularity()
        policy = player.policies.resolve(user_id)
        bare = Session(user_id, player.features, self.feed.config.sessions.seen)
        bare.profile = session.profile
        bare.seen.extend(session.seen)
        bare.hidden.extend(session.hidden)
        request_id = f"asked-{user_id}-{len(session.seen)}"
        catalogue, seen = player.replica.catalogue, {*session.seen, *session.hidden}
        best = (i for i in player.replica.popularity.top if int(catalogue.keys[i, 0]) not in seen)
        swipes = swipes_of(self._happened, self._ranks)
        gone = {swipe.item_id for swipe in swipes}  # hidden items were seen
        return [
            self._ask(session, policy, request_id),
            self._ask(bare, policy, request_id),
            self._ask(session, replace(policy, config=greedy(policy.config)), request_id),
            self.ceiling.show(user_id, swipes, self.now_ms, gone, LIST, policy.config.per_author),
            [catalogue.ids[i] for i, _ in zip(best, range(LIST), strict=False)],
        ]

    def _ask(
        self, session: Session, policy: Policy, request_id: str, *, fold: bool = False
    ) -> list[Id]:
        player, asked = self.feed.player, Request(self.user_id, LIST)
        answer = player.pipeline.recommend(Query(asked, session, policy, self.now_ms, request_id))
        if fold:
            player.fold(answer.impression)
        return [item.item_id for item in answer.items]


def without(policy: PolicyConfig) -> PolicyConfig:
    """The policy without exploration: no quota, no uniform share."""
    return replace(policy, quota=0.0, explore=0.0)


def greedy(policy: PolicyConfig) -> PolicyConfig:
    """The policy that lists the best scores in order, without sampling."""
    return replace(without(policy), temperature=1e-4)
