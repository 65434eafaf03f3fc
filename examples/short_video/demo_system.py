"""Starts and warms up a system for the demo, and ends it in every case."""

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from examples.short_video import warmup
from examples.short_video.demo_data import choose
from examples.short_video.viewers import EVENTS_PER_LIST
from examples.short_video.warmup import WarmupData
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set, write_feature_set
from recsys.process.open_log import open_log
from runtime.cli.system import end
from runtime.cli.up import start
from runtime.supervision import launch_plan, run_file
from runtime.supervision.processes import alive
from runtime.supervision.system_status import Status, gather

_CAUGHT_UP_S: Final = 420.0
_SAY_EVERY_S: Final = 5.0
_FEW: Final = 20  # records; ticks always leave some unread, and viewers those of a second


class NotReady(RuntimeError):
    """The system didn't start, or didn't catch up."""


@contextlib.contextmanager
def running_system(
    settings: Config, viewers: float, limit: int, console: Console, control_room: bool = False
) -> Iterator[None]:
    """Context with a running, warm system. Ends it on exit, unless it ran before."""
    state = Path(settings.state)
    running = run_file.read(state)
    starts_system = running is None or not alive(running.supervisor)
    with WarmupProcess(settings, limit) as data:
        if why := data.prepare():
            console.print(f"data: {why}", highlight=False)
        begun = warmup.read_progress(state)
        assert begun is not None
        # Viewers needn't behave like the data: drift is judged among them alone.
        settings = replace(settings, drift=replace(settings.drift, from_ms=begun.now_ms))
        try:
            with _reported_start(state, ProgressLines(console)):
                status = data.start(settings, viewers, control_room)
            if status != 0:
                raise NotReady(f"the system didn't start; see {state / 'run'}")
            if why:
                _warm_up(state, data, console, _FEW + int(EVENTS_PER_LIST * viewers))
            data.end()
            yield
        finally:
            data.end()  # before it starts a system that nobody would stop
            if starts_system:
                _stop(state, console)


class WarmupProcess:
    """Process that reads the warm-up data, starts the system and writes the data to its log. It ends with the
    context.

    Its memory, several hundred MB, is free again when the system is warm.
    """

    def __init__(self, settings: Config, limit: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, remote = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve_warmup,
            args=(settings, limit, sys.stdout is sys.stderr, remote),
            daemon=True,
        )
        self._process.start()
        remote.close()

    def __enter__(self) -> "WarmupProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def prepare(self) -> str:
        """Chooses the data and writes the feature set; returns the reason for the choice, or an empty text
        where the folder is warm already. Raises NotReady."""
        return str(self._result())

    def start(self, settings: Config, viewers: float, control_room: bool) -> int:
        """Starts the system in the background; returns the status of ``recsys up``."""
        with contextlib.suppress(OSError):  # where the process is gone, the result names its status
            self._connection.send((settings, viewers, control_room))
        status = self._result()
        assert isinstance(status, int)
        return status

    def write(self, report: Callable[[], None]) -> None:
        """Writes the data to the running system's log. ``report`` is called several times a second."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
            while not self._connection.poll(0.2):
                report()
        self._result()

    def end(self) -> None:
        self._process.terminate()
        self._process.join()

    def _result(self) -> object:
        try:
            result = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise NotReady(f"the process of the warm-up data ended with status {code}") from None
        if isinstance(result, Exception):
            raise result
        return result


def _serve_warmup(settings: Config, limit: int, is_unattended: bool, connection: Any) -> None:
    """Body of the warm-up process: prepares, starts the system, writes. ``is_unattended``: prints nothing on
    stdout."""
    # Ctrl-C is for the command, which ends this process. The system must not inherit that it is ignored.
    signal.signal(signal.SIGINT, lambda *_: None)
    if is_unattended:
        sys.stdout = sys.stderr
    try:
        data, why = _warmup_data(settings, limit)
        connection.send(why)
        settings, viewers, control_room = connection.recv()
        connection.send(start(settings, detach=True, viewers=viewers, control_room=control_room))
        connection.recv()
        assert data is not None
        config = launch_plan.read(Path(settings.state))[0]
        with contextlib.closing(open_log(config)) as log:
            warmup.warm_up(log, feature_set(config), config, data)
        connection.send(None)
    except EOFError:  # the command has ended
        return
    except (ValueError, RuntimeError, OSError) as error:
        with contextlib.suppress(OSError):
            connection.send(NotReady(str(error)))


class ProgressLines:
    """Prints what is going on, a line every few seconds: on a terminal as in a file."""

    def __init__(self, console: Console, every_s: float = _SAY_EVERY_S) -> None:
        self._console, self._every_s, self._said_s = console, every_s, time.monotonic()

    def say(self, text: str) -> None:
        if time.monotonic() - self._said_s >= self._every_s:
            self._said_s = time.monotonic()
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


def _warmup_data(settings: Config, limit: int) -> tuple[WarmupData | None, str]:
    """Chooses data and feature set, with the reason; None where the folder is warm already."""
    state = Path(settings.state)
    begun = warmup.read_progress(state)
    if begun is not None and begun.done:
        return None, ""
    now_ms = time.time_ns() // 1_000_000 if begun is None else begun.now_ms
    data, why = choose(now_ms, limit)
    write_feature_set(
        settings, FeatureSet(data.schema, settings.model.features, settings.sessions.history)
    )
    if begun is None:
        warmup.begin(state, data, now_ms)
    return data, why


def _warm_up(state: Path, data: WarmupProcess, console: Console, few: int) -> None:
    """Waits until the data are written and every part has processed them."""
    began, lines = time.monotonic(), ProgressLines(console)

    def report() -> None:
        if progress := warmup.read_progress(state):
            lines.say(f"warming up: {progress.impressions:,} of {progress.expected:,} impressions")

    data.write(report)
    wait_until_caught_up(state, lambda text: lines.say(f"learning: {text}"), few)
    progress = warmup.read_progress(state)
    assert progress is not None
    console.print(
        f"warmed up: {progress.items:,} items, {progress.impressions:,} impressions, "
        f"{time.monotonic() - began:.0f} s",
        highlight=False,
    )


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


def check_lost(lost: Mapping[str, str]) -> None:
    """Raises NotReady for parts that can't continue."""
    for name, why in lost.items():
        raise NotReady(f"{name} can't go on: {why}")


def _stop(state: Path, console: Console) -> None:
    """Ends the folder's system, also one whose supervisor is only just starting."""
    for _ in range(50):
        with contextlib.suppress(KeyboardInterrupt):
            end(state, console)
            try:
                with run_file.lock(state):
                    return
            except run_file.AlreadyRuns:
                time.sleep(0.2)
