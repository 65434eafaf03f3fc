"""The parts of a system in the calling process, on the state folder of ``recsys up``: no Ray, no Valkey.

Either each part follows the log in a thread of its own, by the runner of all parts, or ``settle`` gives all
of them turns until nothing is left to do. An event loop in a thread answers.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import torch

from recsys.app.definition import App
from recsys.app.kept_definition import keep_definition
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.process.clock_file import ClockKeeper, clock_of, start_clock
from recsys.process.fold import PartFold
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, PartThreads, Stop, read_beat, run_folder
from recsys.process.slot_file import SlotFile
from recsys.process.turn_pace import TurnPace
from runtime.parts.folds import with_archive
from runtime.supervision import launch_plan, run_file
from runtime.supervision.launch_plan import Plan
from runtime.supervision.part_table import create_log
from runtime.supervision.processes import identify
from runtime.supervision.run_file import PartRecord, Running
from runtime.supervision.space_watch import SpaceWatch
from serving.service import Service
from serving.sessions import counter_loop, session_loop
from serving.sessions.open_store import session_reader
from training import archive_part
from training.candidates import director
from training.continual import local_learner
from training.continual.local_learner import LocalLearner
from training.joining import joiner_loop
from training.steps import sequencer_loop

T = TypeVar("T")
_CATCH_UP_S: Final = 600.0
_HOUSE_S: Final = 0.5
_COMMIT_S: Final = 5.0


class OneProcess:
    """One system. ``in_threads``: learns behind the calls; otherwise ``settle`` learns.

    Raises AlreadyRuns where another process has the state folder, ValueError for a configuration that needs
    other processes, and LogLost where the folder belongs to another log.
    """

    def __init__(
        self, config: Config, app: App | None = None, file: Path | None = None, in_threads: bool = True,
        plan: Plan | None = None,
    ) -> None:  # fmt: skip
        """``config``: as of ``in_one_process``. ``app``: the definition in ``file``, which the state folder
        keeps. ``plan``: of a system whose commands find it."""
        self.config = config
        self._settling = threading.Lock()
        self._asked, self._threads = threading.Event(), list[PartThreads | threading.Thread]()
        self._folds: list[PartFold] = []
        self._house_s = 0.0
        torch.set_num_threads(1)  # the order of a sum must not depend on the number of cores
        with ExitStack() as stack:
            stack.enter_context(run_file.lock(config.state))
            run_file.end_leftovers(config.state)
            start_clock(config)
            keep_definition(config, app, file)
            launch_plan.write(config, plan or Plan.of_one_process())
            self._running = RunningFile(config, plan) if plan else None
            create_log(config, Stop())
            self._clock = None if config.clock.is_machine else ClockKeeper(config.state)
            self._space = SpaceWatch(config.state, config.disk)
            self._keep_house()
            self.log = open_log(config)
            stack.callback(self.log.close)
            self._loop = asyncio.new_event_loop()
            stack.callback(self._loop.close)
            if in_threads:
                stack.callback(self._end_threads)
                self._start_threads()
            else:
                self._folds = [stack.enter_context(fold) for fold in _folds(config)]
                self.learn()
            answering = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)
            answering.start()
            stack.callback(answering.join)
            stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
            self.service = Service(config, self.log, session_reader(config), clock_of(config))
            self.run(self._start_service())
            stack.callback(lambda: self.run(self.service.stop()))
            self._closing = stack.pop_all()

    @property
    def learner(self) -> LocalLearner:
        """The learner, in turns. Raises LookupError where threads learn."""
        for fold in self._folds:
            if isinstance(fold, LocalLearner):
                return fold
        raise LookupError("threads learn: their learner belongs to one of them")

    def close(self) -> None:
        """Learns what is due, if it isn't learned yet, and ends with last snapshots."""
        if self._folds:
            self.settle()
        self._closing.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the event loop that answers, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _start_service(self) -> None:
        service = self.service
        if not self._folds:
            await service.start()
            await service.caught_up(_CATCH_UP_S)
            return
        service.callers.warn_without_secret()
        service.writer.start()
        service.live.followers.catch_up(lambda: False)

    # --- in turns ---

    def settle(self) -> None:
        """Folds, learns and applies all that is on the log. Raises what a part raises: call it again."""
        until_s = time.monotonic() + _COMMIT_S
        while self.service.writer.kept_bytes and time.monotonic() < until_s:
            time.sleep(0.0002)
        with self._settling:
            self._keep_house()
            self.learn()
            self._follow()

    def learn(self) -> int:
        """Gives each part turns until none has anything to do; returns the number of records."""
        moved, total = 1, 0
        while moved:
            moved = sum(fold.turn() for fold in self._folds)
            total += moved
        return total

    def _follow(self) -> None:
        """Reads and applies what is new on the log, for all models that answer."""
        service = self.service
        control = service.live.control
        service.canary.update(control.canary, control.arms)
        for followers in (service.live.followers, *(v.followers for v in service.canary.variants.all)):
            if not followers.ready:
                followers.catch_up(lambda: False)
            full = True
            while full:
                before = followers.weights.offset
                batch = followers.read()
                if batch:
                    done: Future[None] = Future()
                    self._loop.call_soon_threadsafe(_call, done, partial(followers.apply, batch))
                    done.result()
                full = batch.full or followers.weights.offset > before

    # --- in threads ---

    def _start_threads(self) -> None:
        threads = PartThreads(
            _bodies(self.config, self._running is not None), run_folder(self.config.state), self._asked,
            TurnPace(),
        )  # fmt: skip
        threads.start()
        house = threading.Thread(target=self._keep_house_until_asked, name="house", daemon=True)
        house.start()
        self._threads = [threads, house]

    def _end_threads(self) -> None:
        self._asked.set()
        for thread in self._threads:
            thread.join()

    def _keep_house_until_asked(self) -> None:
        while not self._asked.wait(_HOUSE_S):
            self._keep_house()

    def _keep_house(self) -> None:
        """Watches the disk, and lets event time pass."""
        if time.monotonic() >= self._house_s:
            self._house_s = time.monotonic() + _HOUSE_S
            self._space.turn()
            if self._clock is not None:
                self._clock.extend()
            if self._running is not None:
                self._running.write()


def in_one_process(config: Config) -> Config:
    """The configuration with the services that one process needs. Raises ValueError for others."""
    if config.log.url == launch_plan.EMBEDDED_KAFKA:
        raise ValueError(
            "log.url is kafka://, expected sqlite or the address of a broker that runs: one process starts "
            "none; `recsys up` does"
        )
    if config.sessions.url == "embedded":
        config = replace(config, sessions=replace(config.sessions, url="sqlite"))
    serve = replace(config.serve, retrieval_shards=0)
    return replace(config, serve=serve, state=str(Path(config.state).resolve()))


def _folds(config: Config) -> list[AbstractContextManager[PartFold]]:
    """The folds of all parts that learn, in the order of an event's way."""
    whole = with_archive(config)
    if config.step.soonest_ms:  # nobody waits for a step that isn't full
        config = replace(config, step=replace(config.step, soonest_ms=0))
    return [
        session_loop.opened(config, whole=whole),
        counter_loop.opened(config, whole=whole),
        joiner_loop.opened(config),
        director.opened(config),
        sequencer_loop.opened(config),
        local_learner.opened(config),
        archive_part.opened(config),
    ]


def _bodies(config: Config, has_room: bool) -> dict[str, Callable[[Stop], None]]:
    """The same parts, as they run in threads, and the control room."""
    whole = with_archive(config)
    room: dict[str, Callable[[Stop], None]] = {}
    if has_room:
        from runtime.control_room.part import run  # not for those who call a Recommender

        room["control-room"] = partial(run, config)
    return room | {
        "session-fold": lambda stop: session_loop.run(config, stop, whole=whole),
        "counters": lambda stop: counter_loop.run(config, stop, whole=whole),
        "joiner": partial(joiner_loop.run, config),
        "director": partial(director.run, config),
        "sequencer": partial(sequencer_loop.run, config),
        "learner": partial(local_learner.run, config),
        "archive": partial(archive_part.run, config),
    }


class RunningFile:
    """``STATE/run/up.json`` of one process: by it `recsys status`, `down` and the control room find it."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self._folder, self._digest = run_folder(config.state), plan.config_digest
        self._file = SlotFile(self._folder / run_file.FILE)
        self._me, self._started_ms = identify(os.getpid()), machine_ms()
        self._names = [*_bodies(config, has_room=True), "serve"]
        self._serve = Heartbeat("serve", self._folder / "serve.json")

    def write(self, stopping: bool = False) -> None:
        self._serve.turned()
        self._serve.ready()
        self._serve.write()
        beats = [read_beat(self._folder / f"{name}.json") for name in self._names]
        parts = [
            PartRecord(
                name=name, state=beat.state, reason=beat.failure, since_ms=beat.started_ms,
                restarts=beat.restarts, process=self._me,
            )
            for name, beat in zip(self._names, beats, strict=True)
            if beat and beat.pid == self._me.pid
        ]  # fmt: skip
        running = Running(
            supervisor=self._me, config_digest=self._digest, started_ms=self._started_ms,
            time_ms=machine_ms(), stopping=stopping, parts=parts,
        )  # fmt: skip
        self._file.write(msgspec.json.encode(running))


def _call(done: "Future[None]", act: Callable[[], None]) -> None:
    try:
        act()
        done.set_result(None)
    except BaseException as error:
        done.set_exception(error)
