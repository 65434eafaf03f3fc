"""The spans of the steps that worker 0 learns in an epoch, and how many went out, for its driver."""

from contextlib import suppress
from typing import Final

from recsys.observability.log_lines import LogThrottle
from recsys.observability.tracer import Tracer
from training.continual.trainer_run import Spans, TrainerRun
from training.steps.step_trace import tell_learned

_COUNT_EVERY_S: Final = 2.0


class LearnTrace:
    """``count`` is called in each turn, ``close`` however learning ends."""

    def __init__(self, tracer: Tracer, run: TrainerRun, line: str, epoch: int) -> None:
        self._tracer, self._run = tracer, run
        self._line, self._epoch = line, epoch
        self._seldom = LogThrottle(_COUNT_EVERY_S)

    def learned(self, step: int, examples: int, began_ns: int, ended_ns: int) -> None:
        tell_learned(self._tracer, self._line, self._epoch, step, examples, began_ns, ended_ns)

    def count(self, now_s: float) -> None:
        if self._seldom.due("count", now_s):
            self._tell()

    def close(self) -> None:
        """Sends what waits."""
        self._tracer.close()
        self._tell()

    def _tell(self) -> None:
        with suppress(OSError):  # no step is to fail of it
            self._run.traced(Spans(self._tracer.sent, self._tracer.dropped))
