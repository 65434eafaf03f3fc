"""The continual trainer on a real Ray cluster, killed in every way: the weights are those of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.rpc.shard_actor import actor_name
from recsys.clock import machine_ms
from recsys.config.system_config import TrainerConfig
from recsys.events.records import DELTAS, Delta, unpack
from recsys.features import feature_set_file as feature_sets
from recsys.model.model import build_model
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Beat, read_beat
from runtime.supervision import launch_plan as plans
from runtime.supervision import processes
from runtime.supervision.supervisor_loop import part_command, part_environment
from tests.support.training.small_feed import FEATURES, append_examples, example, toy_config
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import MAIN, spec_of
from training.steps.sequencer_loop import SequencerLoop

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.pairs(15)]


class System:
    """Ray, shards and trainer as ``recsys up`` starts them; the test is joiner and sequencer itself."""

    def __init__(self, state: Path) -> None:
        base = toy_config(str(state), shards=2)
        base = replace(
            base,
            serve=replace(base.serve, port=0, dashboard=False, dashboard_port=0),
            log=replace(base.log, partitions=3),
            trainer=TrainerConfig(workers=2, cpus_per_worker=0.1),
        )
        self.config, self.plan = plans.resolve(base)
        plans.write(self.config, self.plan)
        feature_sets.write_feature_set(self.config, FEATURES)
        self.log = open_log(self.config)
        create_topics(self.log, self.config)
        self.sequencer = SequencerLoop(self.log, self.config, FEATURES, machine_ms)
        self.made = 0
        model = build_model(FEATURES, self.config.model)
        self.client = LocalClient.fresh(spec_of(self.config), model.read_dense())
        self.alone = Worker(0, 1, self.log, self.client, Learner(model), self.config)
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("ray", "shards", "trainer"):
            self.start(name)

    def start(self, name: str, ready_s: float = 180) -> None:
        out = (Path(self.config.state) / "run" / f"{name}.out").open("ab")
        self.parts[name] = subprocess.Popen(
            part_command(name, self.config.state), stdout=out, stderr=out,
            env=part_environment(self.config, self.plan), start_new_session=True,
        )  # fmt: skip
        wait_for(lambda: self.beat(name).state in ("ready", "failed"), ready_s, f"{name} is ready")
        assert self.beat(name).state == "ready", self.beat(name).failure

    def beat(self, name: str) -> Beat:
        beat = read_beat(Path(self.config.state) / "run" / f"{name}.json")
        started = self.parts[name].pid
        return beat if beat and beat.pid == started else Beat(part=name, pid=0, started_ms=0)

    def feed(self, examples: int) -> int:
        """Appends examples and cuts them into steps; returns the newest step."""
        append_examples(self.log, [example(n) for n in range(self.made, self.made + examples)])
        self.made += examples
        while self.sequencer.turn():
            pass
        return self.sequencer.step

    def workers(self) -> list[psutil.Process]:
        """The processes of the worker group."""
        return [p for p in self._of("ray") if "RayTrainWorker" in " ".join(p.cmdline()[:1])]

    def shards(self) -> list[psutil.Process]:
        return [p for p in self._of("ray") if "ShardActor" in " ".join(p.cmdline()[:1])]

    def controllers(self) -> list[psutil.Process]:
        """The processes that control the trainer's run."""
        return [p for p in self._of("ray") if "TrainingRun" in " ".join(p.cmdline()[:1])]

    def _of(self, part: str) -> list[psutil.Process]:
        found = []
        for pid in processes.members(processes.identify(self.parts[part].pid)):
            try:
                process = psutil.Process(pid)
                process.cmdline()
                found.append(process)
            except psutil.Error:
                continue
        return found

    def learned(self, step: int, within_s: float = 120) -> None:
        wait_for(lambda: self.step() >= step, within_s, f"step {step} is learned")

    def step(self) -> int:
        """The step of the newest delta."""
        end = self.log.end(DELTAS, 0)
        newest = self.log.read(DELTAS, 0, end - 1) if end else []
        return unpack(newest[0].value, Delta).step if newest else 0

    def kill(self, name: str) -> None:
        os.kill(self.parts[name].pid, signal.SIGKILL)
        self.parts[name].wait()

    def close(self) -> None:
        leaders = [processes.identify(part.pid) for part in self.parts.values() if part.poll() is None]
        processes.end_sessions(leaders[::-1], 5)
        for part in self.parts.values():
            part.wait()
        self.log.close()


def wait_for(holds: Callable[[], bool], within_s: float, what: str) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, f"not within {within_s} s: {what}"
        time.sleep(0.1)


def oracle(system: System) -> list[str]:
    """The digests of shards on which one process learned every step of the log."""
    while system.alone.turn():
        pass
    return [shard.digest() for shard in system.client.shards]


def digests(system: System) -> list[str]:
    """Those of the running shards, asked for in a process of its own: Ray's settings are read at import."""
    names = [actor_name(spec_of(system.config), part) for part in (0, 1)]
    code = (
        "import ray; ray.init(namespace='recsys', log_to_driver=False)\n"
        f"print('digests', *ray.get([ray.get_actor(n).digest.remote() for n in {names}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=part_environment(system.config, system.plan),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    line = [x for x in done.stdout.splitlines() if x.startswith("digests")]
    assert line, done.stderr
    return line[0].split()[1:]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = None
    state = tmp_path_factory.mktemp("state")
    try:
        system = System(state)
        yield system
    finally:
        if system is not None:
            system.close()


def test_two_workers_learn_what_one_process_does(system: System) -> None:
    system.learned(system.feed(200))
    assert digests(system) == oracle(system)
    wait_for(lambda: system.beat("trainer").counters.get("examples", 0) >= 200, 10, "it is told")
    beat = system.beat("trainer")
    assert beat.gauges["step"] == system.sequencer.step == beat.offsets["steps"][0]


def test_everything_listens_on_loopback_only(system: System) -> None:
    leaders = {name: processes.identify(part.pid) for name, part in system.parts.items()}
    open_wide = [s for its in processes.listening(leaders).values() for s in its if not s.loopback]
    assert not open_wide


@pytest.mark.parametrize("which", ["worker", "shard", "driver", "controller"])
def test_killed_in_the_middle_it_goes_on_exactly(system: System, which: str) -> None:
    group_starts = system.beat("trainer").gauges["group_starts"]
    before = {p.pid for p in system.workers()}
    assert len(before) == 2
    victims = [system.workers()[1], system.shards()[1]]
    last = system.feed(2400)
    wait_for(lambda: system.step() > last - 290, 20, "the first of 300 steps are learned")
    if which == "worker":
        victims[0].kill()
    elif which == "shard":
        victims[1].kill()
    elif which == "controller":
        [controller] = system.controllers()
        controller.kill()
    else:
        system.kill("trainer")
    assert system.step() < last, "it was over before the kill"
    if which in ("driver", "controller"):
        wait_for(lambda: system.parts["trainer"].poll() is not None, 20, "the driver ends")
        system.start("trainer")
        wait_for(lambda: not before & {p.pid for p in system.workers()}, 20, "the old workers are gone")
    system.learned(last)
    assert digests(system) == oracle(system)
    if which == "worker":
        wait_for(lambda: system.beat("trainer").gauges["group_starts"] > group_starts, 5, "a new group")
    wait_for(lambda: len(system.workers()) == 2, 20, "one group of two")


def test_deltas_are_complete_and_in_order(system: System) -> None:
    from parameter_server.publish.deltas import DeltaAssembler, StepDelta

    assembler, steps = DeltaAssembler(MAIN, 0, 0), list[int]()
    offset = 0
    while records := system.log.read(DELTAS, 0, offset):
        offset = records[-1].offset + 1
        for record in records:
            found = assembler.feed(record.value)
            steps += [delta.step for delta in found if isinstance(delta, StepDelta)]
    assert steps == list(np.arange(1, system.sequencer.step + 1))
