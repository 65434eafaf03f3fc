"""The whole loop in one process, with people and attackers who watch its own lists.

A list is answered as by a replica, watched in the simulated world, and its engagements are counted, joined
and learned at their time. Everything after the doors is the live system's; attackers hold real tokens, so
their engagements are attributed.
"""

# U people, C candidates of each

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.answering_player import AnsweringPlayer
from benchmarks.studies.poisoning.attackers import AttackedWorld
from plugins.quarantine.cohorts import Accounts
from recsys.config.log_config import LogConfig
from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import Config, JoinConfig, ModelConfig, StepConfig
from recsys.events.event_types import Engagement, Event, Impression, Verdict
from recsys.events.hashing import uniform
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.model.prediction_metrics import auc
from replay.direct_loop import DirectLoop
from serving.request import Request
from serving.scorers.probabilities import probabilities

HOUR_MS: Final = 3_600_000
_LOOK_MS: Final = 600_000  # as the sentinel part
_LIST: Final = 8
_CANDIDATES: Final = 99  # beside the target
_CHUNK: Final = 50  # people scored together


def config_of(seed: int, bounds: bool) -> Config:
    """A small model; steps of 64 examples on the event clock."""
    return replace(
        Config(),
        log=LogConfig(partitions=2),
        join=JoinConfig(window_s=120.0, horizon_s=3600.0),
        step=StepConfig(examples=64, every_ms=600_000),
        model=ModelConfig(dim=8, vector_dim=16, hidden=(32, 16), seed=seed),
        bounds=BoundsConfig(enabled=bounds),
    )


@dataclass(frozen=True)
class Probe:
    """Predictions of people's candidates at one moment. ``rank_U``: the target's, by score, from 1."""

    rank_U: NDArray[np.int64]
    auc: float
    liked: float  # mean predicted P(long view) of the target


class _Loop(DirectLoop):
    """Loop that learns nothing from what is appended while ``learns`` is off."""

    learns = True

    def append(self, event: Event) -> None:
        if self.learns:
            super().append(event)


@dataclass
class AttackedLoop:
    """``events`` collects what the log would hold. ``fixed``: lists of people in another run, by request,
    which are shown again instead of own ones; their requests are the same. ``hold_nats``: evidence with which
    the rule of the sentinel part, asked as often, holds users; 0: it isn't asked.
    ``unlearned``: nothing is learned from the attackers, as after their unlearning; they count until held."""

    world: AttackedWorld
    bounds: bool = True
    fixed: dict[str, Impression] | None = None
    hold_nats: float = 0.0
    unlearned: bool = False
    events: list[Event] = field(default_factory=list)
    lists: dict[str, Impression] = field(default_factory=dict)
    shown: int = 0  # lists of people with the target
    held: dict[str, int] = field(default_factory=dict)  # users in quarantine, since when

    def __post_init__(self) -> None:
        config = config_of(self.world.seed, self.bounds)
        self.features = FeatureSet(FEED_SCHEMA, config.model.features, config.sessions.history)
        self.loop = _Loop(self.features, config)
        self.player = AnsweringPlayer(self.features, config, self.loop)
        self._waiting: list[tuple[int, int, Engagement]] = []
        self._made = 0
        self._attacks: set[int] = set()  # waiting engagements of attackers
        self._look_ms = 0
        self._accounts = Accounts()
        for item in self.world.items(self.world.start_ms):
            self.player.play(item)
        for user in self.world.users():
            self.player.play(user)

    def run(self, from_ms: int, until_ms: int, target: str = "") -> None:
        """Plays everything in [from_ms, until_ms)."""
        self._look_ms = self._look_ms or from_ms + _LOOK_MS
        for request, attacks in self.world.all_requests(from_ms, until_ms):
            if self.hold_nats and request.time_ms >= self._look_ms:
                self._play_until(self._look_ms)
                self._hold(self._look_ms)
                self._look_ms += _LOOK_MS
            self._play_until(request.time_ms)
            name = f"{request.user_id}-{request.time_ms}"
            self.loop.learns = not (attacks and self.unlearned)
            if self.fixed is not None and not attacks and name in self.fixed:
                impression = self.fixed[name]
                self.player.play(impression)
            else:
                asked = Request(request.user_id, n=_LIST)
                impression = self.player.recommend(asked, request.time_ms).impression
            items = [served.item_id for served in impression.items]
            if not attacks:
                self.shown += target in items
                self.lists[name] = list_alone(impression)
            self._record(list_alone(impression))
            reactions = self.world.engagements(request, attacks, items, impression.request_id)
            for event in reactions:
                self._made += 1
                if attacks:
                    self._attacks.add(self._made)
                heapq.heappush(self._waiting, (event.time_ms, self._made, event))
        self._play_until(until_ms)
        self.player.advance(until_ms)
        self.player.flush()

    def probe(self, target: str, now_ms: int) -> Probe:
        """Ranks the target among the same candidates of each person in every run, and judges predictions of
        the others by outcomes drawn from the world."""
        world, catalogue = self.world, self.player.replica.catalogue
        weights = self.player.config.policy.weights
        labels = self.features.schema.labels
        weight_L = np.array([weights.get(label, 0.0) for label in [*labels, "watch"]])
        places = {f"w{i}": catalogue.index_of(f"w{i}") for i in range(world.num_items)}
        ranks, predicted, outcomes, liked = [], list[float](), list[bool](), list[float]()
        for users in _chunks(world.num_users, _CHUNK):
            lists, requests = [], []
            for user in users:
                others = sorted(places, key=lambda item, u=user: uniform(7, u, item))  # type: ignore[misc]
                lists.append([target, *(item for item in others if item != target)][: _CANDIDATES + 1])
                indices = np.array([places[item] for item in lists[-1]], np.int64)
                requests.append(
                    self.player.pipeline.builder.build(
                        self.player.session(user), "feed", {}, indices, catalogue,
                        self.player.replica.counters, now_ms,
                    )
                )  # fmt: skip
            chance_NL = probabilities(self.player.replica.model, self.player.replica.rows, requests)
            scores_N = chance_NL @ weight_L
            for number, (user, items) in enumerate(zip(users, lists, strict=True)):
                rows = slice(number * len(items), (number + 1) * len(items))
                scores, first = scores_N[rows], chance_NL[rows, 0]
                ranks.append(1 + int((scores[1:] > scores[0]).sum()))
                liked.append(float(first[0]))
                predicted += first[1:].tolist()
                outcomes += [
                    uniform(11, user, item) < world.true_long_view(user, item, now_ms) for item in items[1:]
                ]
        return Probe(np.array(ranks), auc(predicted, outcomes), float(np.mean(liked)))

    def _hold(self, now_ms: int) -> None:
        """Quarantines the cohorts with enough evidence."""
        for cohort in self._accounts.over(self.hold_nats):
            for user in cohort.users:
                self.held[user] = now_ms
                verdict = Verdict(time_ms=now_ms, user_id=user, quarantined=True)
                past = [e for e in self.events if getattr(e, "user_id", "") == user]
                self.player.item_counters.verdict(verdict, past, self.player.keys_of)
                self.loop.append(verdict)
                self._record(verdict)

    def _play_until(self, now_ms: int) -> None:
        while self._waiting and self._waiting[0][0] <= now_ms:
            _, number, event = heapq.heappop(self._waiting)
            self.loop.learns = not (self.unlearned and number in self._attacks)
            self._attacks.discard(number)
            self.player.play(event)
            self._record(event)

    def _record(self, event: Event) -> None:
        self.events.append(event)
        self._accounts.feed(event)


def list_alone(impression: Impression) -> Impression:
    """An impression as a data set would hold it: the list alone."""
    return Impression(
        time_ms=impression.time_ms, request_id=impression.request_id, user_id=impression.user_id,
        items=impression.items, context=impression.context, surface=impression.surface,
    )  # fmt: skip


def _chunks(number: int, size: int) -> Iterator[list[str]]:
    for start in range(0, number, size):
        yield [f"u{index}" for index in range(start, min(number, start + size))]
