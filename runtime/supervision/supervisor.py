"""The supervisor's core: which part to start, restart or end now, from what is seen of the processes.

Pure: processes and the clock are handed in, so that crashes and time are inputs of a test. ``tick`` is called
some ten times a second; it never waits. It knows nothing of what a part does, only what it needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from recsys.process.part_process import EXIT_LOG_LOST

FIRST_DELAY_S: Final = 0.2
LONGEST_DELAY_S: Final = 10.0
HEALTHY_S: Final = 60.0  # a part that was ready so long starts again without delay


@dataclass(frozen=True)
class Part:
    """One process of the system."""

    name: str
    target: str  # "module:function", called as function(config, stop)
    needs: tuple[str, ...] = ()  # starts when these are ready, ends before them
    bound: tuple[str, ...] = ()  # ends and starts again where one of these died
    once: bool = False  # runs to its end: done with exit status 0
    ready_s: float = 120.0  # killed and tried again where it isn't ready by then
    grace_s: float = 10.0  # between TERM and KILL
    in_memory: bool = False  # what it holds ends with it: it isn't started again, empty
    nice: int = 0  # how far it steps back for the others where processors are few


class State(StrEnum):
    WAITING = "waiting"  # for what it needs
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    BACKOFF = "backoff"  # died; starts again at its time
    LOST = "lost"  # died, and can't go on: what it needs to is lost. Only a person can help
    STOPPING = "stopping"  # TERM sent
    STOPPED = "stopped"


class Process(Protocol):
    """A started process, as far as the supervisor can see it."""

    @property
    def pid(self) -> int: ...

    def exit_status(self) -> int | None:
        """None while it runs; negative: ended by that signal."""

    def ready(self) -> bool: ...

    def failure(self) -> str:
        """What it says it ended of; empty where it says nothing."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


# Said where a part says nothing itself.
_LOST: Final = (
    "the log it worked on is lost: end everything (`recsys down`), start with a new state folder"
)


@dataclass(frozen=True)
class Change:
    """A part came to another state, and why."""

    part: str
    state: State
    reason: str = ""


@dataclass
class Watched:
    """What is known of one part. Read it; only the supervisor changes it."""

    part: Part
    state: State = State.WAITING
    process: Process | None = None
    since: float = 0.0  # when it came to this state
    starts: int = 0
    failures: int = 0  # in a row, without ``HEALTHY_S`` of being ready between
    retry_at: float = 0.0
    kill_at: float = 0.0
    last_exit: int | None = None
    reason: str = ""
    excused: bool = False  # it ends because another died: that is no failure of its own

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)


def delay_s(failures: int) -> float:
    """How long to wait after the so-manyth failure in a row: 0.2 s, doubling, at most 10 s."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 30))


@dataclass
class Supervisor:
    """Keeps parts running: dependencies first, in parallel where they can, again where one died."""

    parts: Sequence[Part]
    spawn: Callable[[Part], Process]
    clock: Callable[[], float]
    stopping: bool = False
    watched: dict[str, Watched] = field(init=False)
    _changes: list[Change] = field(init=False, default_factory=list)
    _behind: dict[str, set[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.watched = {part.name: Watched(part, since=self.clock()) for part in self.parts}
        known: set[str] = set()
        for part in self.parts:
            missing = [n for n in (*part.needs, *part.bound) if n not in known]
            if missing or part.name in known:
                raise ValueError(
                    f"part {part.name!r} needs {missing}, expected parts that stand before it in the "
                    f"table ({', '.join(sorted(known))}), each once; fix runtime/supervision/part_table.py"
                )
            known.add(part.name)
            # Also what is needed by way of a part that is done: a log's topics are made, its broker runs.
            behind = set(part.needs).union(*(self._behind[name] for name in part.needs))
            self._behind[part.name] = behind

    @property
    def ready(self) -> bool:
        """Whether everything runs (or is done)."""
        return all(w.state in (State.READY, State.DONE) for w in self.watched.values())

    @property
    def stopped(self) -> bool:
        return all(w.state is State.STOPPED for w in self.watched.values())

    def stop(self) -> None:
        """From now on everything ends, each part after those that need it: tick on until ``stopped``."""
        self.stopping = True

    def kill(self) -> None:
        """Ends everything at once, without grace."""
        self.stop()
        for w in self.watched.values():
            if w.process is not None:
                w.process.kill()

    def tick(self) -> list[Change]:
        """Looks at every process once and acts; returns what changed."""
        now = self.clock()
        for w in self.watched.values():
            if w.process is not None:
                self._observe(w, w.process, now)
        for w in self.watched.values():
            if self.stopping:
                self._wind_down(w, now)
            elif self._may_start(w, now):
                self._start(w, now)
        changes, self._changes = self._changes, []
        return changes

    def _observe(self, w: Watched, process: Process, now: float) -> None:
        status = process.exit_status()
        if status is not None:
            self._ended(w, status, now)
        elif w.state is State.STOPPING:
            if now >= w.kill_at:
                process.kill()
        elif w.state is State.READY:
            if now - w.since >= HEALTHY_S:
                w.failures = 0
        elif process.ready():
            self._move(w, State.READY, now)
        elif now - w.since >= w.part.ready_s:
            self._terminate(w, now, f"not ready after {w.part.ready_s:g} s")

    def _ended(self, w: Watched, status: int, now: float) -> None:
        said = w.process.failure() if w.process is not None else ""
        excused, w.excused, w.process, w.last_exit = w.excused, False, None, status
        lost = status == EXIT_LOG_LOST or (w.part.in_memory and w.state is State.READY)
        if self.stopping:
            self._move(w, State.STOPPED, now, f"exit {status}")
            return
        if w.part.once and status == 0 and w.state is not State.STOPPING:
            self._move(w, State.DONE, now)
            return
        if lost:
            self._move(w, State.LOST, now, said or _LOST)
        elif excused:
            self._move(w, State.WAITING, now, w.reason)
        else:
            reason = w.reason if w.state is State.STOPPING else f"exit {status}"
            self._failed(w, now, reason)
        self._end_bound(w, now)

    def _failed(self, w: Watched, now: float, reason: str) -> None:
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
        return due and all(
            self.watched[name].state in (State.READY, State.DONE) for name in w.part.needs
        )

    def _start(self, w: Watched, now: float) -> None:
        w.starts += 1
        try:
            w.process = self.spawn(w.part)
        except OSError as error:
            self._failed(w, now, f"cannot be started: {error}")
            return
        self._move(w, State.STARTING, now, w.reason)

    def _wind_down(self, w: Watched, now: float) -> None:
        if w.process is None:
            if w.state is not State.STOPPED:
                self._move(w, State.STOPPED, now)
            return
        needed = any(
            other.process is not None and w.part.name in self._behind[other.part.name]
            for other in self.watched.values()
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
