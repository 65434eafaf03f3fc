"""Loops over a log that may be away: a turn that broke off is taken again from where all is safe."""

import logging
from collections.abc import Callable
from typing import Final

from recsys.log.protocol import LogUnavailable
from recsys.process.part_process import Stop

_PAUSE_S: Final = 0.5


class RetryLoop:
    """A loop over the log. Says what a turn does in ``_turn``, and in ``_restore`` how to go back to what is
    safe: a snapshot, or what it wrote."""

    needs_restore = False  # a turn broke off: what is in memory may be half of it, and isn't to be saved

    def turn(self) -> int:
        """Does what there is to do; returns how many records it took or made.

        After LogUnavailable call it again: it goes back first, however often that takes.
        """
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
    """One turn of a part; None where the log was away: that is told, counted, and waited for a little."""
    try:
        return turn()
    except LogUnavailable as error:
        logger.warning("log unavailable, trying again: %s", error)
        stop.heartbeat.add("retries")
        stop.wait(_PAUSE_S)
        return None
