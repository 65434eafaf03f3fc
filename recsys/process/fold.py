"""A fold, which is a part's work on the log in turns, and the loop that runs one until the part ends."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from recsys.log.protocol import LogUnavailable
from recsys.observability.tracer import Tracer
from recsys.process.part_process import Heartbeat, Stop

_PAUSE_S: Final = 0.3


class Fold:
    """Work on the log, in turns. Subclasses implement a turn in ``_turn``, and in ``_restore`` the return to
    a safe state: a snapshot, or what they wrote. ``away``: errors after which a turn is tried again."""

    away: tuple[type[Exception], ...] = (LogUnavailable,)
    needs_restore = False  # a turn failed: the state in memory may be inconsistent, don't save it

    def turn(self) -> int:
        """Processes what is available; returns the number of records read or made. After an error of ``away``
        call it again: it restores first."""
        if self.needs_restore:
            self._restore()
            self.needs_restore = False
        try:
            return self._turn()
        except self.away:
            self.needs_restore = True
            raise

    def _turn(self) -> int:
        raise NotImplementedError

    def _restore(self) -> None:
        raise NotImplementedError


class PartFold(Fold):
    """The fold of a part. ``tracer``: its counts are reported."""

    tracer: Tracer | None = None

    def report(self, beat: Heartbeat, moved: int) -> None:
        """Writes the state after a turn that processed ``moved`` records into a heartbeat."""
        raise NotImplementedError

    def report_delays(self, beat: Heartbeat) -> None:
        """Writes recent delays into a heartbeat, also after a turn that failed: they fade."""

    def wait(self) -> None:
        """Waits until there may be something to do, for about half a second at most."""
        raise NotImplementedError


def run_turn(
    turn: Callable[[], int], stop: Stop, logger: logging.Logger, starting: bool = False,
    away: tuple[type[Exception], ...] = (LogUnavailable,),
) -> int | None:  # fmt: skip
    """Runs one turn; None if the log was unavailable, which is logged, counted, and followed by a pause.
    ``away``: errors for which it is."""
    try:
        return turn()
    except away as error:
        logger.warning("turn failed, trying again", extra={"error": str(error)})
        stop.heartbeat.add("retries")
        stop.wait(_PAUSE_S, starting)
        return None


def follow(fold: PartFold, stop: Stop, logger: logging.Logger) -> None:
    """Runs a fold until the part is asked to stop. The part is ready once a turn has succeeded."""
    starting = True

    def turn() -> int | None:
        return run_turn(fold.turn, stop, logger, starting, fold.away)

    while not stop.is_set(starting):
        moved = stop.pace.run(turn) if stop.pace else turn()
        fold.report_delays(stop.heartbeat)
        if moved is None:
            continue
        starting = False
        fold.report(stop.heartbeat, moved)
        if fold.tracer:
            fold.tracer.count(stop.heartbeat)
        if not moved:
            with suppress(LogUnavailable):  # the next turn reports it
                fold.wait()
