"""The life of one swipe, read from the log: what became of a request's list, up to the answer that knew it.

It needs no tracing. Events carry the time of who sent them, derived records event time; where the log keeps
when a record was appended (SQLite), that orders the moments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Engagement, Impression, Rejected, Stamp, decode
from recsys.events.hashing import Id
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Example, Step, unpack
from recsys.log.protocol import Log, Record, read_range
from recsys.process.log_consumer import UNREADABLE
from serving.reconstruction.reconstructed_session import find_impression
from training.lines.offset_lookup import first_at, served_ms_of

_READ: Final = 500
_MARGIN_MS: Final = 60_000  # for what comes out of order
_MOST_ANSWERS: Final = 200_000  # looked through in a partition for the first that knew a step
_EPOCH: Final = 1 << 40  # steps of an epoch, at most


@runtime_checkable
class Dated(Protocol):
    """A log that keeps when a record was appended."""

    def appended_ms(self, topic: str, partition: int, offset: int) -> int | None: ...


@dataclass(frozen=True)
class Moment:
    """One record of a life. ``at_ms``: when it was appended, or its own time where the log doesn't say;
    ``event_ms`` is its own."""

    what: str
    at_ms: int
    event_ms: int
    place: tuple[str, int, int]  # topic, partition, offset
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Life:
    """What was found, in order; ``missing`` says what isn't there (yet), and why."""

    request_id: str
    moments: list[Moment] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def of(self, what: str) -> list[Moment]:
        return [moment for moment in self.moments if moment.what == what]


class Finder:
    """Follows requests through one log. ``line``: whose steps are meant."""

    def __init__(self, log: Log, join: JoinConfig, line: str = "main") -> None:
        self._log, self._line = log, line
        self._reach_ms = round(1000 * (join.window_s + join.horizon_s)) + _MARGIN_MS

    def life(self, request_id: str, user_id: Id | None = None) -> Life:
        """Raises KeyError, saying so, where no impression of the request is on the log."""
        there = find_impression(self._log, request_id, user_id)
        if there is None:
            raise KeyError(
                f"no impression of request {request_id} is on {EVENTS}: the id is another, or retention has "
                "dropped it"
            )
        partition, offset, impression = there
        its = Life(request_id)
        its.moments.append(self._impression(partition, offset, impression))
        its.moments += self._engagements(partition, offset, impression)
        if not its.of("engagement"):
            its.missing.append("no engagement with it yet")
        self._follow(its, partition, impression)
        its.moments.sort(key=lambda moment: (moment.at_ms, moment.event_ms))
        return its

    def latest(self) -> str:
        """The newest request that was learned from and published; without one, the newest answer. Raises
        KeyError where there is none."""
        for step in self._newest_steps():
            for there in reversed(step.ranges):
                for record in reversed(
                    self._records(EXAMPLES, there.partition, there.start, there.stop)
                ):
                    example = _example(record)
                    if example is not None and not example.correction:
                        return example.request_id
        newest = (self._newest_answer(p) for p in range(self._log.partitions(EVENTS)))
        found = [answer for answer in newest if answer is not None]
        if not found:
            raise KeyError(f"no answer is on {EVENTS} yet: ask for a list first")
        return max(found, key=lambda answer: answer.time_ms).request_id

    # --- the moments ---

    def _impression(self, partition: int, offset: int, its: Impression) -> Moment:
        about: dict[str, Any] = {"items": [str(served.item_id) for served in its.items]}
        about |= {"surface": its.surface, "degraded": its.degraded}
        if its.stamp is not None:
            about |= {"line": its.stamp.line, "epoch": its.stamp.epoch, "step": its.stamp.step}
        return self._moment("impression", its.time_ms, (EVENTS, partition, offset), about)

    def _engagements(self, partition: int, offset: int, of: Impression) -> Iterator[Moment]:
        ranks = {str(served.item_id): rank for rank, served in enumerate(of.items)}
        name = of.request_id.encode()
        for record in self._until(EVENTS, partition, offset, of.time_ms, served_ms_of):
            if name not in record.value:  # decoding takes far longer
                continue
            try:
                event = decode(record.value)
            except Rejected:
                continue
            if isinstance(event, Engagement) and event.request_id == of.request_id:
                item_id = str(event.item_id)
                about: dict[str, Any] = {"kind": event.kind, "item_id": item_id}
                about |= {"rank": ranks.get(item_id)}
                about |= {} if event.watch_ms is None else {"watch_ms": event.watch_ms}
                place = (EVENTS, partition, record.offset)
                yield self._moment("engagement", event.time_ms, place, about)

    def _follow(self, its: Life, partition: int, impression: Impression) -> None:
        """From examples to steps, deltas and the first answers that knew them."""
        examples = list(self._examples(partition, impression))
        its.moments += examples
        if not examples:
            its.missing.append(
                "no example yet: its views haven't ended, its window is open, or nothing was shown"
            )
            return
        steps = self._steps(partition, [moment.place[2] for moment in examples], impression)
        its.moments += steps
        if not steps:
            its.missing.append("no step has its examples yet")
        for moment in steps:
            epoch, step = moment.about["epoch"], moment.about["step"]
            deltas = self._deltas(epoch, step)
            its.moments += deltas
            if not deltas:
                its.missing.append(f"step {step} isn't published yet, or retention has dropped it")
                continue
            first = self._first_answer(epoch, step, impression.time_ms)
            if first is None:
                its.missing.append(f"no answer was made of step {step} or later yet")
            else:
                its.moments.append(first)

    def _examples(self, partition: int, of: Impression) -> Iterator[Moment]:
        begin = first_at(self._log, EXAMPLES, partition, of.time_ms - _MARGIN_MS, _closed_ms)
        name = of.request_id.encode()
        for record in self._until(EXAMPLES, partition, begin, of.time_ms, _closed_ms):
            example = _example(record) if name in record.value else None
            if example is None or example.request_id != of.request_id:
                continue
            about: dict[str, Any] = {"item_id": str(example.item_id), "labels": example.labels}
            about |= {"watch_ms": example.watch_ms, "sequence": example.sequence}
            what = "correction" if example.correction else "example"
            yield self._moment(what, example.closed_ms, (EXAMPLES, partition, record.offset), about)

    def _steps(self, partition: int, offsets: list[int], of: Impression) -> list[Moment]:
        """The steps that learned them for the first time, of each epoch that did."""
        begin = first_at(self._log, STEPS, 0, of.time_ms - _MARGIN_MS, _step_ms)
        found, left = list[Moment](), set(offsets)
        for record in self._all(STEPS, 0, begin):
            step = _step(record)
            if step is None or step.line != self._line:
                continue
            ranges = [its for its in step.ranges if its.partition == partition]
            own = [o for o in offsets if any(its.start <= o < its.stop for its in ranges)]
            if not own:
                if not left and step.time_ms > of.time_ms + self._reach_ms:
                    break
                continue
            left -= set(own)
            about = {"line": step.line, "epoch": step.epoch, "step": step.step}
            about |= {"examples": step.examples, "own": len(own), "lanes": step.lanes}
            found.append(self._moment("step", step.time_ms, (STEPS, 0, record.offset), about))
        return found

    def _deltas(self, epoch: int, step: int) -> list[Moment]:
        wanted = epoch * _EPOCH + step

        def number(value: bytes) -> int | None:
            its = _decoded(value, _delta)
            return None if its is None or its.line != self._line else its.epoch * _EPOCH + its.step

        found = list[Moment]()
        for record in self._all(DELTAS, 0, first_at(self._log, DELTAS, 0, wanted - 2, number)):
            its = _decoded(record.value, _delta)
            if its is None or its.line != self._line:
                continue
            if its.epoch * _EPOCH + its.step > wanted + 2:
                break
            if (its.epoch, its.step) == (epoch, step):
                about = {"line": its.line, "epoch": epoch, "step": step, "part": its.part}
                about |= {"parts": its.parts, "bytes": len(record.value)}
                place = (DELTAS, 0, record.offset)
                found.append(self._moment("delta", its.time_ms, place, about))
        return found

    def _first_answer(self, epoch: int, step: int, after_ms: int) -> Moment | None:
        found = list[Moment]()
        for partition in range(self._log.partitions(EVENTS)):
            begin = first_at(self._log, EVENTS, partition, after_ms, served_ms_of)
            first = self._first_answer_in(partition, begin, epoch, step)
            found += [first] if first is not None else []
        return min(found, key=lambda moment: (moment.at_ms, moment.event_ms), default=None)

    def _first_answer_in(self, partition: int, begin: int, epoch: int, step: int) -> Moment | None:
        for count, record in enumerate(self._all(EVENTS, partition, begin)):
            if count >= _MOST_ANSWERS:
                break
            its = _decoded(record.value, _answer)
            stamp = None if its is None else its.stamp
            if its is None or stamp is None or stamp.line != self._line:
                continue
            if stamp.epoch > epoch or (stamp.epoch == epoch and stamp.step >= step):
                about = {"line": stamp.line, "epoch": stamp.epoch, "step": stamp.step}
                about |= {"request_id": its.request_id, "of_step": step}
                return self._moment("stamp", its.time_ms, (EVENTS, partition, record.offset), about)
        return None

    # --- reading ---

    def _moment(
        self, what: str, event_ms: int, place: tuple[str, int, int], about: dict[str, Any]
    ) -> Moment:
        at_ms = self._log.appended_ms(*place) if isinstance(self._log, Dated) else None
        return Moment(what, event_ms if at_ms is None else at_ms, event_ms, place, about)

    def _all(self, topic: str, partition: int, offset: int) -> Iterator[Record]:
        while records := self._log.read(topic, partition, offset, _READ):
            yield from records
            offset = records[-1].offset + 1

    def _until(
        self,
        topic: str,
        partition: int,
        offset: int,
        from_ms: int,
        time_of: Callable[[bytes], int | None],
    ) -> Iterator[Record]:
        """As far as the joiner could still have made something of it."""
        for record in self._all(topic, partition, offset):
            there = time_of(record.value)
            if there is not None and there > from_ms + self._reach_ms:
                return
            yield record

    def _records(self, topic: str, partition: int, start: int, stop: int) -> list[Record]:
        start = max(start, self._log.begin(topic, partition))
        return list(read_range(self._log, topic, partition, start, stop))

    def _newest_steps(self) -> Iterator[Step]:
        """Those of the newest published step and some before it, the newest first."""
        end = self._log.end(DELTAS, 0)
        start = max(self._log.begin(DELTAS, 0), end - _READ)
        told = [_decoded(r.value, _delta) for r in self._records(DELTAS, 0, start, end)]
        published = {(its.epoch, its.step) for its in told if its and its.line == self._line}
        end = self._log.end(STEPS, 0)
        start = max(self._log.begin(STEPS, 0), end - 2 * _READ)
        for record in reversed(self._records(STEPS, 0, start, end)):
            step = _step(record)
            if (
                step is not None
                and step.line == self._line
                and (step.epoch, step.step) in published
            ):
                yield step

    def _newest_answer(self, partition: int) -> "_Answer | None":
        begin, stop = self._log.begin(EVENTS, partition), self._log.end(EVENTS, partition)
        while stop > begin:
            start = max(begin, stop - _READ)
            for record in reversed(self._records(EVENTS, partition, start, stop)):
                its: _Answer | None = _decoded(record.value, _answer)
                if its is not None:
                    return its
            stop = start
        return None


class _Answer(msgspec.Struct, tag="impression", tag_field="type"):
    time_ms: int
    request_id: str
    stamp: Stamp | None = None


class _Delta(msgspec.Struct):
    """What is read of a delta: its rows are passed over."""

    line: str
    epoch: int
    step: int
    part: int
    parts: int
    time_ms: int = 0


class _Closed(msgspec.Struct):
    closed_ms: int


class _Timed(msgspec.Struct):
    time_ms: int


_answer = msgspec.msgpack.Decoder(_Answer)
_delta = msgspec.msgpack.Decoder(_Delta)
_closed = msgspec.msgpack.Decoder(_Closed)
_timed = msgspec.msgpack.Decoder(_Timed)


def _decoded(value: bytes, decoder: Any) -> Any:
    try:
        return decoder.decode(value)
    except UNREADABLE:
        return None


def _closed_ms(value: bytes) -> int | None:
    its = _decoded(value, _closed)
    return None if its is None else int(its.closed_ms)


def _step_ms(value: bytes) -> int | None:
    its = _decoded(value, _timed)
    return None if its is None else int(its.time_ms)


def _example(record: Record) -> Example | None:
    try:
        return unpack(record.value, Example)
    except UNREADABLE:  # also the place of who was forgotten
        return None


def _step(record: Record) -> Step | None:
    try:
        return unpack(record.value, Step)
    except UNREADABLE:
        return None
