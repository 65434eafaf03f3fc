"""A replay of a data set: plays every event in event time and collects the scores.

One process by default: the pure cores of every part called one after the other. docs/how-to/replay.md
describes what is scored, learned and reported.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.config.system_config import Config, JoinConfig, StepConfig
from recsys.events.event_types import Engagement, Event, Item, User
from recsys.events.field_schema import CATEGORICAL
from recsys.features.feature_set import FeatureSet
from replay.datasets.dataset import Dataset
from replay.direct_loop import DirectLoop, StepsUntil
from replay.player import Player, ScoredImpression
from replay.predictions import COLUMNS, Predictions

Progress = Callable[[Iterator[Event]], Iterator[Event]]


@dataclass(frozen=True)
class ReplayOptions:
    """Options of a replay beside scoring and learning everything."""

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
class ReplayResult:
    """Result of a replay."""

    predictions: Predictions
    contexts: Any  # (N,) text: the value of the first context field
    steps: int
    seconds: float
    counts: dict[str, int]
    digest: str


class ScoreRecorder:
    """Collects scores by impression and item, with the labels as of the end of the log.

    It keeps columns instead of impressions: three million scores take some hundred bytes each.
    """

    def __init__(self, labels: Sequence[str], context_field: str | None) -> None:
        self._places = {label: k for k, label in enumerate(labels)}
        self._context_field = context_field
        self._columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "context")}
        self._scores: list[NDArray[np.float32]] = []
        self._happened: dict[tuple[str, str], int] = {}  # a bit per label

    def scored(self, scored: ScoredImpression) -> None:
        """Adds one impression's scores, a row for each item."""
        impression, version = scored.impression, f"{scored.epoch}.{scored.step}"
        context = str(impression.context.get(self._context_field or "", ""))
        values = {
            "request_id": impression.request_id,
            "user_id": impression.user_id,
            "time_ms": impression.time_ms,
            "line": scored.line,
            "version": version,
            "context": context,
        }
        for name, value in values.items():
            self._columns[name] += [value] * len(impression.items)
        self._columns["item_id"] += [served.item_id for served in impression.items]
        self._scores.append(scored.probabilities_NL.copy())

    def happened(self, engagement: Engagement) -> None:
        """Adds an engagement; it may precede the score of its impression."""
        place = self._places.get(engagement.kind)
        if place is not None:
            key = (engagement.request_id, str(engagement.item_id))
            self._happened[key] = self._happened.get(key, 0) | (1 << place)

    def predictions(self) -> Predictions:
        """All scores as columns, in the order in which they were added."""
        columns: dict[str, Any] = {name: self._columns[name] for name in COLUMNS}
        rows = zip(columns["request_id"], columns["item_id"], strict=True)
        bits = np.array([self._happened.get((r, str(i)), 0) for r, i in rows], np.int64)
        width = len(self._places) + 1
        scores = np.concatenate(self._scores or [np.zeros((0, width), np.float32)])
        return Predictions(
            **columns | {"time_ms": np.array(columns["time_ms"], np.int64)},
            scores={label: scores[:, k] for label, k in self._places.items()},
            labels={label: (bits >> k) & 1 for label, k in self._places.items()},
        )

    def contexts(self) -> NDArray[np.str_]:
        """Value of the first context field for each row, "" when missing."""
        return np.array(self._columns["context"], np.str_)


def config_for(dataset: Dataset, options: ReplayOptions, base: Config) -> Config:
    """Configuration of a replay: the data set's window, steps on the event clock."""
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
    dataset: Dataset, options: ReplayOptions, base: Config | None = None, progress: Progress = iter
) -> ReplayResult:
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
) -> ReplayResult:
    """Plays all events of a data set and collects the result. ``digest`` is called at the end.

    With ``until_step`` it ends once that step is learned; raises ValueError when the log ends before.
    """
    started = time.monotonic()
    loop: Any = player.loop
    if options.until_step is not None:
        loop.sequencer = StepsUntil(loop.sequencer, options.until_step)
    contexts = dataset.schema.names("context", CATEGORICAL)
    recorder = ScoreRecorder(dataset.schema.labels, contexts[0] if contexts else None)
    player.on_scored = recorder.scored
    for event in progress(with_warm_up(player, dataset, options)):
        if options.until_step is not None and not isinstance(event, Item | User):
            player.advance(event.time_ms)
            if loop.sequencer.done:
                break
        if isinstance(event, Engagement):
            recorder.happened(event)
        player.play(event)
    player.flush()
    if options.until_step is not None:
        _learn_the_rest(player, options.until_step)
    counts: Counter[str] = Counter()
    for joiner in getattr(player.loop, "joiners", ()):
        counts.update(joiner.counts)
    return ReplayResult(
        recorder.predictions(),
        recorder.contexts(),
        player.replica.step,
        time.monotonic() - started,
        dict(counts),
        digest(),
    )


def _learn_the_rest(player: Player, until_step: int) -> None:
    """Learns steps due at the end of the log. Raises ValueError when ``until_step`` isn't reached."""
    loop: Any = player.loop
    player.advance(player.now_ms)
    if not loop.sequencer.done:
        raise ValueError(
            f"--until-version is {until_step}, but the log ends at step {loop.sequencer.step}; "
            "name a step up to that, or leave it out"
        )


def with_warm_up(player: Player, dataset: Dataset, options: ReplayOptions) -> Iterator[Event]:
    """The events to play; on the way, history from before the log is folded but not learned."""
    warm = not options.warm_up
    for event in dataset.events(options.from_ms, options.until_ms):
        if not warm and not isinstance(event, Item | User):
            for old in dataset.warmup():
                player.fold(old)
            warm = True
        yield event
