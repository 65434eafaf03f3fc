"""A live system without simulated viewers whose events have known ids, and the audit of its log."""

import contextlib
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, Self

from benchmarks.harness import exactly_once
from benchmarks.harness.commands import Figures
from benchmarks.harness.known_events import USERS, KnownEvents
from benchmarks.harness.live_system import SLOW_START_S, HealthTarget, Live, end
from benchmarks.harness.serve_doors import check_platform, sigterm_as_exit
from examples.short_video.world import World
from recsys.config.system_config import Config, JoinConfig
from recsys.events.records import EVENTS, EXAMPLES, STEPS, Step, unpack
from recsys.log.protocol import newest_first
from recsys.process.open_log import open_log
from runtime.supervision import launch_plan, run_file
from runtime.supervision.processes import alive

_LOCKED_S: Final = 10.0  # for the lock of a killed supervisor to go
_SETTLED_S: Final = 150.0
_WINDOW_S: Final = 10.0  # join.window_s, so that the last examples close soon
_ZERO: Final = (
    "unacknowledged", "rejected", "lost", "sessions_differ", "session_events_differ",
    "counters_differ", "examples_differ", "examples_twice", "steps_missing", "examples_in_no_step",
    "examples_in_two_steps", "steps_unlearned", "weights_differ",
)  # fmt: skip


def audited_config() -> Config:
    """Configuration on free ports whose examples close soon, without quotas."""
    base = Config()
    return replace(
        base,
        serve=replace(base.serve, port=0, dashboard_port=0),
        join=JoinConfig(window_s=_WINDOW_S),
        step=replace(base.step, every_ms=1_000, soonest_ms=1_000),
        access=replace(base.access, user_lists=0, user_events=0),
    )


class AuditedSystem(Live):
    """One `recsys up`; as a context it starts, waits until it is whole, and ends."""

    viewers: KnownEvents

    def __init__(self, desired: Config) -> None:
        super().__init__(desired, World(seed=5, users=USERS, items=300, topics=6))
        self._desired, self._stack = desired, ExitStack()

    def __enter__(self) -> Self:
        check_platform()
        with ExitStack() as stack:
            stack.enter_context(sigterm_as_exit())
            stack.callback(end, Path(self._desired.state))
            self.up()
            self.publish_world()
            self.viewers = KnownEvents(self)
            whole = HealthTarget(self.config.serve.replicas, 3)
            if self.wait_healthy(whole, SLOW_START_S) is None:
                raise RuntimeError(
                    f"after {SLOW_START_S:.0f} s the system isn't whole, expected all parts ready and steps "
                    "learned: run it with nothing beside it"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def up(self) -> None:
        """Starts the system, also after its supervisor was killed. Raises RuntimeError where it ends."""
        from runtime.cli.up import start

        until_s = time.monotonic() + _LOCKED_S
        while run_file.holder(self.state) and time.monotonic() < until_s:
            time.sleep(0.05)  # threads of a killed process end after it
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
            status = start(self._desired, detach=True)
        running = run_file.read(self.state)
        if status and not (running and alive(running.supervisor)):  # a slow machine takes longer
            raise RuntimeError(f"`recsys up` ended with {status}, expected 0: see its output")
        self.config, _ = launch_plan.read(self.state)

    def unhealthy_reason(self, expected: HealthTarget) -> str:
        """As of any live system; also a part or supervisor that has ended, which the run file shows later."""
        running = run_file.read(self.state)
        if running is None or not alive(running.supervisor):
            return "no supervisor runs"
        ended = [p.name for p in running.parts if p.process and not alive(p.process)]
        if ended:
            return f"ended: {', '.join(ended)}"
        return super().unhealthy_reason(expected)

    def audit(self) -> Figures:
        """Stops viewers and system; checks that everything acknowledged was counted and learned once.
        ``violations`` names the figures that must be 0 and aren't."""
        viewers, users = self.viewers, [f"u{number}" for number in range(USERS)]
        viewers.stop()
        settled = self._settle()
        sessions = exactly_once.stored_sessions(self.config, users)
        end(self.state)
        figures = {
            "events_sent": viewers.sent,
            "unacknowledged": viewers.sent - len(viewers.acknowledged) - len(viewers.rejected),
            "rejected": len(viewers.rejected),
            "lists_unanswered": {str(k): n for k, n in sorted(viewers.unanswered.items())},
            "settled": settled,
            **exactly_once.audit(self.config, viewers.acknowledged, sessions),
        }
        # An event that was sent again may be on the log twice: folds count it once.
        return figures | {"violations": [name for name in _ZERO if figures[name]]}

    def _settle(self) -> bool:
        """Waits until all events are folded, joined, cut into steps and learned; returns whether they are."""
        with contextlib.closing(open_log(self.config)) as log:
            goal = [log.end(EVENTS, p) for p in range(log.partitions(EVENTS))]
            until_s, since_s, before = time.monotonic() + _SETTLED_S, time.monotonic(), [-1]
            while time.monotonic() < until_s:
                time.sleep(1.0)
                newest = [unpack(r.value, Step).step for r in islice(newest_first(log, STEPS, 0), 1)]
                now = newest + [log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))]
                folded = exactly_once.folded_to(self.config)
                is_folded = all(at >= to for at, to in zip(folded, goal, strict=True))
                if now != before or not is_folded or self.step() < newest[0]:
                    since_s, before = time.monotonic(), now
                elif time.monotonic() - since_s > _WINDOW_S + 5:
                    return True
        return False
