"""Common input of all arms of the study: the rows of a log with their features, built once, and the steps.

On a log of the past no feature depends on weights. So the log is played once without learning, and its rows
and steps are kept in the order in which a trainer and a replica would have met them. Arms then differ by
their weights alone.

Legend: N rows (one shown item each), L outputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Impression
from recsys.events.records import Example
from recsys.features.feature_set import FeatureSet, RequestFeatures
from replay.datasets.dataset import Dataset
from replay.direct_loop import Joiners
from replay.player import Player, ScoredImpression
from replay.replay_run import Progress, ReplayOptions, ScoreRecorder, config_for, with_warm_up
from training.steps.sequencer import Sequencer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ScheduledStep:
    """A step, learned once the first ``rows`` rows have been scored. ``places``: rows of its examples."""

    time_ms: int
    rows: int
    examples: list[Example]
    places: Ints


@dataclass(frozen=True)
class Night:
    """A nightly job: its begin and end, its number of steps, the number of steps learned when it is ready,
    and its requests for the lists of the next day, with features as of its begin and their rows (N,)."""

    cut_ms: int
    ready_ms: int
    steps: int
    ready_steps: int
    requests: list[RequestFeatures]
    rows: Ints


@dataclass(frozen=True)
class Stream:
    """A log as the arms see it. ``requests`` in order with their first rows; steps; nights."""

    features: FeatureSet
    config: Config
    requests: list[RequestFeatures]
    starts: Ints  # first row of each request, then the number of rows
    cuts: list[ScheduledStep]
    nights: list[Night]
    time_ms: Ints
    labels: Ints  # the first label
    users: NDArray[np.str_]


class CutLoop:
    """Loop behind a log without a learner: examples are joined and cut into steps."""

    def __init__(self, features: FeatureSet, config: Config) -> None:
        partitions = config.log.partitions
        self.joiners = Joiners(partitions, features.schema, config.join)
        self.cuts: list[tuple[int, list[Example]]] = []
        self._sequencer = Sequencer(config.step, line="main", epoch=0, digest="")
        self._examples: list[dict[int, Example]] = [{} for _ in range(partitions)]
        self._ends = [0] * partitions

    def advance(self, now_ms: int) -> list[StepDelta]:
        while (step := self._sequencer.cut(now_ms)) is not None:
            examples = [
                self._examples[cut.partition].pop(offset)
                for cut in step.ranges
                for offset in range(cut.start, cut.stop)
            ]
            self.cuts.append((step.time_ms, examples))
        return []

    def append(self, event: Event) -> None:
        for example in self.joiners.feed(event):
            assert isinstance(example, Example), "nobody asks to be forgotten in a log of the past"
            partition = example.partition
            end = self._ends[partition]
            self._examples[partition][end] = example
            self._ends[partition] = end + 1
            self._sequencer.arrived(partition, end, example.closed_ms, event.time_ms)


@dataclass
class Watch(Player):
    """Player that keeps features and steps, and scores nothing."""

    nights: Sequence[tuple[int, int]] = ()
    ahead: Sequence[Impression] = ()  # all future impressions, for the nightly lists
    requests: list[RequestFeatures] = field(init=False, default_factory=list)
    rows: int = field(init=False, default=0)
    cuts: list[tuple[int, int, list[Example]]] = field(init=False, default_factory=list)
    begun: list[Night] = field(init=False, default_factory=list)

    def advance(self, now_ms: int) -> None:
        while len(self.begun) < len(self.nights) and now_ms >= self.nights[len(self.begun)][0]:
            self._advance(self.nights[len(self.begun)][0])
            self.begun.append(self._begin())
        self._advance(now_ms)

    def _advance(self, now_ms: int) -> None:
        self.now_ms = max(self.now_ms, now_ms)
        self.loop.advance(now_ms)
        loop = self.loop
        assert isinstance(loop, CutLoop)
        waiting = sum(len(features.items_NI) for features, _ in self._waiting)
        for time_ms, examples in loop.cuts:
            self.cuts.append((time_ms, self.rows + waiting, examples))
        loop.cuts.clear()

    def flush(self) -> None:
        outputs = len(self.features.schema.labels) + 1
        for features, impression in self._waiting:
            nothing = np.zeros((len(features.items_NI), outputs), np.float32)
            self.on_scored(ScoredImpression(impression, nothing, "", 0, 0))
            self.requests.append(features)
            self.rows += len(features.items_NI)
        self._waiting.clear()

    def _begin(self) -> Night:
        """Features at night of all requests of the next day, for items that are published already."""
        number = len(self.begun)
        cut_ms, ready_ms = self.nights[number]
        until_ms = self.nights[number + 1][1] if number + 1 < len(self.nights) else None
        requests: list[RequestFeatures] = []
        rows: list[int] = []
        row = 0
        for shown in self.ahead:
            first, row = row, row + len(shown.items)
            if shown.time_ms < ready_ms or (until_ms is not None and shown.time_ms >= until_ms):
                continue
            indices = [self.replica.catalogue.index_of(served.item_id) for served in shown.items]
            published = [n for n, index in enumerate(indices) if index is not None]
            if published:
                features = self.pipeline.builder.build(
                    self.session(shown.user_id), shown.surface, shown.context,
                    np.array([indices[n] for n in published], np.int64),
                    self.replica.catalogue, self.replica.counters, cut_ms,
                )  # fmt: skip
                requests.append(features)
                rows.extend(first + n for n in published)
        return Night(cut_ms, ready_ms, len(self.cuts), 0, requests, np.array(rows, np.int64))


def watch(
    dataset: Dataset,
    options: ReplayOptions,
    base: Config,
    nights: Sequence[tuple[int, int]],
    lists: bool = True,
    progress: Progress = iter,
) -> Stream:
    """Plays a data set once. ``nights``: begin and end of each job; ``lists``: whether jobs make lists."""
    config = config_for(dataset, options, base)
    features = FeatureSet(dataset.schema, options.features, config.sessions.history)
    recorder = ScoreRecorder(dataset.schema.labels, None)
    ahead = [e for e in dataset.events() if isinstance(e, Impression)] if lists else []
    player = Watch(features, config, CutLoop(features, config), nights=nights, ahead=ahead)
    player.on_scored = recorder.scored
    for event in progress(with_warm_up(player, dataset, ReplayOptions())):
        if isinstance(event, Engagement):
            recorder.happened(event)
        player.play(event)
    player.flush()
    return _stream(player, recorder)


def _stream(player: Watch, recorder: ScoreRecorder) -> Stream:
    predictions = recorder.predictions()
    place = {
        (request, str(item)): row
        for row, (request, item) in enumerate(
            zip(predictions.request_id, predictions.item_id, strict=True)
        )
    }
    cuts = [
        ScheduledStep(
            time_ms,
            rows,
            examples,
            np.array([place[e.request_id, str(e.item_id)] for e in examples]),
        )
        for time_ms, rows, examples in player.cuts
    ]
    time_ms = np.asarray(predictions.time_ms)
    nights = [
        Night(
            n.cut_ms, n.ready_ms, n.steps, _steps_at(cuts, time_ms, n.ready_ms), n.requests, n.rows
        )
        for n in player.begun
    ]
    counts = [len(request.items_NI) for request in player.requests]
    label = next(iter(predictions.labels))
    return Stream(
        player.features,
        player.config,
        player.requests,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        cuts,
        nights,
        time_ms,
        np.asarray(predictions.labels[label]),
        np.array([str(user) for user in predictions.user_id]),
    )


def _steps_at(cuts: Iterable[ScheduledStep], time_ms: Ints, now_ms: int) -> int:
    """Number of steps learned before the first row at or after a time is scored."""
    rows = int(np.searchsorted(time_ms, now_ms))
    return sum(cut.rows <= rows for cut in cuts)
