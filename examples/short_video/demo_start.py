"""Starts the demo's system and warms it up with data, in a process of its own.

What this takes, several hundred MB of data and of libraries, is free again when the system is warm.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from examples.short_video import warmup
from examples.short_video.demo_data import choose
from examples.short_video.demo_system import NotReady, check_lost
from examples.short_video.viewers import EVENTS_PER_LIST
from examples.short_video.warmup import WarmupData
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set, write_feature_set
from recsys.process.open_log import open_log
from runtime.cli.up import start
from runtime.supervision import launch_plan, run_file
from runtime.supervision.system_status import Status, gather

_CAUGHT_UP_S: Final = 420.0
_SAY_EVERY_S: Final = 5.0
_FEW: Final = 20  # records; ticks always leave some unread, and viewers those of a second


def start_and_report(
    settings: Config, viewers: float, limit: int, control_room: bool, is_unattended: bool, connection: Any
) -> None:
    """Main function of the process: sends None when the system is warm, NotReady where it can't get so.
    ``is_unattended``: prints nothing on stdout."""
    # Ctrl-C is for the command, which ends this process. The system must not inherit that it is ignored.
    signal.signal(signal.SIGINT, lambda *_: None)
    if is_unattended:
        sys.stdout = sys.stderr
    result = None
    try:
        start_warm(settings, viewers, limit, control_room, Console())
    except (ValueError, RuntimeError, OSError) as error:
        result = NotReady(str(error))
    with contextlib.suppress(OSError):  # the command has ended
        connection.send(result)


def start_warm(settings: Config, viewers: float, limit: int, control_room: bool, console: Console) -> None:
    """Returns when the system runs and has learned the data. Raises NotReady, or ValueError for wrong data or
    settings."""
    state = Path(settings.state)
    data, begun = _warmup_data(settings, limit, console)
    # Viewers needn't behave like the data: drift is judged among them alone.
    settings = replace(settings, drift=replace(settings.drift, from_ms=begun.now_ms))
    with _reported_start(state, ProgressLines(console)):
        status = start(settings, detach=True, viewers=viewers, control_room=control_room)
    if status != 0:
        raise NotReady(f"the system didn't start; see {state / 'run'}")
    if data is not None:
        _warm_up(settings, data, console, _FEW + int(EVENTS_PER_LIST * viewers))


def _warmup_data(settings: Config, limit: int, console: Console) -> tuple[WarmupData | None, warmup.Progress]:
    """Chooses data and feature set; no data where the folder is warm already."""
    state = Path(settings.state)
    begun = warmup.read_progress(state)
    if begun is not None and begun.done:
        return None, begun
    start_ms = settings.clock.start_ms
    first_ms = machine_ms() if start_ms is None else start_ms
    now_ms = first_ms if begun is None else begun.now_ms
    data, why = choose(now_ms, limit)
    console.print(f"data: {why}", highlight=False)
    write_feature_set(settings, FeatureSet(data.schema, settings.model.features, settings.sessions.history))
    return data, begun or warmup.begin(state, data, now_ms)


def _warm_up(settings: Config, data: WarmupData, console: Console, few: int) -> None:
    """Writes the data to the running system's log, and waits until every part has processed them."""
    began, lines = time.monotonic(), ProgressLines(console)
    config, _ = launch_plan.read(Path(settings.state))

    def report(progress: warmup.Progress) -> None:
        lines.say(f"warming up: {progress.impressions:,} of {progress.expected:,} impressions")

    with contextlib.closing(open_log(config)) as log:
        progress = warmup.warm_up(log, feature_set(config), config, data, report)
    wait_until_caught_up(Path(config.state), lambda text: lines.say(f"learning: {text}"), few)
    console.print(
        f"warmed up: {progress.items:,} items, {progress.impressions:,} impressions, "
        f"{time.monotonic() - began:.0f} s",
        highlight=False,
    )


class ProgressLines:
    """Prints what is going on, a line every few seconds: on a terminal as in a file."""

    def __init__(self, console: Console, every_s: float = _SAY_EVERY_S) -> None:
        self._console, self._every_s, self._printed_s = console, every_s, time.monotonic()

    def say(self, text: str) -> None:
        if time.monotonic() - self._printed_s >= self._every_s:
            self._printed_s = time.monotonic()
            self._console.print(text, style="dim", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _reported_start(state: Path, lines: ProgressLines) -> Iterator[None]:
    """Context that says how many parts are ready."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            parts = () if (running := run_file.read(state)) is None else running.parts
            waiting = [part.name for part in parts if part.state not in ("ready", "done")]
            ready = f"{len(parts) - len(waiting)} of {len(parts)} parts are ready"
            lines.say(f"starting: {ready}, not yet {', '.join(waiting)}" if waiting else "starting")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def behind(status: Status) -> dict[str, int]:
    """Pending work: events to fold and join, examples to cut into steps, steps to serve."""
    parts = {part.name: part for part in status.parts}
    readers = [parts[name] for name in ("session-fold", "counters", "joiner") if name in parts]
    sequencer = parts.get("sequencer")
    examples = 0
    if sequencer is not None:
        examples = sequencer.lag.get("examples", 0) + int(sequencer.gauges.get("waiting", 0))
    cut = status.cut.step if status.cut is not None else 1  # no step yet: at least one is pending
    served = status.served.step if status.served is not None else 0
    return {
        "events": max((part.lag.get("events", 0) for part in readers), default=0),
        "examples": examples,
        "steps": max(0, cut - served),
    }


def wait_until_caught_up(
    state: Path, report: Callable[[str], None] = lambda text: None, few: int = _FEW
) -> None:
    """Returns once at most ``few`` records of a kind are pending, twice in a row. Raises NotReady after the
    timeout."""
    deadline = time.monotonic() + _CAUGHT_UP_S
    quiet = 0
    left: dict[str, int] = {}
    while quiet < 2:
        if time.monotonic() > deadline:
            pending = ", ".join(f"{count} {name}" for name, count in left.items())
            raise NotReady(f"not caught up after {_CAUGHT_UP_S:.0f} s: {pending} are pending")
        status = gather(state)
        if not status.running:
            raise NotReady(f"the system has ended; see {state / 'run' / 'up.log'}")
        check_lost(status.lost)
        left = behind(status)
        report(", ".join(f"{count:,} {name} to go" for name, count in left.items()))
        quiet = quiet + 1 if max(left.values()) <= few else 0
        time.sleep(0.7)
