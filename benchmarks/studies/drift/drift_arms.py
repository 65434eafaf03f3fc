"""Arms of the drift study: all score the same rows of one stream, each before it learns from them.

Arms differ in the origin of their weights; features, sessions and counters are the same, except for the
nightly lists. A nightly job trains at midnight on all days so far, and its result serves from six on.

Legend: N rows, L outputs.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.local_line import LocalLine
from benchmarks.studies.drift.merge_variants import Lead, LogitAverage, VariantChooser, losses
from benchmarks.studies.drift.refit import Batch, RefitOptions, export_at_step, refit, student_of
from benchmarks.studies.drift.scenario_stream import Night, Stream
from recsys.model.list_ranker import lists_of
from recsys.model.model import build_model
from training.continual.learner import Floats, Lane, Learner
from training.continual.row_usage import examples_per_row
from training.lines.line import spec_of
from training.merging.merge import Blend, Blends, Parent, Since, interpolate
from training.offline.distill import Distiller, with_teacher
from training.offline.vocabulary import KeyCounter

Doubles = NDArray[np.float64]
TOGETHER = 4  # steps that a nightly job learns at once
TUNED = 2  # epochs over the last day in a job that starts from the online line
_REQUESTS = 64  # nightly requests scored together
# Weights of the online parent: the other one saw the last day twice more, and nothing since midnight.
BLENDS = Blends(Blend(rare=0.5, frequent=0.9, half=20.0), dense=0.5)


class Track:
    """A prepared stream: the lane of each step, and the requests to score before it is learned."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.model = build_model(stream.features, stream.config.model)
        self.learner, self.distiller = Learner(self.model), Distiller(self.model)
        self.spec, self.dense = spec_of(stream.config), self.model.read_dense()
        self.lanes = [self.learner.prepare(cut.examples) for cut in stream.cuts]
        self.firsts = [0, *(cut.rows for cut in stream.cuts), len(stream.time_ms)]
        requests = np.searchsorted(stream.starts, self.firsts)
        self.lists = [
            lists_of(stream.requests[a:b]) if b > a else None
            for a, b in itertools.pairwise(requests)
        ]
        self._batches: dict[tuple[int, int], Batch] = {}

    @property
    def steps(self) -> int:
        return len(self.lanes)

    def fresh(self) -> LocalLine:
        """An untrained line."""
        return LocalLine(self.learner, self.spec, self.dense)

    def batches(self, first: int, stop: int) -> list[Batch]:
        """Steps batched as a nightly job learns them."""
        bounds = [first, *range(first - first % TOGETHER + TOGETHER, stop, TOGETHER), stop]
        return [self._batch(a, b) for a, b in itertools.pairwise(bounds) if b > a]

    def _batch(self, first: int, stop: int) -> Batch:
        if (first, stop) not in self._batches:
            cuts = self.stream.cuts[first:stop]
            lane = self.learner.prepare([example for cut in cuts for example in cut.examples])
            self._batches[first, stop] = Batch(cuts[-1].time_ms, lane)
        return self._batches[first, stop]


@dataclass(eq=False)
class Runner:
    """A line on a track: it scores rows, then learns. ``scores``: of the first label (N,), NaN where not
    scored; ``predicted``: its predictions for the newest step before learning it."""

    track: Track
    line: LocalLine
    scores: Floats = field(init=False)
    predicted: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full(len(self.track.stream.time_ms), np.nan, np.float32)

    def score(self, place: int) -> None:
        lists = self.track.lists[place]
        if lists is not None:
            first, stop = self.track.firsts[place : place + 2]
            self.scores[first:stop] = self.line.score(lists)[:, 0]

    def learn(self, place: int, lane: Lane | None = None) -> None:
        time_ms = self.track.stream.cuts[place].time_ms
        (self.predicted,) = self.line.learn(time_ms, [lane or self.track.lanes[place]])

    def copy(self, learner: Learner | None = None) -> "Runner":
        """Another runner that continues from the same line."""
        line = LocalLine.loaded(learner or self.line.learner, self.line.spec, self.line.export())
        return Runner(self.track, line)


class Pair:
    """Online line and a candidate answering together. Only the weights of the average are learned here."""

    def __init__(self, online: Runner, candidate: Runner) -> None:
        self.runners, self.averages = (online, candidate), LogitAverage()
        self.scores = np.full_like(online.scores, np.nan)

    @property
    def predicted(self) -> Floats:
        """Predictions for the newest step before it was learned."""
        return self.averages.average(*(r.predicted for r in self.runners)).astype(np.float32)

    def score(self, first: int, stop: int) -> None:
        """Averages rows that both have scored."""
        both = (runner.scores[first:stop] for runner in self.runners)
        self.scores[first:stop] = self.averages.average(*both)

    def weigh(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Updates the weights by labels of some rows."""
        online, candidate = self.runners
        self.averages.update(online.scores[rows], candidate.scores[rows], labels)


@dataclass
class Job:
    """Results of a nightly job: a line trained from nothing on all days, one that continued from the online
    line, and that line's starting snapshot."""

    fitted: LocalLine
    tuned: Parent
    ancestor: Parent


@dataclass
class ArmResults:
    """Scores of each arm (N,); epochs of each job; times at which a variant of ``merged`` took over; and the
    weight of the candidate in the average at the end of each day."""

    scores: Mapping[str, Floats]
    epochs: list[int]
    changes: list[tuple[int, str]]
    weights: list[float]


MERGED, ONE_LINE, TWO_LINES, STUDENT = "merged", "merged, one line", "merged, two lines", "student"
ARMS = (
    "nightly lists",
    "offline nightly",
    "online only",
    "warm start",
    MERGED,
    ONE_LINE,
    TWO_LINES,
)


class Arms:
    """All arms side by side on one track. ``student``: adds an arm that learns from the online line."""

    def __init__(self, track: Track, how: RefitOptions, student: bool = False) -> None:
        self.track, self._how = track, how
        self.student = _student(track) if student else None
        self.online = Runner(track, track.fresh())
        self.offline = Runner(track, track.fresh())
        self.warm = Runner(track, track.fresh())
        self.lines: dict[str, Runner] = {"online": self.online}
        self.pairs: dict[str, Pair] = {}
        self.choosers = {MERGED: VariantChooser("online"), ONE_LINE: VariantChooser("online")}
        rows = len(track.stream.time_ms)
        empty = np.full(rows, np.nan, np.float32)
        self.lists = empty.copy()
        self.scores = {arm: empty.copy() for arm in (MERGED, ONE_LINE, TWO_LINES)}
        self.changes: list[tuple[int, str]] = []
        self.weights: list[float] = []
        self.epochs: list[int] = []
        self._job: Job | None = None
        self._night = -1  # the newest ready one
        self._before = 0  # steps until the last midnight

    def play(self) -> ArmResults:
        """Plays the whole track."""
        nights = self.track.stream.nights
        for place in range(self.track.steps + 1):
            for number, night in enumerate(nights):
                if place == night.steps:
                    self._begin(number, night)
                if place == night.ready_steps:
                    self._ready(number, night)
            self._score(place)
            if place < self.track.steps:
                self._learn(place)
        scores = {
            "nightly lists": self._or_online(self.lists),
            "offline nightly": self._or_online(self.offline.scores),
            "online only": self.online.scores,
            "warm start": self._or_online(self.warm.scores),
            **self.scores,
        }
        if self.student is not None:
            scores[STUDENT] = self.student.scores
        self._note_weight()
        return ArmResults(scores, self.epochs, self.changes, self.weights)

    def _or_online(self, scores: Floats) -> Floats:
        """Scores of the online line before the first job is ready."""
        return np.where(np.isnan(scores), self.online.scores, scores)

    def _begin(self, number: int, night: Night) -> None:
        """Midnight: the job gets all steps so far, and a snapshot of the online line."""
        track = self.track
        fitted = refit(track.fresh(), track.batches(0, night.steps), self._how)
        self.epochs.append(fitted.epochs)
        ancestor = Parent(*self.online.line.export())
        tuned = self.online.copy().line
        for _ in range(TUNED):
            for batch in track.batches(self._before, night.steps):
                tuned.learn(batch.time_ms, [batch.lane])
        self._job = Job(fitted.line, Parent(*tuned.export()), ancestor)
        self._before = night.steps
        line = export_at_step(fitted.line.export(), night.steps)
        candidate = Runner(track, LocalLine.loaded(track.learner, track.spec, line))
        self.lines[_caught(number)] = candidate
        self.pairs[_averaged(number)] = Pair(self.online, candidate)

    def _ready(self, number: int, night: Night) -> None:
        """Six o'clock: the job's results are ready. Earlier candidates are dropped unless they serve."""
        job, track = self._job, self.track
        assert job is not None
        self._note_weight()
        self._night = number
        self._lists(number, job.fitted)
        self.offline.line = job.fitted
        self.warm.line = LocalLine.loaded(track.learner, track.spec, job.fitted.export())
        self._drop_old(number)
        caught, averaged = _caught(number), _averaged(number)
        self.lines[f"interpolated {number + 1}"] = Runner(track, self._interpolated(job, night))
        self.lines[f"distilled {number + 1}"] = self.lines[caught].copy(track.distiller)
        for arm, chooser in self.choosers.items():
            for form in (caught, *([averaged] if arm == MERGED else [])):
                chooser.add(form, self._caught_up(chooser.live, form, night))
            chooser.add(f"interpolated {number + 1}")
            chooser.add(f"distilled {number + 1}")

    def _drop_old(self, number: int) -> None:
        current = {"online", _caught(number), _averaged(number)}
        for chooser in self.choosers.values():
            current |= {
                chooser.live,
                chooser.live.replace("averaged", "catch-up"),
            }  # a pair needs both
        for forms in (self.lines, self.pairs):
            for form in [form for form in forms if form not in current]:
                del forms[form]
        for chooser in self.choosers.values():
            for form in [form for form in chooser.leads if form not in current]:
                chooser.drop(form)

    def _note_weight(self) -> None:
        """Records the candidate's weight in the average before another replaces it."""
        if self._night >= 0:
            self.weights.append(self.pairs[_averaged(self._night)].averages.weight)

    def _caught_up(self, live: str, form: str, night: Night) -> Lead:
        """Lead of a variant over the serving one, from examples since midnight."""
        lead = Lead()
        for place in range(night.steps, night.ready_steps):
            lead.add(self._better(place, live, [form])[form])
        return lead

    def _interpolated(self, job: Job, night: Night) -> LocalLine:
        online = Parent(*self.online.line.export())
        since = Since(uses=self._uses(night.steps, night.ready_steps))
        merged = interpolate(online, job.tuned, job.ancestor, BLENDS, since)
        return LocalLine.loaded(
            self.track.learner, self.track.spec, (merged.arrays, dict(merged.meta))
        )

    def _uses(
        self, first: int, stop: int
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Number of examples of some steps that used each row, by table."""
        counter = KeyCounter(table.name for table in self.track.spec.tables)
        for place in range(first, stop):
            lookup, time_ms = self.track.lanes[place].lookup, self.track.stream.cuts[place].time_ms
            for table, counts in examples_per_row(lookup).items():
                counter.add(table, lookup.keys[table], counts, time_ms)
        return {table: (rows.keys, rows.counts) for table, rows in counter.totals().items()}

    def _lists(self, number: int, line: LocalLine) -> None:
        """Scores all pairs of the coming day at once. An item published since midnight gets the mean."""
        nights, firsts = self.track.stream.nights, self.track.firsts
        night, at = nights[number], 0
        for start in range(0, len(night.requests), _REQUESTS):
            scored = line.score(lists_of(night.requests[start : start + _REQUESTS]))[:, 0]
            self.lists[night.rows[at : at + len(scored)]] = scored
            at += len(scored)
        until = firsts[nights[number + 1].ready_steps] if number + 1 < len(nights) else firsts[-1]
        own = self.lists[firsts[night.ready_steps] : until]
        own[np.isnan(own)] = np.mean(self.lists[night.rows]) if len(night.rows) else 0.5

    def _score(self, place: int) -> None:
        for runner in (*self.lines.values(), *self._others):
            runner.score(place)
        first, stop = self.track.firsts[place : place + 2]
        for pair in self.pairs.values():
            pair.score(first, stop)
        for arm, chooser in self.choosers.items():
            self.scores[arm][first:stop] = self._form(chooser.live).scores[first:stop]
        newest = _averaged(self._night) if self._night >= 0 else "online"
        self.scores[TWO_LINES][first:stop] = self._form(newest).scores[first:stop]

    def _learn(self, place: int) -> None:
        lane, distiller = self.track.lanes[place], self.track.distiller
        distilled = [r for r in self.lines.values() if r.line.learner is distiller]
        own = [runner for runner in self.lines.values() if runner not in distilled]
        for runner in (*own, *([self.warm] if self._night >= 0 else [])):
            runner.learn(place)
        for runner in distilled:
            runner.learn(place, with_teacher(lane, self.pairs[_averaged(self._night)].predicted))
        if self.student is not None:
            self.student.learn(place, with_teacher(lane, self.online.predicted))
        self._judge(place)

    @property
    def _others(self) -> list[Runner]:
        """Runners outside of the merge; two of them start with the first job."""
        begun = [self.offline, self.warm] if self._night >= 0 else []
        return [*begun, *([self.student] if self.student is not None else [])]

    def _form(self, form: str) -> Runner | Pair:
        return self.pairs[form] if form in self.pairs else self.lines[form]

    def _judge(self, place: int) -> None:
        """Compares the variants by labels of a step, and updates the averages."""
        for arm, chooser in self.choosers.items():
            before = chooser.live
            live = chooser.update(self._better(place, before, list(chooser.leads)))
            if live != before and arm == MERGED:
                self.changes.append((self.track.stream.cuts[place].time_ms, live))
        for pair in self.pairs.values():
            rows = self._rows(place, *pair.runners)
            pair.weigh(rows, self.track.stream.labels[rows])

    def _better(self, place: int, live: str, forms: list[str]) -> dict[str, float]:
        """Gain in nats of variants over the serving one on a step's examples."""
        serves, gains = self._form(live), {}
        for name in forms:
            form = self._form(name)
            rows = self._rows(place, form, serves)
            labels = self.track.stream.labels[rows]
            lost = [losses(runner.scores[rows], labels).sum() for runner in (serves, form)]
            gains[name] = float(lost[0] - lost[1])
        return gains

    def _rows(self, place: int, *forms: Runner | Pair) -> NDArray[np.int64]:
        """Rows of a step's examples that all given variants have scored."""
        rows = self.track.stream.cuts[place].places
        is_scored = [np.isfinite(form.scores[rows]) for form in forms]
        scored: NDArray[np.int64] = rows[np.all(is_scored, axis=0)]
        return scored


def _averaged(night: int) -> str:
    return f"averaged {night + 1}"


def _caught(night: int) -> str:
    return f"catch-up {night + 1}"


def _student(track: Track) -> Runner:
    config = student_of(track.stream.config)
    model = build_model(track.stream.features, config.model)
    return Runner(track, LocalLine(Distiller(model), spec_of(config), model.read_dense()))
