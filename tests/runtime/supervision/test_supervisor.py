"""The supervisor's core with fake processes and a fake clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.process.part_process import EXIT_LOG_LOST, HEALTHY_S, Beat, delay_s
from runtime.supervision.supervisor import Part, State, Supervisor


class FakeProcess:
    """Does what the test says; obeys TERM at once unless it is stubborn."""

    def __init__(self, part, pid, stubborn=False):
        self.part, self.pid, self.stubborn = part, pid, stubborn
        self.status, self.is_ready, self.asked, self.killed = None, False, 0, False
        self.said, self.reports, self.restarts, self.worked_s = "", "starting", 0, 0.0

    def exit_status(self):
        return self.status

    def beat(self):
        return Beat(
            part=self.part.name, pid=self.pid, started_ms=0, failure=self.said,
            state="ready" if self.is_ready else self.reports, restarts=self.restarts,
            worked_s=self.worked_s,
        )  # fmt: skip

    def terminate(self):
        self.asked += 1
        if not self.stubborn and self.status is None:
            self.status = 0

    def kill(self):
        self.killed = True
        if self.status is None:
            self.status = -9


class World:
    """A supervisor over fake processes; ``started`` is every process ever started, in order."""

    def __init__(self, parts, stubborn=(), refuse=0):
        self.now, self.started, self.stubborn, self.refuse = 0.0, [], set(stubborn), refuse
        self.supervisor = Supervisor(parts, self.spawn, lambda: self.now)

    def spawn(self, part):
        if self.refuse:
            self.refuse -= 1
            raise OSError("no more processes")
        process = FakeProcess(part, 100 + len(self.started), part.name in self.stubborn)
        self.started.append(process)
        return process

    def tick(self, seconds=0.1):
        self.now += seconds
        return self.supervisor.tick()

    def process(self, name):
        return self.supervisor.watched[name].process

    def state(self, name):
        return self.supervisor.watched[name].state

    def names(self):
        return [process.part.name for process in self.started]

    def make_all_ready(self):
        for _ in range(20):
            for watched in self.supervisor.watched.values():
                if watched.process is not None:
                    watched.process.is_ready = True
                    if watched.part.once:
                        watched.process.status = 0
            self.tick()
        assert self.supervisor.ready


LOOP = [
    Part("log", "m:log", once=True),
    Part("valkey", "m:valkey"),
    Part("ray", "m:ray"),
    Part("fold", "m:fold", needs=("log", "valkey")),
    Part("shards", "m:shards", needs=("log", "ray"), bound=("ray",)),
    Part("trainer", "m:trainer", needs=("shards",), bound=("ray",)),
]


def test_what_needs_nothing_starts_at_once_and_the_rest_when_its_needs_are_ready():
    world = World(LOOP)
    world.tick()
    assert world.names() == ["log", "valkey", "ray"]
    world.process("log").status = 0
    world.tick()
    assert world.state("log") is State.DONE and world.names()[3:] == []
    world.process("valkey").is_ready = True
    world.tick()
    assert world.names()[3:] == ["fold"]
    world.process("ray").is_ready = True
    world.tick()
    assert world.names()[4:] == ["shards"]
    assert not world.supervisor.ready
    world.make_all_ready()


def test_a_dead_part_starts_again_with_growing_delay():
    world = World([Part("fold", "m:fold")])
    waits = []
    for _ in range(8):
        world.tick(0.01)
        while world.process("fold") is None:
            world.tick(0.01)
        world.process("fold").status = 1
        died = world.now + 0.01
        world.tick(0.01)
        assert world.state("fold") is State.BACKOFF
        while world.process("fold") is None:
            world.tick(0.01)
        waits.append(world.now - died)
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0], abs=0.02)
    watched = world.supervisor.watched["fold"]
    assert watched.restarts == 8 and watched.last_exit == 1


def test_what_lost_its_log_isnt_started_again():
    world = World([Part("joiner", "m:joiner"), Part("fold", "m:fold")])
    world.make_all_ready()
    world.process("joiner").status = EXIT_LOG_LOST
    for _ in range(5):
        world.tick(60)
    assert world.state("joiner") is State.LOST and world.names() == ["joiner", "fold"]
    lost = [name for name, w in world.supervisor.watched.items() if w.state is State.LOST]
    assert lost == ["joiner"] and not world.supervisor.ready
    assert "new state folder" in world.supervisor.watched["joiner"].reason
    world.process("fold").said = "LogLost: retention passed it"  # what it says itself goes before
    world.process("fold").status = EXIT_LOG_LOST
    world.tick()
    assert world.supervisor.watched["fold"].reason == "LogLost: retention passed it"
    world.supervisor.stop()
    world.tick()
    world.tick()
    assert world.supervisor.stopped


def test_a_store_in_memory_isnt_started_again_empty_but_until_it_is_ready_it_is():
    world = World([Part("broker", "m:broker", in_memory=True), Part("fold", "m:fold", ("broker",))])
    world.tick()
    world.process("broker").status = 1  # its port was taken, say: nothing was lost
    world.tick()
    assert world.state("broker") is State.BACKOFF
    world.tick(1)
    world.make_all_ready()
    world.process("broker").status = -9
    world.tick()
    world.tick(60)
    assert world.state("broker") is State.LOST and world.state("fold") is State.READY


def test_a_minute_of_health_resets_the_delay():
    world = World([Part("fold", "m:fold")])
    world.tick()
    for _ in range(5):
        world.process("fold").status = 1
        world.tick()
        world.tick(11)
    assert world.supervisor.watched["fold"].failures == 5
    world.process("fold").is_ready = True
    world.tick()
    world.tick(HEALTHY_S - 1)
    assert world.supervisor.watched["fold"].failures == 5
    world.tick(2)
    world.process("fold").status = -9
    world.tick()
    world.tick(0.21)
    assert world.state("fold") is State.STARTING


def test_what_is_bound_starts_again_with_it_and_is_excused():
    world = World(LOOP)
    world.make_all_ready()
    fold = world.process("fold")
    world.process("ray").status = -9
    world.tick()
    assert world.state("ray") is State.BACKOFF
    assert world.state("shards") is State.WAITING and world.state("trainer") is State.WAITING
    assert world.process("fold") is fold and fold.asked == 0
    world.tick(0.3)
    assert world.names()[-1] == "ray" and world.state("shards") is State.WAITING
    world.make_all_ready()
    assert world.names()[-2:] == ["shards", "trainer"]
    assert world.supervisor.watched["shards"].failures == 0
    assert world.supervisor.watched["shards"].restarts == 1


def test_a_clean_exit_is_a_death_too_unless_the_part_runs_once():
    world = World([Part("log", "m:log", once=True), Part("fold", "m:fold")])
    world.tick()
    for process in world.started:
        process.status = 0
    world.tick()
    assert world.state("log") is State.DONE and world.state("fold") is State.BACKOFF


def test_a_part_that_never_gets_ready_is_ended_and_tried_again():
    world = World([Part("fold", "m:fold", ready_s=5, grace_s=2)], stubborn=["fold"])
    world.tick()
    first = world.process("fold")
    world.tick(5)
    assert first.asked == 1 and world.state("fold") is State.STOPPING
    world.tick(1.9)
    assert not first.killed
    world.tick(0.2)
    assert first.killed
    changes = world.tick()
    assert [(c.state, c.reason) for c in changes] == [(State.BACKOFF, "not ready, and no progress in 5 s")]


def test_a_part_that_works_is_not_ended_however_long_its_start_takes():
    world = World([Part("fold", "m:fold", ready_s=5)])
    world.tick()
    process = world.process("fold")
    for second in range(0, 60, 4):
        process.worked_s = float(second)
        world.tick(4)
    assert not process.asked and world.state("fold") is State.STARTING
    process.worked_s += 0.9  # waiting takes a little time, too
    world.tick(4)
    world.tick(2)
    assert process.asked == 1


def test_stopping_keeps_what_is_needed_by_way_of_a_part_that_is_done():
    broker = Part("broker", "m:broker")
    log = Part("log", "m:log", needs=("broker",), once=True)
    world = World([broker, log, Part("archive", "m:archive", needs=("log",))], stubborn=("archive",))
    world.make_all_ready()
    world.supervisor.stop()
    world.tick()
    assert world.state("archive") is State.STOPPING and world.state("broker") is State.READY
    world.process("archive").status = 0
    world.tick()
    world.tick()
    assert world.supervisor.stopped


def test_stopping_goes_backwards_and_kills_the_stubborn():
    world = World(LOOP, stubborn=["shards"])
    world.make_all_ready()
    world.supervisor.stop()
    world.tick()
    by_name = {process.part.name: process for process in world.started}
    assert by_name["trainer"].asked and by_name["fold"].asked
    assert not by_name["shards"].asked and not by_name["ray"].asked
    world.tick()
    assert by_name["shards"].asked == 1 and by_name["valkey"].asked and not by_name["ray"].asked
    world.tick(10.1)
    assert by_name["shards"].killed and not by_name["ray"].asked
    for _ in range(3):
        world.tick()
    assert world.supervisor.stopped and by_name["ray"].asked == 1
    assert len(world.started) == len(LOOP)


def test_stopping_does_not_restart_what_dies():
    world = World(LOOP)
    world.tick()
    world.process("ray").status = 1
    world.supervisor.stop()
    for _ in range(100):
        world.tick(1)
    assert world.supervisor.stopped and world.names() == ["log", "valkey", "ray"]


def test_kill_spares_nobody_time():
    world = World(LOOP, stubborn=[part.name for part in LOOP])
    world.make_all_ready()
    world.supervisor.kill()
    for _ in range(2):
        world.tick()
    assert world.supervisor.stopped


def test_what_cannot_be_started_is_tried_again():
    world = World([Part("fold", "m:fold")], refuse=2)
    changes = world.tick()
    assert changes[0].reason == "cannot be started: no more processes"
    world.tick(0.3)
    world.tick(0.5)
    assert world.state("fold") is State.STARTING


def test_the_table_must_be_in_order():
    with pytest.raises(ValueError, match="'fold' needs \\['log'\\]"):
        World([Part("fold", "m:fold", needs=("log",)), Part("log", "m:log")])
    with pytest.raises(ValueError, match="each once"):
        World([Part("log", "m:log"), Part("log", "m:log")])


def test_delays_never_overflow():
    assert delay_s(1) == 0.2 and delay_s(10_000) == 10.0


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from([part.name for part in LOOP]),
        st.sampled_from(["ready", "die", "exit", "nothing"]),
        st.floats(0.01, 15),
    ),
    max_size=60,
)


@given(ACTIONS, st.sets(st.sampled_from([part.name for part in LOOP])))
@settings(deadline=None)
def test_whatever_happens_there_is_one_process_a_part_and_everything_ends(actions, stubborn):
    world = World(LOOP, stubborn)
    for name, action, seconds in actions:
        process = world.process(name)
        if process is not None and process.status is None:
            if action == "ready":
                process.is_ready = True
            elif action != "nothing":
                process.status = 0 if action == "exit" else 1
        before = len(world.started)
        world.tick(seconds)
        for started in world.started[before:]:
            needs = started.part.needs
            assert all(world.state(need) in (State.READY, State.DONE) for need in needs)
        alive = [process.part.name for process in world.started if process.status is None]
        assert len(alive) == len(set(alive))
    world.supervisor.stop()
    for _ in range(60):
        world.tick(1)
    assert world.supervisor.stopped
    assert all(process.status is not None for process in world.started)


@given(ACTIONS)
@settings(deadline=None)
def test_once_the_dying_ends_everything_comes_up(actions):
    world = World(LOOP)
    for name, action, seconds in actions:
        process = world.process(name)
        if process is not None and process.status is None and action != "nothing":
            process.is_ready = action == "ready"
            process.status = None if action == "ready" else 1
        world.tick(seconds)
    for _ in range(100):
        for watched in world.supervisor.watched.values():
            if watched.process is not None:
                watched.process.is_ready = True
                if watched.part.once and watched.process.status is None:
                    watched.process.status = 0
        world.tick(1)
    assert world.supervisor.ready


def test_a_part_that_shares_a_process_is_followed_by_its_heartbeat():
    """Its thread fails and starts again by itself, counted; one whose log is lost leaves the others alone."""
    world = World([Part("joiner", "m:joiner", shares="learning"), Part("counters", "m:counters")])
    world.make_all_ready()
    joiner = world.process("joiner")
    joiner.is_ready, joiner.reports, joiner.said = False, "failed", "ValueError: no luck"
    for _ in range(200):  # it isn't started by the supervisor
        world.tick()
    watched = world.supervisor.watched["joiner"]
    assert (watched.state, watched.reason) == (State.BACKOFF, "ValueError: no luck")
    assert not world.supervisor.ready and len(world.started) == 2
    joiner.reports, joiner.said, joiner.restarts = "starting", "", 3
    world.tick()
    assert world.state("joiner") is State.STARTING and watched.restarts == 3
    world.tick(watched.part.ready_s - 1)
    assert joiner.asked == 0
    joiner.is_ready = True
    world.tick()
    assert world.state("joiner") is State.READY and watched.restarts == 3
    joiner.status = -9
    world.tick()
    world.tick(1.0)
    assert world.process("joiner") is not joiner and watched.restarts == 4
    lost = world.process("joiner")
    lost.reports, lost.said = "lost", "LogLost: retention passed it"
    for _ in range(5):
        world.tick(60)
    assert (watched.state, watched.reason) == (State.LOST, "LogLost: retention passed it")
    assert world.state("counters") is State.READY and lost.asked == 0 and watched.restarts == 4
    world.supervisor.stop()
    for _ in range(3):
        world.tick()
    assert world.supervisor.stopped
