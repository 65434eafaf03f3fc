"""A replay of a data set: plays every event in event time and collects the scores.

One process by default: the pure cores of every part called one after the other. docs/how-to/replay.md
describes what is scored, learned and reported.
"""

import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.config.system_config import Config, JoinConfig, StepConfig
from recsys.events.event_types import Engagement, Event, Impression, Item, User
from recsys.events.field_schema import CATEGORICAL
from recsys.events.hashing import Id
from recsys.process.latency_tuning import gc_seldom
from recsys.process.malloc_tuning import return_freed_memory
from replay.datasets.app_dataset import OfApp, feature_set_of
from replay.datasets.dataset import Dataset
from replay.direct_loop import DirectLoop, StepsUntil
from replay.player import Player, ScoredImpression
from replay.predictions import COLUMNS, Predictions, PredictionsFile, joined

Progress = Callable[[Iterator[Event]], Iterator[Event]]
_OF_ALL: Final = ("request_id", "user_id", "time_ms", "line", "version")  # columns of an impression
_BLOCK: Final = 65_536  # rows that are written together
_END_MS: Final = 1 << 62  # after every event


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
    judge_from_ms: int | None = None  # by default the later half of the days is judged
    k: int = 10  # length of the lists that are judged


@dataclass(frozen=True)
class ReplayResult:
    """Result of a replay."""

    predictions: Predictions
    contexts: Any  # (N,) text: the value of the first context field
    steps: int
    seconds: float
    counts: dict[str, int]
    digest: str
    retrieval: dict[str, Any] | None = None
    function_errors: dict[str, int] = field(default_factory=dict)  # by column of a function
    constant_columns: list[str] = field(default_factory=list)  # of one value in the whole log


class Probe(Protocol):
    """Measures something on the way; ``before`` gets each event before it is played."""

    def before(self, event: Event) -> None: ...
    def report(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Outputs:
    """Outputs of a replay beside its result: a file that predictions are written to as they are made, and a
    measurement."""

    predictions: Path | None = None
    probe: Callable[[Player], Probe] | None = None


NOTHING_MORE: Final = Outputs()


class ScoreRecorder:
    """Labels scores with the engagements that the joiner learns: attributed ones until ``horizon_ms`` after
    their impression (None: of the whole log). Hands them to ``write`` in blocks (None: holds them for
    ``predictions``).

    An engagement may precede the score of its impression. One without a request belongs to the newest list
    before it that showed its viewer the item.
    """

    def __init__(
        self,
        labels: Sequence[str],
        context_field: str | None,
        horizon_ms: int | None = None,
        write: Callable[[Predictions], None] | None = None,
    ) -> None:
        self._places = {label: k for k, label in enumerate(labels)}
        self._context_field, self._horizon_ms = context_field, horizon_ms
        self._blocks: list[Predictions] = []
        self._write = write or self._blocks.append
        # Values that all items share, item ids, and scores (N, L) as bytes of float32.
        self._open: deque[tuple[tuple[Any, ...], tuple[Id, ...], bytes]] = deque()
        self._happened: dict[tuple[str, str], tuple[int, int]] = {}  # a bit per label; newest time
        self._newest: dict[tuple[str, str], str] = {}  # newest request, by viewer and item
        self._shown_ms: dict[str, int] = {}  # by request
        self._interned: dict[Id, str] = {}  # texts of ids: equal ones are one object
        self._contexts: dict[str, int] = {}
        self._context_of_row = array("i")
        self._begin_block()

    def scored(self, scored: ScoredImpression) -> None:
        """Adds one impression's scores, a row for each item."""
        impression, version = scored.impression, self._text(f"{scored.epoch}.{scored.step}")
        of_all = impression.request_id, impression.user_id, impression.time_ms, scored.line, version
        items = tuple(served.item_id for served in impression.items)
        scores = np.asarray(scored.probabilities_NL, np.float32).tobytes()
        self._open.append((of_all, items, scores))
        context = str(impression.context.get(self._context_field or "", ""))
        code = self._contexts.setdefault(context, len(self._contexts))
        self._context_of_row.extend([code] * len(items))
        if self._horizon_ms is not None:
            self._close(impression.time_ms - self._horizon_ms)

    def shown(self, impression: Impression) -> None:
        """Takes a list when it is shown, which may be before it is scored."""
        request_id, viewer = impression.request_id, self._text(impression.user_id)
        self._newest.update(((viewer, self._text(i.item_id)), request_id) for i in impression.items)
        self._shown_ms.setdefault(request_id, impression.time_ms)

    def happened(self, engagement: Engagement) -> None:
        place = self._places.get(engagement.kind)
        viewer, item_id = self._text(engagement.user_id), self._text(engagement.item_id)
        request_id = engagement.request_id or self._newest.get((viewer, item_id), "")
        # Scores may come late, so the row of a list may be open after its horizon.
        age_ms = engagement.time_ms - self._shown_ms.get(request_id, engagement.time_ms)
        is_late = self._horizon_ms is not None and age_ms >= self._horizon_ms
        if place is not None and request_id and engagement.attributed and not is_late:
            key = (request_id, item_id)
            bits = self._happened.get(key, (0, 0))[0] | (1 << place)
            self._happened[key] = bits, engagement.time_ms

    def _text(self, id_: Id) -> str:
        return self._interned.setdefault(id_, str(id_))

    def finish(self) -> None:
        """Closes all rows. To be called at the end of the log."""
        self._close(None)
        self._end_block(_END_MS)
        self._interned.clear()

    def predictions(self) -> Predictions:
        """All scores as columns, in the order in which they were added. Ends the recording."""
        self.finish()
        return joined(self._blocks, list(self._places))

    def contexts(self) -> NDArray[np.str_]:
        """Value of the first context field for each row, "" when missing."""
        codes = np.array(self._context_of_row, np.int64)
        return np.array([*self._contexts, ""], np.str_)[codes]

    def _close(self, before_ms: int | None) -> None:
        """Ends the labels of earlier impressions."""
        while self._open and (before_ms is None or self._open[0][0][2] < before_ms):
            (request_id, *others), items, scores = self._open.popleft()
            for name, value in zip(_OF_ALL, (request_id, *others), strict=True):
                self._columns[name] += [value] * len(items)
            self._columns["item_id"] += items
            if items:
                self._scores.append(np.frombuffer(scores, np.float32).reshape(len(items), -1))
            keys = ((request_id, str(item)) for item in items)
            self._bits += [self._happened.get(key, (0, 0))[0] for key in keys]
            if len(self._bits) >= _BLOCK:
                self._end_block(others[1])

    def _end_block(self, before_ms: int) -> None:
        if self._bits:
            bits, all_scores = np.array(self._bits, np.int64), np.concatenate(self._scores)
            scores = {label: all_scores[:, k] for label, k in self._places.items()}
            labels = {label: (bits >> k) & 1 for label, k in self._places.items()}
            self._write(Predictions(**self._columns, scores=scores, labels=labels))
        self._happened = {k: v for k, v in self._happened.items() if v[1] >= before_ms}
        self._shown_ms = {k: v for k, v in self._shown_ms.items() if v >= before_ms}
        self._newest = {k: v for k, v in self._newest.items() if v in self._shown_ms}
        self._begin_block()

    def _begin_block(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._scores: list[NDArray[np.float32]] = []
        self._bits: list[int] = []


def config_for(dataset: Dataset, options: ReplayOptions, base: Config) -> Config:
    """Configuration of a replay: the app's, and ``on_event_clock``."""
    app = dataset.app if isinstance(dataset, OfApp) else None
    return on_event_clock(dataset, options, base if app is None else app.config(base))


def on_event_clock(dataset: Dataset, options: ReplayOptions, base: Config) -> Config:
    """A configuration with the data set's window, and with steps on the event clock."""
    return replace(
        base,
        join=JoinConfig(window_s=dataset.window_s, horizon_s=86_400.0),
        step=StepConfig(
            examples=options.step_examples,
            every_ms=int(options.step_every_s * 1000),
            lanes=base.step.lanes,
            snapshot_s=0,
        ),
        parameter_server=replace(base.parameter_server, dense_ms=0),
        model=replace(base.model, features=options.features),
    )


def replay_data(
    dataset: Dataset,
    options: ReplayOptions,
    config: Config | None = None,
    progress: Progress = iter,
    outputs: Outputs = NOTHING_MORE,
) -> ReplayResult:
    """Replays a data set in this process, by default with its ``config_for``. ``progress`` wraps events."""
    config = config or config_for(dataset, options, Config())
    features = feature_set_of(dataset, config)
    loop = DirectLoop(features, config, options.frozen_after_ms)
    player = Player(features, config, loop, options.sync_every_ms)
    return replay_with(player, dataset, options, progress, loop.digest, outputs)


def replay_with(
    player: Player, dataset: Dataset, options: ReplayOptions, progress: Progress,
    digest: Callable[[], str], outputs: Outputs = NOTHING_MORE,
) -> ReplayResult:  # fmt: skip
    """Plays all events of a data set and collects the result. ``digest`` is called at the end.

    With ``until_step`` it ends once that step is learned; raises ValueError when the log ends before.
    """
    started = time.monotonic()
    loop: Any = player.loop
    if options.until_step is not None:
        loop.sequencer = StepsUntil(loop.sequencer, options.until_step)
    contexts = dataset.schema.names("context", CATEGORICAL)
    labels, join, probe = dataset.schema.labels, player.config.join, None
    with gc_seldom(), ExitStack() as stack:
        file = None
        if outputs.predictions is not None:
            file = PredictionsFile(outputs.predictions, labels)
            stack.callback(file.close)
        context, write = contexts[0] if contexts else None, None if file is None else file.write
        horizon_ms = int((join.window_s + join.horizon_s) * 1000)
        recorder = ScoreRecorder(labels, context, horizon_ms, write)
        player.on_scored = recorder.scored
        if outputs.probe is not None:
            probe = outputs.probe(player)
        for event in with_warm_up(player, dataset, options, progress):
            if options.until_step is not None and not isinstance(event, Item | User):
                player.advance(event.time_ms)
                if loop.sequencer.done:
                    break
            if probe is not None:
                probe.before(event)
            for played in player.as_lists(event):
                if isinstance(played, Impression):
                    recorder.shown(played)
                elif isinstance(played, Engagement):
                    recorder.happened(played)
                player.play(played)
        player.fold_moment()
        player.flush()
        if options.until_step is not None:
            _learn_the_rest(player, options.until_step)
        recorder.finish()
        predictions = recorder.predictions() if file is None else file.finish()
    counts: Counter[str] = Counter()
    for joiner in getattr(player.loop, "joiners", ()):
        counts.update(joiner.counts)
    return ReplayResult(
        predictions, recorder.contexts(), player.replica.step, time.monotonic() - started, dict(counts),
        digest(), None if probe is None else probe.report(),
        dict(player.pipeline.builder.derivation.errors), player.constant.names,
    )  # fmt: skip


def _learn_the_rest(player: Player, until_step: int) -> None:
    """Learns steps due at the end of the log. Raises ValueError when ``until_step`` isn't reached."""
    loop: Any = player.loop
    player.advance(player.now_ms)
    if not loop.sequencer.done:
        raise ValueError(
            f"--until-version is {until_step}, but the log ends at step {loop.sequencer.step}; "
            "name a step up to that, or leave it out"
        )


def with_warm_up(
    player: Player, dataset: Dataset, options: ReplayOptions, progress: Progress = iter
) -> Iterator[Event]:
    """The events to play. On the way, the items from before them are applied, many together, and history is
    folded but not learned."""
    events, items = dataset.events(options.from_ms, options.until_ms), list[Item]()
    for event in events:
        if isinstance(event, Item):
            items.append(event)
            continue
        player.publish(items)
        items.clear()
        if not isinstance(event, User):
            if options.warm_up:
                _fold_past(player, dataset.warmup(), progress)
            return_freed_memory()
            yield from progress(chain([event], events))
            return
        yield event
    player.publish(items)


def _fold_past(player: Player, past: Iterable[Event], progress: Progress) -> None:
    fold, viewers = getattr(past, "fold_into", None), getattr(past, "viewers", None)
    if fold is None or not fold(player):
        for old in progress(iter(past)):
            player.fold(old, viewers)
