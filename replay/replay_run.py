"""A replay of a data set of the past: every event is played, in event time, and what was scored is gathered.

One process by default: the pure cores of every part called one after the other. What is scored, learned and
reported is described in docs/replay.md.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from recsys.config.system_config import Config, JoinConfig, StepConfig
from recsys.events.event_types import Engagement, Event, Item, User
from recsys.events.field_schema import CATEGORICAL
from recsys.features.feature_set import FeatureSet
from replay.datasets.dataset import Dataset
from replay.direct_loop import DirectLoop, StepsUntil
from replay.player import Player
from replay.predictions import Predictions
from replay.score_recorder import Recorder

Progress = Callable[[Iterator[Event]], Iterator[Event]]


@dataclass(frozen=True)
class ReplayOptions:
    """What a replay does beside scoring and learning everything."""

    features: str = "all"
    frozen_after_ms: int | None = None
    sync_every_ms: int = 0
    from_ms: int | None = None
    until_ms: int | None = None
    warm_up: bool = True
    step_examples: int = 64
    step_every_s: float = 600.0  # event time: a data set is sparser than live traffic
    through_broker: str = ""  # "", or the log to use: sqlite or kafka
    until_step: int | None = None  # the last step that is learned; the replay ends with it


@dataclass(frozen=True)
class Replayed:
    """What came out of a replay."""

    predictions: Predictions
    contexts: Any  # (N,) text: the value of the first context field
    steps: int
    seconds: float
    counts: dict[str, int]
    digest: str


def config_for(dataset: Dataset, options: ReplayOptions, base: Config) -> Config:
    """The configuration of a replay: the data set's window, steps on the event clock."""
    return replace(
        base,
        join=JoinConfig(window_s=dataset.window_s, horizon_s=86_400.0, all_shown=dataset.all_shown),
        step=StepConfig(
            examples=options.step_examples,
            every_ms=int(options.step_every_s * 1000),
            lanes=base.step.lanes,
        ),
        model=replace(base.model, features=options.features),
    )


def replay_data(
    dataset: Dataset,
    options: ReplayOptions,
    base: Config | None = None,
    progress: Progress = iter,
) -> Replayed:
    """Replays a data set in this process. ``progress`` wraps the events."""
    config = config_for(dataset, options, base or Config())
    features = FeatureSet(dataset.schema, options.features, config.sessions.history)
    loop = DirectLoop(features, config, options.frozen_after_ms)
    player = Player(features, config, loop, sync_every_ms=options.sync_every_ms)
    return replay_with(player, dataset, options, progress, loop.digest)


def replay_with(
    player: Player,
    dataset: Dataset,
    options: ReplayOptions,
    progress: Progress,
    digest: Callable[[], str],
) -> Replayed:
    """Plays all events of a data set and gathers what came out. ``digest`` is asked at the end.

    With ``until_step`` it ends when that step has been learned; raises ValueError where the log ends before.
    """
    started = time.monotonic()
    loop: Any = player.loop
    if options.until_step is not None:
        loop.sequencer = StepsUntil(loop.sequencer, options.until_step)
    contexts = dataset.schema.names("context", CATEGORICAL)
    recorder = Recorder(dataset.schema.labels, contexts[0] if contexts else None)
    player.on_scored = recorder.scored
    for event in progress(with_warm_up(player, dataset, options)):
        if options.until_step is not None and not isinstance(event, Item | User):
            player.advance(event.time_ms)
            if loop.sequencer.done:
                break
        if isinstance(event, Engagement):
            recorder.happened(event)
        player.play(event)
    player.finish()
    if options.until_step is not None:
        _learn_the_rest(player, options.until_step)
    counts: dict[str, int] = {}
    for joiner in getattr(player.loop, "joiners", ()):
        for name, count in joiner.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Replayed(
        recorder.predictions(),
        recorder.contexts(),
        player.replica.step,
        time.monotonic() - started,
        counts,
        digest(),
    )


def _learn_the_rest(player: Player, until_step: int) -> None:
    """Learns what is due when the events end. Raises ValueError where the step asked for isn't reached."""
    loop: Any = player.loop
    player.advance(player.now_ms)
    if not loop.sequencer.done:
        raise ValueError(
            f"--until-version is {until_step}, but the log ends at step {loop.sequencer.step}; "
            "name a step up to that, or leave it out"
        )


def with_warm_up(player: Player, dataset: Dataset, options: ReplayOptions) -> Iterator[Event]:
    """The events to play; what is from before the log is folded, and not learned from, on the way."""
    warm = not options.warm_up
    for event in dataset.events(options.from_ms, options.until_ms):
        if not warm and not isinstance(event, Item | User):
            for old in dataset.warmup():
                player.fold(old)
            warm = True
        yield event
