"""The supervisor's core: decides which part to start, restart or end, from the state of the processes.

Pure: processes and the clock are passed in, so that crashes and time are inputs of a test. ``tick`` is called
about ten times a second and never blocks. It knows the parts' dependencies, not what they do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from recsys.process.part_process import EXIT_LOG_LOST, HEALTHY_S, Beat, delay_s


@dataclass(frozen=True)
class Part:
    """One part of the system: a process, or a thread of one."""

    name: str
    target: str  # "module:function", called as function(config, stop)
    needs: tuple[str, ...] = ()  # starts when these are ready, ends before them
    bound: tuple[str, ...] = ()  # restarts where one of these died
    once: bool = False  # runs to its end: done with exit status 0
    ready_s: float = 120.0  # killed and retried where it isn't ready and does nothing for so long
    grace_s: float = 10.0  # between TERM and KILL
    in_memory: bool = False  # its data end with it: it isn't restarted, empty
    nice: int = 0  # nice value of its process
    shares: str = ""  # parts of the same name run in one process, each in a thread


class State(StrEnum):
    WAITING = "waiting"  # for its dependencies
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    BACKOFF = "backoff"  # died; restarts after a delay
    LOST = "lost"  # died and can't continue, since its data are lost: needs an operator
    STOPPING = "stopping"  # TERM sent
    STOPPED = "stopped"


class Process(Protocol):
    """A started process, as the supervisor sees it."""

    @property
    def pid(self) -> int: ...

    def exit_status(self) -> int | None:
        """Exit status; None while it runs, negative for a signal."""

    def beat(self) -> Beat | None:
        """Newest heartbeat of the part, written by this process."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


# State of a part whose heartbeat says this: as a thread it starts again by itself, or can't.
_REPORTED: Final = {
    "starting": State.STARTING, "ready": State.READY, "failed": State.BACKOFF,
    "stopping": State.BACKOFF, "lost": State.LOST,
}  # fmt: skip
_WORK_S: Final = 1.0  # of a processor: less is waiting
# Reason for a lost part that gives none itself.
_LOST: Final = "its log is lost: stop the system (`recsys down`) and start with a new state folder"


@dataclass(frozen=True)
class Change:
    """A part's transition to another state, with its reason."""

    part: str
    state: State
    reason: str = ""


@dataclass
class Watched:
    """Runtime state of one part. Only the supervisor changes it."""

    part: Part
    state: State = State.WAITING
    process: Process | None = None
    since: float = 0.0  # time of the last transition
    starts: int = 0
    thread_starts: int = 0  # included: starts again of a thread in its process
    failures: int = 0  # in a row, without ``HEALTHY_S`` of being ready between
    retry_at: float = 0.0
    worked_s: float = 0.0  # processor time of a start, and when it last grew by ``_WORK_S``
    worked_at: float = 0.0
    kill_at: float = 0.0
    last_exit: int | None = None
    reason: str = ""
    excused: bool = False  # ended because another part died: not its own failure
    trouble: str = ""  # error of the last check, which left the state as it was

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)


@dataclass
class Supervisor:
    """Keeps parts running: starts dependencies first, in parallel where possible, and restarts dead parts."""

    parts: Sequence[Part]
    spawn: Callable[[Part], Process]
    clock: Callable[[], float]
    stopping: bool = False
    watched: dict[str, Watched] = field(init=False)
    _changes: list[Change] = field(init=False, default_factory=list)
    _dependencies: dict[str, set[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.watched = {part.name: Watched(part, since=self.clock()) for part in self.parts}
        defined: set[str] = set()
        for part in self.parts:
            missing = [n for n in (*part.needs, *part.bound) if n not in defined]
            if missing or part.name in defined:
                raise ValueError(
                    f"part {part.name!r} needs {missing}, expected earlier parts of the table "
                    f"({', '.join(sorted(defined))}), each once; fix runtime/supervision/part_table.py"
                )
            defined.add(part.name)
            # Transitive: a part that is done (topics created) may itself depend on a running one (broker).
            self._dependencies[part.name] = set(part.needs).union(
                *(self._dependencies[name] for name in part.needs)
            )

    @property
    def ready(self) -> bool:
        """Whether every part is ready or done."""
        return all(w.state in (State.READY, State.DONE) and not w.trouble for w in self.watched.values())

    @property
    def stopped(self) -> bool:
        return all(w.state is State.STOPPED for w in self.watched.values())

    def stop(self) -> None:
        """Starts the shutdown, dependents first. Keep calling ``tick`` until ``stopped``."""
        self.stopping = True

    def kill(self) -> None:
        """Kills every part at once."""
        self.stop()
        for w in self.watched.values():
            with self._apart(w):
                if w.process is not None:
                    w.process.kill()

    def tick(self) -> list[Change]:
        """Checks every process once and acts; returns the transitions. Never raises: a process that can't be
        checked keeps its state, and the next tick tries again."""
        now = self.clock()
        for w in self.watched.values():
            with self._apart(w):
                if w.process is not None:
                    self._observe(w, w.process, now)
                w.trouble = ""
        for w in self.watched.values():
            with self._apart(w):
                if self.stopping:
                    self._wind_down(w, now)
                elif self._may_start(w, now):
                    self._start(w, now)
        changes, self._changes = self._changes, []
        return changes

    @contextmanager
    def _apart(self, w: Watched) -> Iterator[None]:
        """Keeps one part's failing system calls from the others."""
        try:
            yield
        except Exception as error:
            w.trouble = f"can't be checked: {error!r}"

    def _observe(self, w: Watched, process: Process, now: float) -> None:
        status = process.exit_status()
        if status is not None:
            self._record_exit(w, status, now)
        elif w.state is State.STOPPING:
            if now >= w.kill_at:
                process.kill()
        elif w.part.shares or w.state is not State.READY:
            self._follow(w, process.beat(), now)
        if w.state is State.READY and now - w.since >= HEALTHY_S:
            w.failures = 0
        elif w.state is State.STARTING and now - max(w.since, w.worked_at) >= w.part.ready_s:
            self._terminate(w, now, f"not ready, and no progress in {w.part.ready_s:g} s")

    def _follow(self, w: Watched, beat: Beat | None, now: float) -> None:
        """Takes over what the part says of itself: that it is ready, and where it shares a process, all."""
        if beat is not None and beat.worked_s - w.worked_s >= _WORK_S:
            w.worked_s, w.worked_at = beat.worked_s, now
        if beat is None or not (w.part.shares or beat.state == "ready"):
            return
        w.starts += beat.restarts - w.thread_starts
        w.thread_starts = beat.restarts
        if (state := _REPORTED[beat.state]) is not w.state:
            self._move(w, state, now, beat.failure)

    def _record_exit(self, w: Watched, status: int, now: float) -> None:
        beat = w.process.beat() if w.process is not None else None
        failure = beat.failure if beat is not None else ""
        excused, w.excused, w.process, w.last_exit = w.excused, False, None, status
        lost = status == EXIT_LOG_LOST or (w.part.in_memory and w.state is State.READY)
        if self.stopping:
            self._move(w, State.STOPPED, now, f"exit {status}")
            return
        if w.part.once and status == 0 and w.state is not State.STOPPING:
            self._move(w, State.DONE, now)
            return
        if lost:
            self._move(w, State.LOST, now, failure or _LOST)
        elif excused:
            self._move(w, State.WAITING, now, w.reason)
        else:
            reason = w.reason if w.state is State.STOPPING else f"exit {status}"
            self._back_off(w, now, reason)
        self._end_bound(w, now)

    def _back_off(self, w: Watched, now: float, reason: str) -> None:
        w.failures += 1
        w.retry_at = now + delay_s(w.failures)
        self._move(w, State.BACKOFF, now, reason)

    def _end_bound(self, dead: Watched, now: float) -> None:
        for w in self.watched.values():
            if dead.part.name in w.part.bound and w.process is not None:
                w.excused = True
                if w.state is not State.STOPPING:
                    self._terminate(w, now, f"{dead.part.name} ended")

    def _may_start(self, w: Watched, now: float) -> bool:
        due = w.state is State.WAITING or (w.state is State.BACKOFF and now >= w.retry_at)
        needed = (self.watched[name].state for name in w.part.needs)
        return due and w.process is None and all(s in (State.READY, State.DONE) for s in needed)

    def _start(self, w: Watched, now: float) -> None:
        w.starts, w.thread_starts, w.worked_s = w.starts + 1, 0, 0.0
        try:
            w.process = self.spawn(w.part)
        except Exception as error:
            self._back_off(w, now, f"cannot be started: {error}")
            return
        self._move(w, State.STARTING, now, w.reason)

    def _wind_down(self, w: Watched, now: float) -> None:
        if w.process is None:
            if w.state is not State.STOPPED:
                self._move(w, State.STOPPED, now)
            return
        needed = any(
            user.process is not None and w.part.name in self._dependencies[user.part.name]
            for user in self.watched.values()
        )
        if w.state is not State.STOPPING and not needed:
            self._terminate(w, now, "asked to stop")

    def _terminate(self, w: Watched, now: float, reason: str) -> None:
        assert w.process is not None
        w.process.terminate()
        w.kill_at = now + w.part.grace_s
        self._move(w, State.STOPPING, now, reason)

    def _move(self, w: Watched, state: State, now: float, reason: str = "") -> None:
        w.state, w.since, w.reason = state, now, reason
        self._changes.append(Change(w.part.name, state, reason))
