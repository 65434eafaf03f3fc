"""The simulator finds each planted bug, by one of the invariants that the bug names.

Without the bug the same seeds hold every invariant (tests/simulation/test_simulator.py).
"""

from pathlib import Path

import pytest

from tests.support.seeds import seeds
from tests.support.simulation.planted_bugs import BUGS, Patch
from tests.support.simulation.simulator import Broken, Simulation
from tests.support.simulation.simulator_oracles import check

pytestmark = [pytest.mark.slow, pytest.mark.steady]

SEEDS = (3, 2, 23, 22, 7, 6, 11, 13, 31, 45)  # even ones have power cuts


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    plant, names, fault = BUGS[name]
    plant(monkeypatch)
    extra = {fault} - {""}
    with pytest.raises(Broken) as found:
        for seed in SEEDS:
            check(Simulation(seed, tmp_path / str(seed), extra=extra).run())
    assert found.value.name in names, found.value


@pytest.mark.parametrize("name", [name for name, (*_, fault) in BUGS.items() if fault])
def test_only_its_fault_finds_it(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    BUGS[name][0](monkeypatch)
    for seed in seeds(name, 1, 60):
        check(Simulation(seed, tmp_path / str(seed)).run())


def test_there_are_enough_of_them() -> None:
    assert len(BUGS) >= 10
