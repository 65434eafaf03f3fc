"""Whatever breaks, wherever: nothing is lost, doubled or different."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.seeds import LONG, seeds
from tests.support.simulation.simulator import Simulation
from tests.support.simulation.simulator_faults import EXTRA
from tests.support.simulation.simulator_oracles import check

pytestmark = pytest.mark.steady

FAST = range(3)  # one of each way of publishing
STORMS = seeds("storms", 6, 200)
_RUN = """
import sys
from pathlib import Path
from tests.support.simulation.simulator import Simulation

for seed in (3, 74):
    run = Simulation(seed, Path(sys.argv[1]) / str(seed)).run()
    print(seed, run.crashes, run.held_back, run.replica.gaps, run.chance.struck)
"""
KILLS = seeds("many kills", 4, 20)  # pairs of runs, with a log like Kafka's and without


def test_a_run_that_nothing_disturbs_holds_every_invariant(tmp_path: Path) -> None:
    run = Simulation(0, tmp_path, rate=0.0).run()
    check(run)
    assert run.crashes == 0 and not run.chance.struck and run.replica.gaps == 0


@pytest.mark.slow
def test_seeds_give_the_same_runs_in_another_process(tmp_path: Path) -> None:
    """Whatever the order of sets and the names of temporary files are there."""
    first, again = (_struck(str(tmp_path / hash_seed), hash_seed) for hash_seed in ("1", "2"))
    crashes = [int(line.split()[1]) for line in first.splitlines()]
    assert first == again and len(crashes) == 2 and min(crashes) > 0


def _struck(folder: str, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", _RUN, folder]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("seed", FAST)
def test_nothing_is_lost_doubled_or_different(seed: int, tmp_path: Path) -> None:
    check(Simulation(seed, tmp_path).run())


@pytest.mark.parametrize("fault", EXTRA)
def test_each_extra_fault_is_survived(fault: str, tmp_path: Path) -> None:
    check(Simulation(3, tmp_path, extra={fault}).run())


@pytest.mark.slow
def test_many_kills_with_all_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    """Processes die alone, in pairs and all at once, on full disks, with clocks that jump, on a log like
    Kafka's or not."""
    kills, struck = 0, dict[str, int]()
    runs = [1_000 + 2 * number + half for number in KILLS for half in range(2)]
    for seed in runs:
        extra = EXTRA if seed % 4 > 1 else set(EXTRA) - {"kafka"}
        run = Simulation(seed, tmp_path / str(seed), 0.04, extra).run()
        check(run)
        kills += run.chance.kills
        for what, times in run.chance.struck.items():
            struck[what] = struck.get(what, 0) + times
    assert kills >= 20 * len(runs)
    assert all(struck[what] >= len(KILLS) for what in ("still full", "clock", "pair", "power")), struck


@pytest.mark.slow
@pytest.mark.timeout(900)  # a quarter of a minute where nothing else runs
@pytest.mark.parametrize("half", range(2))
def test_nothing_is_lost_doubled_or_different_in_storms(half: int, tmp_path: Path) -> None:
    """Runs storms that meet many faults. In halves, so that processes may share them."""
    crashes, gaps, rebased, held_back, struck = 0, 0, 0, 0, dict[str, int]()
    for seed in STORMS[half::2]:
        run = Simulation(seed, tmp_path / str(seed)).run()
        check(run)
        crashes, held_back = crashes + run.crashes, held_back + run.held_back
        gaps += sum(replica.gaps for replica in run.replicas)
        rebased += sum(replica.rebased for replica in run.replicas)
        for what, times in run.chance.struck.items():
            struck[what] = struck.get(what, 0) + times
    assert crashes
    if not LONG:
        return
    assert crashes > 500 and gaps > 40 and rebased > 500 and held_back > 500
    everything = {
        "answer", "append", "append failed", "read failed", "write", "disk full", "sync", "rename",
        "link", "power", "dropped", "repeated", "reordered", "cut", "flipped",
    }  # fmt: skip
    assert {what for what, times in struck.items() if times >= 10} == everything
