"""Cuts the stream of examples into steps. A step is data: its record is appended before it is learned.

Pure: arrived examples and the time go in, step records come out. The ranges of the last record say which
examples are next. A lane costs some milliseconds whatever is in it, so a small step fills few of them.
Many small steps at the whole learning rate would move frequent rows further than few large ones do, so they
learn at a lower one.
"""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from recsys.config.system_config import StepConfig
from recsys.events.hashing import Id, key_of
from recsys.events.records import Range, SampledView, Step

LANE_EXAMPLES: Final = 64  # from so many on, a second worker gains more than another lane costs
_FULL_EXAMPLES: Final = 64  # of a step that learns at the whole rate, when live
_LEAST_RATE: Final = 0.5  # a single viewer's likes must show
_MEASURED: Final = 8  # times as many examples as a step learns, with those that are measured alone
SAMPLED_PER_S: Final = 256  # views that step records name, whatever the number of examples
View = tuple[str, Id]  # request, item


class Sequencer:
    """Cuts the steps of one line. Call ``arrived`` once per example, in order within its partition."""

    def __init__(
        self,
        config: StepConfig,
        *,
        line: str,
        epoch: int,
        digest: str,
        step: int = 0,
        offsets: dict[int, int] | None = None,
        live: bool = False,
        lane_examples: int = LANE_EXAMPLES,
    ) -> None:
        """``live``: small steps learn at a lower rate, and one is cut sooner while the trainer is idle."""
        self.config, self._live, self._lane_examples = config, live, lane_examples
        self.line, self.epoch, self.digest = line, epoch, digest
        self.step = step
        self.offsets = dict(offsets or {})  # where the next step begins, by partition
        # Of each example: arrival, partition, offset, closed_ms, the view that caused it, if one did, and
        # whether it is learned.
        self._waiting: deque[tuple[int, int, int, int, View | None, bool]] = deque()
        self._learned = 0  # of those that wait
        self._sampled_ms = 0  # time of the newest step
        self._more_views = 0.0  # views that may be sampled

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def arrived(
        self, partition: int, offset: int, closed_ms: int, now_ms: int, view: View | None = None,
        learned: bool = True,
    ) -> None:  # fmt: skip
        """Takes the example at (partition, offset) of ``examples``, which arrived at ``now_ms``. One that
        isn't ``learned`` stands in a step, and makes it no larger."""
        self._waiting.append((now_ms, partition, offset, closed_ms, view, learned))
        self._learned += learned

    def due_ms(self, now_ms: int, idle: bool = False) -> int | None:
        """Time until a step is due, 0 if it is: enough examples wait, the oldest has waited long enough, or
        the clock was set back since it came. None without examples. ``idle``: the trainer waits for it."""
        if not self._waiting:
            return None
        config, waited_ms = self.config, now_ms - self._waiting[0][0]
        if self._learned >= config.examples or len(self._waiting) >= _MEASURED * config.examples:
            return 0
        if waited_ms < 0:
            return 0
        wait_ms = min(config.soonest_ms, config.every_ms) if idle else config.every_ms
        return max(0, wait_ms - waited_ms)

    def cut(self, now_ms: int, idle: bool = False) -> Step | None:
        """The next step if it is due, else None."""
        if self.due_ms(now_ms, idle) != 0:
            return None
        learned, taken = 0, list[tuple[int, int, int, int, View | None, bool]]()
        while (
            self._waiting and learned < self.config.examples and len(taken) < _MEASURED * self.config.examples
        ):
            taken.append(self._waiting.popleft())
            learned += taken[-1][-1]
        self._learned -= learned
        self.step += 1
        share = min(1.0, learned / _FULL_EXAMPLES) if self._live else 1.0
        return Step(
            line=self.line, epoch=self.epoch, step=self.step,
            ranges=self._ranges((p, offset) for _, p, offset, *_ in taken), examples=len(taken),
            lanes=self.config.lanes, time_ms=max(closed_ms for *_, closed_ms, _, _ in taken),
            config=self.digest, rate=max(_LEAST_RATE, share**0.5),
            filled=max(1, min(-(-learned // self._lane_examples), self.config.lanes)),
            views=self._sample([(view, p, o) for _, p, o, _, view, _ in taken if view], now_ms),
        )  # fmt: skip

    def _sample(self, views: list[tuple[View, int, int]], now_ms: int) -> list[SampledView]:
        """Evenly spaced ones of a step's views, as many as ``SAMPLED_PER_S`` has left."""
        earned = SAMPLED_PER_S * max(0, now_ms - self._sampled_ms) / 1000
        self._sampled_ms = now_ms
        self._more_views = min(SAMPLED_PER_S, self._more_views + earned)
        count = min(len(views), int(self._more_views))
        self._more_views -= count
        chosen = [views[n * len(views) // count] for n in range(count)]
        return [SampledView(key_of(*view), p, offset) for view, p, offset in chosen]

    def _ranges(self, places: Iterable[tuple[int, int]]) -> list[Range]:
        """One range per partition, from the end of the last step to after the last example taken."""
        stops = {partition: offset + 1 for partition, offset in places}
        ranges = [Range(p, self.offsets.get(p, 0), stop) for p, stop in sorted(stops.items())]
        self.offsets.update(stops)
        return ranges


def lanes_of(count: int, lanes: int, filled: int = 0) -> list[range]:
    """Cuts ``count`` examples, ordered by (partition, offset), into the ``filled`` first lanes (0: all),
    whatever the number of workers."""
    cuts = [count * min(lane, filled or lanes) // (filled or lanes) for lane in range(lanes + 1)]
    return [range(start, stop) for start, stop in pairwise(cuts)]
