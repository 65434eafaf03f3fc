"""The whole loop in one process, with viewers of a story who watch its own lists.

A list is answered as by a replica, watched in the story's world, and its engagements are counted, joined and
learned at their time. The loop can react to drift: alarms of the director's monitors raise the learning rate
of its steps, and it can rehearse old examples.
"""

# P pairs of a probe, L outputs

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.answering_player import AnsweringPlayer
from benchmarks.studies.drift.rehearsal import ForgettingConfig
from benchmarks.studies.drift.study_forgetting import RehearsedLoop
from benchmarks.studies.drift.world_scenarios import (
    ABA,
    DEEPEST,
    Bots,
    Meaning,
    SaleDay,
    ScenarioWorld,
    Viral,
)
from examples.short_video.world import Request as Visit
from parameter_server.publish.deltas import StepDelta
from recsys.config.log_config import LogConfig
from recsys.config.part_configs import DriftConfig
from recsys.config.system_config import Config, JoinConfig, ModelConfig, StepConfig
from recsys.events.control_records import Alarm
from recsys.events.event_types import Event
from recsys.events.hashing import key_of, uniform
from recsys.events.records import DELTAS, Delta, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.protocol import Append
from recsys.model.prediction_metrics import auc
from serving.ranking.scoring import probabilities
from serving.request import Request
from training.drift.monitors import LOSS
from training.drift.reaction import ReactionPolicy
from training.drift.watch import DriftWatch
from training.steps.sequencer import Sequencer

DAY_MS: Final = 8_100_000
SAME_DAYS: Final = 2.0  # until then all stories are one
_LIST: Final = 8
_PROBE_MS: Final = 600_000
_PEOPLE, _ITEMS, _PUBLISHED = 150, 300, 48  # items a day
_PROBED, _EACH = 40, 25  # people of a probe, and items of each
_NETWORKS: Final = 50
_LEAST_MS: Final = 600_000  # of a judged span
PLAIN, REACTS, REHEARSES = "plain", "reacts", "rehearses"
# Rates of arms that react when the world changes, and not to alarms.
ORACLES: Final = {"oracle": 3.0, "oracle, mild": 1.5}


class ViralDay(Viral):
    """On the third day everybody likes one author; nobody is forced to see it."""

    def shown_too(self, time_ms: int) -> str | None:
        if int(self.day(time_ms)) != 2:
            return None
        return self.author(f"w{self._pick(self.num_items, 'viral')}")


class ShortB(ABA):
    """A, an hour of B, and A again."""

    b_days = 0.45


@dataclass(frozen=True)
class Story:
    """A world and the days at which it changes."""

    world: type[ScenarioWorld]
    changes: tuple[float, ...]
    until: float = 2.55


_RETURN: Final = 2 + DEEPEST + ShortB.b_days
STORIES: Final = {
    "none": Story(ScenarioWorld, (2.0,)),  # a gain here isn't one of reacting
    "sale_day": Story(SaleDay, (2.0,)),
    "meaning": Story(Meaning, (2 + DEEPEST,), 2.55 + DEEPEST),
    "viral": Story(ViralDay, (2.0,)),
    "bots": Story(Bots, (2.0,)),
    "a_b_a": Story(ShortB, (2 + DEEPEST, _RETURN), _RETURN + 0.55),
}


def world_of(story: Story, seed: int, requests_per_s: float) -> ScenarioWorld:
    world = story.world(
        seed, _PEOPLE, _ITEMS, day_ms=DAY_MS, requests_per_s=requests_per_s,
        publish_every_s=DAY_MS / 1000 / _PUBLISHED,
    )  # fmt: skip
    world.night = 0.0
    return world


def config_of(seed: int, step_examples: int) -> Config:
    """A small model; steps on the event clock, of 128 examples one in about three minutes."""
    return replace(
        Config(),
        log=LogConfig(partitions=2),
        join=JoinConfig(window_s=120.0, horizon_s=3600.0),
        step=StepConfig(examples=step_examples, every_ms=600_000),
        model=ModelConfig(dim=8, vector_dim=16, hidden=(32, 16), seed=seed),
    )


class ReactingLoop(RehearsedLoop):
    """Loop that watches itself as the director does. ``reacts``: whether alarms act on its steps;
    ``hears``: whether those of its own monitors do."""

    reacts, hears = False, True

    def __init__(self, features: FeatureSet, config: Config, cohort_ms: int) -> None:
        forgetting = ForgettingConfig(window_ms=cohort_ms, examples=256)
        super().__init__(features, config, forgetting, False)
        self.drift = DriftWatch(self.log, config, features)
        self.policy = ReactionPolicy(DriftConfig())
        self.found: list[tuple[int, str, str]] = []  # alarms
        self.rates: list[float] = []  # of the steps
        self._pending: list[Alarm] = []
        self._published: list[Delta] = []

    def tell(self, now_ms: int) -> None:
        """An alarm by one who knows that the world has changed."""
        numbers = {"expected": 0.0, "found": 0.0, "scale": 1.0}
        self._pending.append(
            Alarm(kind=LOSS, what="oracle", at_ms=now_ms, step=0, detector="oracle", **numbers)
        )

    def advance(self, now_ms: int) -> list[StepDelta]:
        deltas = super().advance(now_ms)
        records = [r for r in self.drift.turn(now_ms) if isinstance(r, Alarm)] if deltas else []
        self.found += [(r.at_ms, r.kind, r.what) for r in records]
        if not self.reacts:
            return deltas
        self._pending += records if self.hears else []
        for delta in deltas:
            self.policy.step(self._pending, delta.metrics.get("examples", 0.0), delta.time_ms)
            self._pending = []
            self.rates.append(self.policy.reaction.rate)
        assert isinstance(self.sequencer, Sequencer)
        self.sequencer.rate = self.policy.reaction.rate
        self.sequencer.gathered = self.policy.reaction.publish_every
        return deltas

    def _assembled(self) -> list[StepDelta]:
        self.log.append(DELTAS, [Append(0, b"main", pack(delta)) for delta in self._deltas])
        self.log.trim(DELTAS, 0, max(0, self.log.end(DELTAS, 0) - 64))
        return super()._assembled()


@dataclass(frozen=True)
class Probe:
    """Predictions of long views by people who are judged, for random items, at one moment. ``log_loss`` is
    the expected one, by the world's true probabilities."""

    time_ms: int
    auc: float
    log_loss: float


@dataclass(frozen=True)
class Watched:
    """A list of one who is judged, as it was watched. ``utility``: engagements by the policy's weights."""

    time_ms: int
    watch_s: float
    utility: float


@dataclass
class StoryLoop:
    """Viewers of a story, and what came of their lists. ``probe_from_ms``: time of the first probe;
    ``cohort_ms``: window of the panels by which rehearsal is controlled."""

    world: ScenarioWorld
    probe_from_ms: int = 0
    step_examples: int = 128
    cohort_ms: int = DAY_MS // 4
    probes: list[Probe] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = config_of(self.world.seed, self.step_examples)
        self.features = FeatureSet(FEED_SCHEMA, config.model.features, config.sessions.history)
        self.loop = ReactingLoop(self.features, config, self.cohort_ms)
        self.player = AnsweringPlayer(self.features, config, self.loop)
        self._waiting: list[tuple[int, int, Event]] = []
        self._made = 0
        first: list[Event] = [*self.world.items(self.world.start_ms), *self.world.users()]
        for event in first:
            self.player.play(event)

    def begin(self, arm: str) -> None:
        """Goes on as an arm of the study."""
        self.loop.reacts = arm == REACTS or arm in ORACLES
        self.loop.hears = arm not in ORACLES
        self.loop.policy = ReactionPolicy(DriftConfig(most_rate=ORACLES.get(arm, 3.0)))
        self.loop.rehearses = arm == REHEARSES

    def tell(self, arm: str, now_ms: int) -> None:
        """Tells an oracle's arm of a change."""
        if arm in ORACLES:
            self.loop.tell(now_ms)

    def run(self, from_ms: int, until_ms: int) -> None:
        """Plays everything in [from_ms, until_ms), with probes every ten minutes."""
        for item in self.world.new_items(from_ms, until_ms):
            self._wait(item)
        for visit in self.world.next_requests(from_ms, until_ms):
            self._play_until(visit.time_ms)
            self._answer(visit)
        self._play_until(until_ms)
        self.player.advance(until_ms)

    def _answer(self, visit: Visit) -> None:
        self._probe(visit.time_ms)
        asked = Request(visit.user_id, n=_LIST)
        shown = self.player.recommend(asked, visit.time_ms).impression
        items = [served.item_id for served in shown.items]
        # The draws of a reaction are by the number of the list, which is the same in all arms.
        reactions = self.world.react(visit.user_id, items, shown.request_id, visit.time_ms)
        source = key_of("network", int(uniform(1, visit.user_id) * _NETWORKS)) & 0xFFFFFFFF
        for event in reactions:
            self._wait(msgspec.structs.replace(event, source=source))
        if self.world.is_judged(visit.user_id):
            watch_s = sum(e.watch_ms or 0 for e in reactions if e.kind == "view") / 1000
            weights = self.player.config.policy.weights
            utility = weights["watch"] * watch_s / 60
            utility += sum(weights.get(e.kind, 0.0) for e in reactions)
            self.watched.append(Watched(visit.time_ms, watch_s, utility))

    def _probe(self, now_ms: int) -> None:
        last_ms = self.probes[-1].time_ms if self.probes else self.world.start_ms
        if now_ms < self.probe_from_ms or now_ms // _PROBE_MS == last_ms // _PROBE_MS:
            return
        world, catalogue = self.world, self.player.replica.catalogue
        requests, truth, happened = [], list[float](), list[bool]()
        for number in range(_PROBED):
            user = f"u{int(uniform(2, 'probed', number) * world.num_users)}"
            drawn = (int(uniform(2, user, now_ms, n) * world.num_items) for n in range(_EACH))
            items = [f"w{index}" for index in dict.fromkeys(drawn)]
            indices = np.array([catalogue.index_of(item) for item in items], np.int64)
            requests.append(
                self.player.pipeline.builder.build(
                    self.player.session(user), "feed", {}, indices, catalogue,
                    self.player.replica.counters, now_ms,
                )
            )  # fmt: skip
            chances = [world.true_long_view(user, item, now_ms) for item in items]
            truth += chances
            happened += [
                uniform(11, user, item, now_ms) < chance
                for item, chance in zip(items, chances, strict=True)
            ]
        model, rows = self.player.replica.model, self.player.replica.rows
        predicted_P = probabilities(model, rows, requests)[:, 0].astype(np.float64)
        loss = _expected_loss(predicted_P, np.array(truth))
        self.probes.append(Probe(now_ms, auc(predicted_P, np.array(happened)), loss))

    def _wait(self, event: Event) -> None:
        self._made += 1
        heapq.heappush(self._waiting, (event.time_ms, self._made, event))

    def _play_until(self, now_ms: int) -> None:
        while self._waiting and self._waiting[0][0] <= now_ms:
            self.player.play(heapq.heappop(self._waiting)[2])


def _expected_loss(predicted_P: NDArray[np.float64], truth_P: NDArray[np.float64]) -> float:
    predicted_P = np.clip(predicted_P, 1e-7, 1 - 1e-7)
    loss_P = -truth_P * np.log(predicted_P) - (1 - truth_P) * np.log1p(-predicted_P)
    return float(loss_P.mean())


def spans(story: Story, start_ms: int) -> Iterator[tuple[str, int, int]]:
    """Judged spans: the first hour after each change, and the rest until the next change or the end."""
    ends = [*story.changes[1:], story.until]
    for number, (change, end) in enumerate(zip(story.changes, ends, strict=True), 1):
        from_ms, until_ms = start_ms + round(change * DAY_MS), start_ms + round(end * DAY_MS)
        hour_ms = min(until_ms, from_ms + 3_600_000)
        name = "" if len(story.changes) == 1 else f" {number}"
        yield f"hour{name}", from_ms, hour_ms
        if until_ms - hour_ms > _LEAST_MS:
            yield f"rest{name}", hour_ms, until_ms


def figures(loop: StoryLoop, story: Story) -> dict[str, dict[str, float]]:
    """Means over the probes and lists of each span."""
    done = {}
    for name, from_ms, until_ms in spans(story, loop.world.start_ms):
        probes = [p for p in loop.probes if from_ms <= p.time_ms < until_ms]
        lists = [w for w in loop.watched if from_ms <= w.time_ms < until_ms]
        done[name] = {
            "auc": float(np.mean([p.auc for p in probes])),
            "log_loss": float(np.mean([p.log_loss for p in probes])),
            "watch_s": float(np.mean([w.watch_s for w in lists])),
            "utility": float(np.mean([w.utility for w in lists])),
        }
    return done
