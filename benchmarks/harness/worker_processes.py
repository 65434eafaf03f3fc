"""Processes of a bench, or threads of one process: how they start, report results, and end."""

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
Messages = Any  # a queue: (kind, number, value), or ("failed", number, reason)


def process_starter(processes: bool = True) -> tuple[Messages, Any, Callable[..., Any]]:
    """A message queue, a stop event, and a function that starts a process (or a thread)."""
    if processes:
        context = multiprocessing.get_context("spawn")
        messages, stop, kind = context.Queue(), context.Event(), context.Process
    else:
        messages, stop, kind = queue.Queue(), threading.Event(), threading.Thread  # type: ignore[assignment]

    def start(part: Callable[..., None], *arguments: Any) -> Any:
        started = kind(target=part, args=arguments, daemon=True)
        started.start()
        return started

    return messages, stop, start


def run_process(kind: str, part: Callable[..., None], *arguments: Any) -> Any:
    """Runs ``part(*arguments, messages)`` in a process of its own; returns its message of this kind."""
    messages, stop, start = process_starter()
    process = start(part, *arguments, messages)
    try:
        return collect(messages, kind, 1, [process])[0]
    finally:
        end_processes([process], stop)


def collect(messages: Messages, kind: str, count: int, parts: list[Any]) -> dict[int, Any]:
    """Messages of a kind by number, once ``count`` have come. Raises RuntimeError when a part fails or stays
    silent."""
    values: dict[int, Any] = {}
    until = time.monotonic() + PATIENCE_S
    while len(values) < count:
        try:
            message_kind, number, value = messages.get(timeout=1.0)
        except queue.Empty:
            dead = [part for part in parts if getattr(part, "exitcode", None)]
            if dead or time.monotonic() > until:
                raise RuntimeError(
                    f"{len(values)} of {count} parts of kind {kind!r} answered, {len(dead)} ended, expected "
                    f"all within {PATIENCE_S:.0f} s: see their output above, or take fewer --batches"
                ) from None
            continue
        if message_kind == "failed":
            raise RuntimeError(f"part {number} of the bench failed: {value}")
        if message_kind == kind:
            values[number] = value
    return values


@contextmanager
def reporting_errors(messages: Messages, number: int) -> Iterator[None]:
    """Sends the traceback of an exception to the process that waits for messages."""
    try:
        yield
    except Exception:
        messages.put(("failed", number, traceback.format_exc()))


def end_processes(parts: list[Any], stop: Any) -> None:
    """Sets ``stop``, and terminates processes that don't end. Setting it hangs when a process was killed
    while it waited for the event, because multiprocessing waits for those it wakes."""
    setter = threading.Thread(target=stop.set, daemon=True)
    setter.start()
    setter.join(_ASK_S)
    for part in parts:
        part.join(0 if setter.is_alive() else 20)
        if part.is_alive() and hasattr(part, "terminate"):
            part.terminate()
            part.join(5)
