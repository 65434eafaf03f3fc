"""Runs the supervisor with real processes and signals, and writes ``STATE/run/up.json``."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

import recsys
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.observability.log_lines import log_to_file
from recsys.process.clock_file import ClockKeeper
from recsys.process.part_process import run_folder
from recsys.process.slot_file import SlotFile
from runtime.supervision import launch_plan, run_file
from runtime.supervision.launch_plan import Plan
from runtime.supervision.part_table import table
from runtime.supervision.processes import STATE, Child, Identity, Socket, identify, listening
from runtime.supervision.ray_environment import client_environment
from runtime.supervision.run_file import PartRecord, Running
from runtime.supervision.space_watch import SpaceWatch
from runtime.supervision.supervisor import Change, Part, State, Supervisor, Watched

_TICK_S: Final = 0.05
_QUIET_TICK_S: Final = 0.5  # once all parts are ready
_WRITE_EVERY_S: Final = 1.0
_SCAN_EVERY_S: Final = 10.0  # of open ports
_WRITE: Final = "write the run file"
# One thread per process: a dozen processes share two cores, and a lane's floating-point sums must be made by
# one thread.
ONE_THREAD: Final = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS",
)  # fmt: skip

Show = Callable[[Running, list[Change]], None]


class Runner:
    """Runs a plan until it is asked to stop, and reports the parts' transitions."""

    def __init__(self, config: Config, plan: Plan, show: Show = lambda running, changes: None) -> None:
        self._config, self._plan, self._show = config, plan, show
        self._folder = run_folder(config.state)
        self._me, self._started_ms = identify(os.getpid()), machine_ms()
        self._environment = part_environment(config, plan)
        self._file = SlotFile(self._folder / run_file.FILE)
        self._space = SpaceWatch(config.state, config.disk)
        self._clock = None if config.clock.is_machine else ClockKeeper(config.state)
        self._was_ready = False
        self._errors: dict[str, str] = {}
        self._children: dict[str, Child] = {}
        self._sockets: dict[str, list[Socket]] = {}
        self._exposed = set[tuple[str, int]]()  # ports open beyond loopback that were logged
        self._parts = table(plan, config.workers)
        self._supervisor = Supervisor(self._parts, self._spawn, time.monotonic)
        self._logger = logging.getLogger("recsys.up")

    def run(self) -> None:
        """Returns when all parts have ended. SIGINT, SIGTERM and SIGHUP stop it; a second signal kills."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.stop)
        write_at, scan_at = 0.0, time.monotonic() + 2.0
        while not self._supervisor.stopped:
            changes = self._supervisor.tick()
            for change in changes:
                self._logger.info(
                    "part changed",
                    extra={"of": change.part, "state": str(change.state), "why": change.reason},
                )
            now = time.monotonic()
            if now >= scan_at and not self._supervisor.stopping:
                self._attempt("list open ports", self._scan_ports)
                scan_at = time.monotonic() + _SCAN_EVERY_S
            elif any(change.state is State.READY for change in changes):
                scan_at = min(scan_at, now + 1.0)
            if changes or now >= write_at:
                self._attempt(_WRITE, self._write)
                self._attempt("keep event time going", self._extend_clock)
                write_at = now + _WRITE_EVERY_S
            self._attempt("watch the disk", self._space.turn)
            self._attempt("print the state", partial(self._print, changes))
            quiet = self._supervisor.ready and not self._supervisor.stopping
            time.sleep(_QUIET_TICK_S if quiet else _TICK_S)
        if self._clock is not None:
            self._attempt("hold event time", partial(self._clock.extend, 0))
        self._attempt(_WRITE, self._write)

    def _extend_clock(self) -> None:
        """Lets event time pass for the next seconds, once all parts have been ready."""
        self._was_ready |= self._supervisor.ready
        if self._clock is not None and self._was_ready:
            self._clock.extend()

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        """Does something whose failure must not end the supervision; logs a new error once."""
        error = ""
        try:
            act()
        except Exception as raised:
            error = repr(raised)
            if error != self._errors.get(what):
                self._logger.warning("can't %s, trying again: %s", what, error)
        self._errors[what] = error

    def _print(self, changes: list[Change]) -> None:
        self._show(self._running(), changes)

    def stop(self, *_: object) -> None:
        """Shuts down in order; called a second time, kills at once."""
        if self._supervisor.stopping:
            self._supervisor.kill()
        self._supervisor.stop()

    def _spawn(self, part: Part) -> Child:
        shared = [p.name for p in self._parts if part.shares and p.shares == part.shares]
        started = (self._children[name] for name in shared if name in self._children)
        output, heartbeat = (self._folder / f"{part.name}.{kind}" for kind in ("out", "json"))
        if running := next((child for child in started if not child.ended), None):
            child = running.beside(heartbeat)
        else:
            command = part_command(",".join(shared or [part.name]), self._config.state)
            child = Child(command, self._environment, output, heartbeat)
        self._children[part.name] = child
        # At once: if this process is killed now, the next start needn't look for the child.
        self._attempt(_WRITE, self._write)
        return child

    def _identity(self, watched: Watched) -> Identity | None:
        child = self._children.get(watched.part.name)
        # While it is being spawned, the child is registered here before the supervisor has it.
        if child is None or (watched.process is not child and child.ended):
            return None
        return child.identity

    def _scan_ports(self) -> None:
        leaders = {}
        for name, watched in self._supervisor.watched.items():
            if (identity := self._identity(watched)) is not None:
                leaders[name] = identity
        self._sockets = listening(leaders)
        parts = self._sockets.items()
        exposed = {(part, s.port) for part, sockets in parts for s in sockets if not s.loopback}
        for part, port in sorted(exposed - self._exposed):
            extra = {"of": part, "port": port}
            self._logger.warning("a port is open beyond loopback", extra=extra)
        self._exposed = exposed

    def _write(self) -> None:
        self._file.write(msgspec.json.encode(self._running()))

    def _running(self) -> Running:
        now_s, now_ms = time.monotonic(), machine_ms()
        parts = [
            PartRecord(
                name=name,
                state="unchecked" if watched.trouble else str(watched.state),
                reason=watched.trouble or watched.reason,
                since_ms=now_ms - int((now_s - watched.since) * 1000),
                restarts=watched.restarts,
                last_exit=watched.last_exit,
                process=self._identity(watched),
                sockets=self._sockets.get(name, []) if watched.process is not None else [],
            )
            for name, watched in self._supervisor.watched.items()
        ]
        return Running(
            supervisor=self._me, config_digest=self._plan.config_digest, started_ms=self._started_ms,
            time_ms=now_ms, stopping=self._supervisor.stopping, parts=parts,
        )  # fmt: skip


def part_command(name: str, state: str) -> list[str]:
    return [sys.executable, "-m", "runtime.cli.part", name, state]


def part_environment(config: Config, plan: Plan) -> dict[str, str]:
    """Environment of every part: the inherited one, one thread, Ray access, and the code's path."""
    root = str(Path(recsys.__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ, **dict.fromkeys(ONE_THREAD, "1"), **client_environment(config, plan),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1",
        STATE: str(Path(config.state).resolve()),
    }  # fmt: skip


def main(state: str) -> None:
    """Runs the plan in a state folder, in a background process that imports little else."""
    with run_file.lock(state):
        config, plan = launch_plan.read(state)
        log_to_file("up", run_folder(state) / "up.log", config.logging.format)
        Runner(config, plan).run()


if __name__ == "__main__":
    main(sys.argv[1])
