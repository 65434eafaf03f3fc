"""The pace of folds whose threads share an interpreter with one that answers."""

import threading
import time
from collections.abc import Callable
from typing import Final

_FULL: Final = 500  # records of a turn after which the next one follows at once
_REST: Final = 3.0  # times the turn
_LONGEST_REST_S: Final = 0.03


class TurnPace:
    """Gives the interpreter to one fold at a time, so that the thread that answers waits for one, and lets a
    fold rest after a turn that moved little, so that the next one moves more at the same cost."""

    def __init__(self, rest: Callable[[float], object] = time.sleep) -> None:
        """``rest``: waits for some seconds."""
        self._one, self._rest = threading.Lock(), rest

    def run(self, turn: Callable[[], int | None]) -> int | None:
        """Runs a turn, which returns the number of records that it moved, None for one that failed."""
        with self._one:
            began_s = time.monotonic()
            moved = turn()
            took_s = time.monotonic() - began_s
        if moved and moved < _FULL:
            self._rest(min(_LONGEST_REST_S, _REST * took_s))
        return moved
