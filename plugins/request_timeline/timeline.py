"""The timeline of one request, read from the log: its engagements, examples, steps, deltas and first answer.

It needs no tracing. Events carry the sender's time, derived records event time; SQLite's log also keeps
append times, and those order the moments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from plugins.answer_explanation.reconstructed_session import find_impression
from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Engagement, Impression, Rejected, Stamp, decode
from recsys.events.hashing import Id
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Example, Step, unpack
from recsys.log.protocol import Log, Record, newest_first, read_range
from recsys.process.log_consumer import UNREADABLE
from training.lines.line import MAIN
from training.lines.offset_lookup import first_at, served_ms_of

_READ: Final = 500
_MARGIN_MS: Final = 60_000  # for records out of order
_MAX_ANSWERS: Final = 200_000  # records scanned in a partition for the first answer of a step
_STEPS_PER_EPOCH: Final = 1 << 40  # an upper bound


@dataclass(frozen=True)
class Moment:
    """One record of a timeline. ``at_ms``: append time, or ``event_ms`` where the log has none; ``event_ms``:
    the record's own time."""

    what: str
    at_ms: int
    event_ms: int
    place: tuple[str, int, int]  # topic, partition, offset
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class RequestTimeline:
    """Moments in order; ``missing`` lists absent ones with the reason."""

    request_id: str
    moments: list[Moment] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def of(self, what: str) -> list[Moment]:
        return [moment for moment in self.moments if moment.what == what]


class TimelineReader:
    """Reads timelines of requests from one log; follows the steps of the live line."""

    def __init__(self, log: Log, join: JoinConfig) -> None:
        self._log = log
        self._reach_ms = round(1000 * (join.window_s + join.horizon_s)) + _MARGIN_MS

    def life(self, request_id: str, user_id: Id | None = None) -> RequestTimeline:
        """Timeline of a request. Raises KeyError with the reason when its impression isn't on the log."""
        logged = find_impression(self._log, request_id, user_id)
        if logged is None:
            raise KeyError(
                f"no impression of request {request_id} is on {EVENTS}: the id is wrong, or retention has "
                "dropped it"
            )
        partition, offset, impression = logged
        timeline = RequestTimeline(request_id)
        timeline.moments.append(self._impression(partition, offset, impression))
        timeline.moments += self._engagements(partition, offset, impression)
        if not timeline.of("engagement"):
            timeline.missing.append("no engagement with it yet")
        self._follow(timeline, partition, impression)
        timeline.moments.sort(key=lambda moment: (moment.at_ms, moment.event_ms))
        return timeline

    def latest(self) -> str:
        """Newest request that was learned and published; without one, the newest answer. Raises KeyError when
        there is none."""
        for step in self._newest_steps():
            for cut in reversed(step.ranges):
                place = cut.partition, cut.start, cut.stop
                for record in newest_first(self._log, EXAMPLES, *place, _READ):
                    example = _read(record.value, Example)
                    if example is not None and not example.correction:
                        return example.request_id
        newest = (self._newest_answer(p) for p in range(self._log.partitions(EVENTS)))
        answers = [answer for answer in newest if answer is not None]
        if not answers:
            raise KeyError(f"no answer is on {EVENTS} yet: ask for a list first")
        return max(answers, key=lambda answer: answer.time_ms).request_id

    def _impression(self, partition: int, offset: int, impression: Impression) -> Moment:
        about: dict[str, Any] = {"items": [str(served.item_id) for served in impression.items]}
        about |= {"surface": impression.surface, "degraded": impression.degraded}
        if impression.stamp is not None:
            about |= _version(impression.stamp)
        return self._moment("impression", impression.time_ms, (EVENTS, partition, offset), about)

    def _engagements(self, partition: int, offset: int, impression: Impression) -> Iterator[Moment]:
        ranks = {str(served.item_id): rank for rank, served in enumerate(impression.items)}
        name = impression.request_id.encode()
        for record in self._until(EVENTS, partition, offset, impression.time_ms, served_ms_of):
            if name not in record.value:  # decoding takes far longer
                continue
            try:
                event = decode(record.value)
            except Rejected:
                continue
            if isinstance(event, Engagement) and event.request_id == impression.request_id:
                item_id = str(event.item_id)
                about: dict[str, Any] = {"kind": event.kind, "item_id": item_id}
                about |= {"rank": ranks.get(item_id)}
                about |= {} if event.watch_ms is None else {"watch_ms": event.watch_ms}
                place = (EVENTS, partition, record.offset)
                yield self._moment("engagement", event.time_ms, place, about)

    def _follow(self, timeline: RequestTimeline, partition: int, impression: Impression) -> None:
        """Adds examples, their steps and deltas, and the first answers that used them."""
        examples = list(self._examples(partition, impression))
        timeline.moments += examples
        if not examples:
            timeline.missing.append(
                "no example yet: views are still open, the join window is open, or nothing was shown"
            )
            return
        steps = self._steps(partition, [moment.place[2] for moment in examples], impression)
        timeline.moments += steps
        if not steps:
            timeline.missing.append("no step has its examples yet")
        for moment in steps:
            epoch, step = moment.about["epoch"], moment.about["step"]
            deltas = self._deltas(epoch, step)
            timeline.moments += deltas
            if not deltas:
                why = f"step {step} isn't published yet, or retention has dropped it"
                timeline.missing.append(why)
                continue
            first = self._first_answer(epoch, step, impression.time_ms)
            if first is None:
                timeline.missing.append(f"no answer used step {step} or later yet")
            else:
                timeline.moments.append(first)

    def _examples(self, partition: int, impression: Impression) -> Iterator[Moment]:
        from_ms = impression.time_ms - _MARGIN_MS
        begin = first_at(self._log, EXAMPLES, partition, from_ms, _closed_ms)
        for record in self._until(EXAMPLES, partition, begin, impression.time_ms, _closed_ms):
            example = _read(record.value, Example)
            if example is None or example.request_id != impression.request_id:
                continue
            about: dict[str, Any] = {"item_id": str(example.item_id), "labels": example.labels}
            about |= {"watch_ms": example.watch_ms, "sequence": example.sequence}
            what = "correction" if example.correction else "example"
            yield self._moment(what, example.closed_ms, (EXAMPLES, partition, record.offset), about)

    def _steps(self, partition: int, offsets: list[int], impression: Impression) -> list[Moment]:
        """Steps that learned the examples for the first time, in each epoch."""
        begin = first_at(self._log, STEPS, 0, impression.time_ms - _MARGIN_MS, _time_ms)
        moments, left = list[Moment](), set(offsets)
        for record in self._all(STEPS, 0, begin):
            step = _read(record.value, Step)
            if step is None or step.line != MAIN:
                continue
            ranges = [cut for cut in step.ranges if cut.partition == partition]
            own = [o for o in offsets if any(cut.start <= o < cut.stop for cut in ranges)]
            if not own:
                if not left and step.time_ms > impression.time_ms + self._reach_ms:
                    break
                continue
            left -= set(own)
            about = _version(step) | {"examples": step.examples, "own": len(own)}
            about |= {"lanes": step.filled or step.lanes}
            moments.append(self._moment("step", step.time_ms, (STEPS, 0, record.offset), about))
        return moments

    def _deltas(self, epoch: int, step: int) -> list[Moment]:
        wanted = epoch * _STEPS_PER_EPOCH + step

        def own(value: bytes) -> _Delta | None:
            delta = _read(value, _Delta)
            return delta if delta is not None and delta.line == MAIN else None

        def number(value: bytes) -> int | None:
            delta = own(value)
            return None if delta is None else delta.number

        moments = list[Moment]()
        for record in self._all(DELTAS, 0, first_at(self._log, DELTAS, 0, wanted - 2, number)):
            if (delta := own(record.value)) is None:
                continue
            if delta.number > wanted + 2:
                break
            if delta.number == wanted:
                about = _version(delta) | {"part": delta.part, "parts": delta.parts}
                about |= {"bytes": len(record.value)}
                place = (DELTAS, 0, record.offset)
                moments.append(self._moment("delta", delta.time_ms, place, about))
        return moments

    def _first_answer(self, epoch: int, step: int, after_ms: int) -> Moment | None:
        answers = list[Moment]()
        for partition in range(self._log.partitions(EVENTS)):
            begin = first_at(self._log, EVENTS, partition, after_ms, served_ms_of)
            first = self._first_answer_in(partition, begin, epoch, step)
            answers += [first] if first is not None else []
        return min(answers, key=lambda moment: (moment.at_ms, moment.event_ms), default=None)

    def _first_answer_in(self, partition: int, begin: int, epoch: int, step: int) -> Moment | None:
        for count, record in enumerate(self._all(EVENTS, partition, begin)):
            if count >= _MAX_ANSWERS:
                break
            answer = _read(record.value, _Answer)
            stamp = None if answer is None else answer.stamp
            if answer is None or stamp is None or stamp.line != MAIN:
                continue
            if (stamp.epoch, stamp.step) >= (epoch, step):
                about = _version(stamp) | {"request_id": answer.request_id, "of_step": step}
                place = (EVENTS, partition, record.offset)
                return self._moment("stamp", answer.time_ms, place, about)
        return None

    def _moment(self, what: str, event_ms: int, place: tuple[str, int, int], about: dict[str, Any]) -> Moment:
        appended_ms = getattr(self._log, "appended_ms", None)  # not every log keeps append times
        at_ms = None if appended_ms is None else appended_ms(*place)
        return Moment(what, event_ms if at_ms is None else at_ms, event_ms, place, about)

    def _all(self, topic: str, partition: int, offset: int) -> Iterator[Record]:
        return read_range(self._log, topic, partition, offset, 1 << 62, _READ)

    def _until(
        self, topic: str, partition: int, offset: int, from_ms: int, time_of: Callable[[bytes], int | None]
    ) -> Iterator[Record]:
        """Records as far as the joiner could still derive something from the impression."""
        for record in self._all(topic, partition, offset):
            time_ms = time_of(record.value)
            if time_ms is not None and time_ms > from_ms + self._reach_ms:
                return
            yield record

    def _newest_steps(self) -> Iterator[Step]:
        """Steps of the newest published deltas, newest first."""
        newest = islice(newest_first(self._log, DELTAS, 0, first=_READ), _READ)
        deltas = [_read(record.value, _Delta) for record in newest]
        published = {delta.number for delta in deltas if delta and delta.line == MAIN}
        for record in islice(newest_first(self._log, STEPS, 0, first=2 * _READ), 2 * _READ):
            step = _read(record.value, Step)
            number = step.epoch * _STEPS_PER_EPOCH + step.step if step else None
            if step and step.line == MAIN and number in published:
                yield step

    def _newest_answer(self, partition: int) -> "_Answer | None":
        newest = newest_first(self._log, EVENTS, partition, first=_READ)
        answers = (_read(record.value, _Answer) for record in newest)
        return next((answer for answer in answers if answer is not None), None)


class _Answer(msgspec.Struct, tag="impression", tag_field="type"):
    time_ms: int
    request_id: str
    stamp: Stamp | None = None


class _Delta(msgspec.Struct):
    """Header of a delta; its rows aren't decoded."""

    line: str
    epoch: int
    step: int
    part: int
    parts: int
    time_ms: int = 0

    @property
    def number(self) -> int:
        """Order of steps over all epochs."""
        return self.epoch * _STEPS_PER_EPOCH + self.step


class _Times(msgspec.Struct):
    closed_ms: int | None = None  # of an example
    time_ms: int | None = None


Value = TypeVar("Value", bound=msgspec.Struct)


def _read(value: bytes, kind: type[Value]) -> Value | None:
    """The record; None for another kind, and for a tombstone of a deleted user."""
    try:
        return unpack(value, kind)
    except UNREADABLE:
        return None


def _closed_ms(value: bytes) -> int | None:
    times = _read(value, _Times)
    return None if times is None else times.closed_ms


def _time_ms(value: bytes) -> int | None:
    times = _read(value, _Times)
    return None if times is None else times.time_ms


def _version(record: Stamp | Step | _Delta) -> dict[str, Any]:
    return {"line": record.line, "epoch": record.epoch, "step": record.step}
