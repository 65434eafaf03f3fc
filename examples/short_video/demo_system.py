"""A running system for the demo, ended in every case.

Imports little: the process of the command waits as long as the demo runs.
"""

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from recsys.config.system_config import Config
from runtime.supervision import run_file
from runtime.supervision.processes import alive


class NotReady(RuntimeError):
    """The system didn't start, or didn't catch up."""


@contextlib.contextmanager
def running_system(
    settings: Config, viewers: float, limit: int, console: Console, control_room: bool = False
) -> Iterator[None]:
    """Context with a running, warm system. Ends it on exit, unless it ran before. Raises NotReady."""
    running = run_file.read(settings.state)
    starts_system = running is None or not alive(running.supervisor)
    starting, connection = _start_process(settings, viewers, limit, control_room)
    try:
        _await(starting, connection)
        yield
    finally:
        starting.terminate()  # before it starts a system that nobody would stop
        starting.join()
        if starts_system:
            _stop(Path(settings.state), console)


def _start_process(settings: Config, *arguments: object) -> tuple[Any, Any]:
    """Process that starts the system and warms it up, and the connection for its result."""
    spawn = multiprocessing.get_context("spawn")
    connection, remote = spawn.Pipe()
    starting = spawn.Process(
        target=_start_and_report, args=(settings, *arguments, sys.stdout is sys.stderr, remote), daemon=True
    )
    starting.start()
    remote.close()
    return starting, connection


def _start_and_report(*arguments: Any) -> None:
    from examples.short_video.demo_start import start_and_report  # seconds, and 200 MB

    start_and_report(*arguments)


def _await(starting: Any, connection: Any) -> None:
    try:
        error = connection.recv()
    except (EOFError, OSError):
        starting.join()
        raise NotReady(f"the process that starts the system ended with status {starting.exitcode}") from None
    if error is not None:
        raise error


def check_lost(lost: Mapping[str, str]) -> None:
    """Raises NotReady for parts that can't continue."""
    for name, why in lost.items():
        raise NotReady(f"{name} can't go on: {why}")


def _stop(state: Path, console: Console) -> None:
    """Ends the folder's system, also one whose supervisor is only just starting."""
    from runtime.cli.system import end

    for _ in range(50):
        with contextlib.suppress(KeyboardInterrupt):
            end(state, console)
            try:
                with run_file.lock(state):
                    return
            except run_file.AlreadyRuns:
                time.sleep(0.2)
