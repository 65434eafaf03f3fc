"""The arms of the drift study: all score the same rows of one stream, each before it learns from them.

An arm differs from another by where its weights come from; features, sessions and counters are the same, but
for the lists of the night. What a nightly job makes is trained at midnight on all days until then, and serves
from six on.

Legend: N rows, L outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys.blueprint import build_model
from recsys.cli.drift_stream import Night, Stream
from recsys.list_ranker import lists_of
from training.distill import Distiller, student_of, taught
from training.forms import Averages, Chooser, Lead, losses
from training.learner import Floats, Lane, Learner
from training.line import spec_of
from training.local_line import LocalLine
from training.merge import Blend, Blends, Parent, Since, interpolate, standing_at
from training.refit import Batch, Refit, refit
from training.worker import examples_behind

Doubles = NDArray[np.float64]
TOGETHER = 4  # steps that a nightly job learns at once
TUNED = 2  # epochs over the last day, of a job that starts from the online line
_REQUESTS = 64  # scored together, of the lists of the night
# Of the online parent: the other one saw the last day twice more, and what came since midnight not at all.
BLENDS = Blends(Blend(rare=0.5, frequent=0.9, half=20.0), dense=0.5)


class Track:
    """A stream made ready: the lane of each step, and what is scored before it is learned."""

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
            for a, b in zip(requests[:-1], requests[1:], strict=True)
        ]
        self._batches: dict[tuple[int, int], Batch] = {}

    @property
    def steps(self) -> int:
        return len(self.lanes)

    def fresh(self) -> LocalLine:
        """A line that has learned nothing."""
        return LocalLine(self.learner, self.spec, self.dense)

    def batches(self, first: int, stop: int) -> list[Batch]:
        """Some steps as a nightly job learns them."""
        bounds = [first, *range(first - first % TOGETHER + TOGETHER, stop, TOGETHER), stop]
        return [self._batch(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b > a]

    def _batch(self, first: int, stop: int) -> Batch:
        if (first, stop) not in self._batches:
            cuts = self.stream.cuts[first:stop]
            lane = self.learner.prepare([example for cut in cuts for example in cut.examples])
            self._batches[first, stop] = Batch(cuts[-1].time_ms, lane)
        return self._batches[first, stop]


@dataclass
class Runner:
    """A line on a track: it scores what is asked for, then learns. ``scores``: of the first label (N,), NaN
    where it wasn't asked; ``told``: what it said of the newest step before it learned it."""

    track: Track
    line: LocalLine
    scores: Floats = field(init=False)
    told: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full(len(self.track.stream.time_ms), np.nan, np.float32)

    def score(self, place: int) -> None:
        lists = self.track.lists[place]
        if lists is not None:
            first, stop = self.track.firsts[place : place + 2]
            self.scores[first:stop] = self.line.score(lists)[:, 0]

    def learn(self, place: int, lane: Lane | None = None) -> None:
        time_ms = self.track.stream.cuts[place].time_ms
        (self.told,) = self.line.learn(time_ms, [lane or self.track.lanes[place]])

    def copy(self, learner: Learner | None = None) -> "Runner":
        """Another runner that goes on from the same line."""
        line = LocalLine.loaded(learner or self.line.learner, self.line.spec, self.line.export())
        return Runner(self.track, line)


@dataclass
class Job:
    """What a nightly job made: a line trained from nothing on all days, and one that went on from the online
    line; and the snapshot that the latter began from."""

    night: Night
    fitted: LocalLine
    epochs: int
    tuned: Parent
    ancestor: Parent


@dataclass
class Played:
    """The scores of each arm (N,); how often each job learned, which forms took over when, and the weight of
    the candidate in the average at the end of each day."""

    scores: Mapping[str, Floats]
    epochs: list[int]
    changes: list[tuple[int, str]]
    weights: list[float]


MERGED, TWO_LINES, STUDENT = "merged", "merged, two lines", "student"
ARMS = ("nightly lists", "offline nightly", "online only", "warm start", MERGED, TWO_LINES)


class Arms:
    """All arms side by side on one track. ``student``: with one more, which learns from the online line."""

    def __init__(self, track: Track, how: Refit, student: bool = False) -> None:
        self.track, self._how = track, how
        self.student = _student(track) if student else None
        self.online = Runner(track, track.fresh())
        self.offline = Runner(track, track.fresh())
        self.warm = Runner(track, track.fresh())
        self.forms: dict[str, Runner] = {"online": self.online}
        self.chooser, self.averages, self._next = Chooser("online"), Averages(), Averages()
        rows = len(track.stream.time_ms)
        self.lists = np.full(rows, np.nan, np.float32)
        self.merged, self.two_lines = self.lists.copy(), self.lists.copy()
        self.changes: list[tuple[int, str]] = []
        self.weights: list[float] = []
        self.epochs: list[int] = []
        self._job: Job | None = None
        self._night = -1  # the newest that is there
        self._before = 0  # steps until the last midnight

    def play(self) -> Played:
        """The whole track."""
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
            MERGED: self.merged,
            TWO_LINES: self.two_lines,
        }
        if self.student is not None:
            scores[STUDENT] = self.student.scores
        self.weights.append(self.averages.weight)
        return Played(scores, self.epochs, self.changes, self.weights)

    def _or_online(self, scores: Floats) -> Floats:
        """Before the first job is there, every arm is the online line."""
        return np.where(np.isnan(scores), self.online.scores, scores)

    def _begin(self, number: int, night: Night) -> None:
        """Midnight: the job has all steps until now, and a snapshot of the online line."""
        track = self.track
        fitted = refit(track.fresh(), track.batches(0, night.steps), self._how)
        self.epochs.append(fitted.epochs)
        ancestor = Parent(*self.online.line.export())
        tuned = self.online.copy().line
        for _ in range(TUNED):
            for batch in track.batches(self._before, night.steps):
                tuned.learn(batch.time_ms, [batch.lane])
        self._job = Job(
            night, fitted.line, fitted.epochs, ancestor.child(*tuned.export()), ancestor
        )
        self._before = night.steps
        arrays, meta = standing_at(fitted.line.export(), night.steps)
        line = LocalLine.loaded(track.learner, track.spec, (arrays, meta))
        self.forms[_caught(number)] = Runner(track, line)
        self._next = Averages()

    def _ready(self, number: int, night: Night) -> None:
        """Six o'clock: what the job made is there. The candidates before it go, but for one that serves."""
        job, track = self._job, self.track
        assert job is not None and job.night is night
        if self._night >= 0:
            self.weights.append(self.averages.weight)
        self._night, self.averages = number, self._next
        self._lists(night, job.fitted)
        export = job.fitted.export()
        self.offline.line = job.fitted
        self.warm.line = LocalLine.loaded(track.learner, track.spec, export)
        caught = _caught(number)
        for form in [f for f in self.forms if f not in ("online", caught, self.chooser.live)]:
            self.chooser.drop(form)
            del self.forms[form]
        self.chooser.add(caught, self._caught_up(caught, night))
        self._add(f"interpolated {number + 1}", Runner(track, self._interpolated(job)))
        self._add(f"distilled {number + 1}", self.forms[caught].copy(track.distiller))

    def _add(self, form: str, runner: Runner) -> None:
        self.forms[form] = runner
        self.chooser.add(form)

    def _caught_up(self, form: str, night: Night) -> Lead:
        """The lead of a catch-up on what serves, from what came since midnight."""
        lead = Lead()
        for place in range(night.steps, night.ready_steps):
            lead.add(self._better(place)[form])
        return lead

    def _interpolated(self, job: Job) -> LocalLine:
        online = job.ancestor.child(*self.online.line.export())
        since = Since(uses=self._uses(job.night.steps, job.night.ready_steps))
        merged = interpolate(online, job.tuned, job.ancestor, BLENDS, since)
        return LocalLine.loaded(
            self.track.learner, self.track.spec, (merged.arrays, dict(merged.meta))
        )

    def _uses(
        self, first: int, stop: int
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """How many examples of some steps used each row, by table."""
        found: dict[str, dict[int, int]] = {}
        for lane in self.track.lanes[first:stop]:
            for table, counts in examples_behind(lane.lookup).items():
                own = found.setdefault(table, {})
                for key, count in zip(
                    lane.lookup.keys[table].tolist(), counts.tolist(), strict=True
                ):
                    own[key] = own.get(key, 0) + count
        return {
            table: (np.array(list(own), np.int64), np.array(list(own.values()), np.int64))
            for table, own in found.items()
        }

    def _lists(self, night: Night, line: LocalLine) -> None:
        """Scores all pairs of the day to come at once. An item published since midnight gets the mean."""
        first = self.track.firsts[night.ready_steps]
        for start in range(0, len(night.requests), _REQUESTS):
            some = night.requests[start : start + _REQUESTS]
            at = sum(len(r.items_NI) for r in night.requests[:start])
            scored = line.score(lists_of(some))[:, 0]
            self.lists[night.rows[at : at + len(scored)]] = scored
        own = self.lists[first:]
        own[np.isnan(own)] = np.nanmean(self.lists[night.rows]) if len(night.rows) else 0.5

    def _score(self, place: int) -> None:
        there = (self.offline, self.warm) if self._night >= 0 else ()
        for runner in (*self.forms.values(), *there):
            runner.score(place)
        if self.student is not None:
            self.student.score(place)
        first, stop = self.track.firsts[place : place + 2]
        self.merged[first:stop] = self.forms[self.chooser.live].scores[first:stop]
        self.two_lines[first:stop] = self.online.scores[first:stop]
        if self._night >= 0:
            caught = self.forms[_caught(self._night)]
            self.two_lines[first:stop] = self.averages.average(
                self.online.scores[first:stop], caught.scores[first:stop]
            )

    def _learn(self, place: int) -> None:
        lane, distiller = self.track.lanes[place], self.track.distiller
        own = [r for r in self.forms.values() if r.line.learner is not distiller]
        for runner in (*own, *([self.warm] if self._night >= 0 else [])):
            runner.learn(place)
        for runner in self.forms.values():
            if runner.line.learner is distiller:
                told = self.online.told, self.forms[_caught(self._night)].told
                average = self.averages.average(*told).astype(np.float32)
                runner.learn(place, taught(lane, average))
        if self.student is not None:
            self.student.learn(place, taught(lane, self.online.told))
        self._judge(place)

    def _judge(self, place: int) -> None:
        """Labels of a step have come: which form was better, and by which weights."""
        if self._night >= 0:
            before, better = self.chooser.live, self._better(place)
            live = self.chooser.update({form: better[form] for form in self.chooser.leads})
            if live != before:
                self.changes.append((self.track.stream.cuts[place].time_ms, live))
            self._weigh(self.averages, place, self._night)
        if _caught(self._night + 1) in self.forms:
            self._weigh(self._next, place, self._night + 1)

    def _weigh(self, averages: Averages, place: int, night: int) -> None:
        candidate = self.forms[_caught(night)]
        rows = self._rows(place, candidate)
        labels = self.track.stream.labels[rows]
        averages.update(self.online.scores[rows], candidate.scores[rows], labels)

    def _better(self, place: int) -> dict[str, float]:
        """By how many nats each form was better on a step's examples than the one that serves."""
        live = self.forms[self.chooser.live]
        found = {}
        for form, runner in self.forms.items():
            rows = self._rows(place, runner, live)
            labels = self.track.stream.labels[rows]
            lost = [losses(r.scores[rows], labels).sum() for r in (live, runner)]
            found[form] = float(lost[0] - lost[1])
        return found

    def _rows(self, place: int, *runners: Runner) -> NDArray[np.int64]:
        """The rows of a step's examples that some runners have scored."""
        rows = self.track.stream.cuts[place].places
        there = [np.isfinite(runner.scores[rows]) for runner in runners]
        found: NDArray[np.int64] = rows[np.all(there, axis=0)]
        return found


def _caught(night: int) -> str:
    return f"catch-up {night + 1}"


def _student(track: Track) -> Runner:
    config = student_of(track.stream.config)
    model = build_model(track.stream.features, config.model)
    return Runner(track, LocalLine(Distiller(model), spec_of(config), model.read_dense()))
