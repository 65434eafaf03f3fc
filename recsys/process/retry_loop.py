"""Retries of loops over a log that may be unavailable: a failed turn restarts from a safe state."""

import logging
from collections.abc import Callable
from typing import Final

from recsys.log.protocol import LogUnavailable
from recsys.process.part_process import Stop

_PAUSE_S: Final = 0.5


class RetryLoop:
    """A loop over the log. Subclasses implement a turn in ``_turn``, and in ``_restore`` the return to a safe
    state: a snapshot, or what they wrote."""

    needs_restore = False  # a turn failed: the state in memory may be inconsistent, don't save it

    def turn(self) -> int:
        """Processes what is available; returns the number of records read or made. After LogUnavailable call
        it again: it restores first."""
        if self.needs_restore:
            self._restore()
            self.needs_restore = False
        try:
            return self._turn()
        except LogUnavailable:
            self.needs_restore = True
            raise

    def _turn(self) -> int:
        raise NotImplementedError

    def _restore(self) -> None:
        raise NotImplementedError


def run_turn(turn: Callable[[], int], stop: Stop, logger: logging.Logger) -> int | None:
    """Runs one turn; None if the log was unavailable, which is logged, counted, and followed by a pause."""
    try:
        return turn()
    except LogUnavailable as error:
        logger.warning("log unavailable, trying again: %s", error)
        stop.heartbeat.add("retries")
        stop.wait(_PAUSE_S)
        return None
