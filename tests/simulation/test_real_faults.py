"""kill -9 of real processes, wherever it strikes: nothing is lost, doubled or different.

The oracles are the simulator's.
"""

from pathlib import Path

import pytest

from tests.support.seeds import seeds
from tests.support.simulation.planted_bugs import AGAIN, COUNTED, DIGEST, JOINED, KEPT
from tests.support.simulation.real_run import RealRun
from tests.support.simulation.simulator import Broken
from tests.support.simulation.simulator_oracles import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BUGS = {
    "write_ahead_skipped": (KEPT,),
    "step_applied_twice_after_restart": (AGAIN, COUNTED, DIGEST),
    "output_not_looked_up_after_restart": JOINED,
}


@pytest.mark.parametrize("seed", seeds("kills", 1, 40))
def test_killed_processes_lose_double_and_change_nothing(seed: int, tmp_path: Path) -> None:
    run = RealRun(seed, tmp_path).run()
    assert sum(run.killed.values()) >= 5, run.killed
    check(run)  # type: ignore[arg-type]
    late = run.copy(tmp_path / "snapshots")  # a replica that starts from the newest snapshot
    assert late.step == run.replica.step
    for table, rows in run.replica.rows.items():
        assert rows.digest == late.rows[table].digest


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_in_real_processes_too(bug: str, tmp_path: Path) -> None:
    with pytest.raises(Broken) as found:
        for seed in range(4):
            (tmp_path / str(seed)).mkdir()
            check(RealRun(seed, tmp_path / str(seed), bug).run())  # type: ignore[arg-type]
    assert found.value.name in BUGS[bug], found.value
