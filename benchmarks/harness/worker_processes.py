"""Parts of a bench as processes, or as threads of one: how they start, tell what they found, and end."""

import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

PATIENCE_S: Final = 300.0
_ASK_S: Final = 5.0
Told = Any  # a queue: (who, number, value), or ("failed", number, reason)


def ways(apart: bool) -> tuple[Told, Any, Callable[..., Any]]:
    """A queue, an event, and how a part is started."""
    if apart:
        context = multiprocessing.get_context("spawn")
        told, stop, kind = context.Queue(), context.Event(), context.Process
    else:
        told, stop, kind = queue.Queue(), threading.Event(), threading.Thread  # type: ignore[assignment]

    def start(part: Callable[..., None], *arguments: Any) -> Any:
        started = kind(target=part, args=arguments, daemon=True)
        started.start()
        return started

    return told, stop, start


def answers(told: Told, who: str, count: int, parts: list[Any]) -> dict[int, Any]:
    """What ``count`` parts tell, by number. Raises RuntimeError where a part fails or says nothing."""
    found: dict[int, Any] = {}
    until = time.monotonic() + PATIENCE_S
    while len(found) < count:
        try:
            kind, number, value = told.get(timeout=1.0)
        except queue.Empty:
            dead = [part for part in parts if getattr(part, "exitcode", None)]
            if dead or time.monotonic() > until:
                raise RuntimeError(
                    f"{len(found)} of {count} parts of kind {who!r} answered, {len(dead)} ended, expected "
                    f"all within {PATIENCE_S:.0f} s: see what they said above, or take fewer --batches"
                ) from None
            continue
        if kind == "failed":
            raise RuntimeError(f"part {number} of the bench failed: {value}")
        if kind == who:
            found[number] = value
    return found


@contextmanager
def telling(told: Told, number: int) -> Iterator[None]:
    """What goes wrong in a part is told to the one who waits for it."""
    try:
        yield
    except Exception:
        told.put(("failed", number, traceback.format_exc()))


def end(parts: list[Any], stop: Any) -> None:
    """Asks the parts to end, and ends those that don't. Where one was killed while it waited for ``stop``, to
    set it hangs: multiprocessing's waits for those it wakes."""
    asking = threading.Thread(target=stop.set, daemon=True)
    asking.start()
    asking.join(_ASK_S)
    for part in parts:
        part.join(0 if asking.is_alive() else 20)
        if part.is_alive() and hasattr(part, "terminate"):
            part.terminate()
            part.join(5)
