"""The bench of workers: equal states, and figures of each fold and number of workers."""

import pytest

from benchmarks.learning import bench_workers
from benchmarks.learning.bench_workers import WORKERS, measure_workers


@pytest.mark.slow
def test_states_are_equal_and_each_fold_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_workers, "_ROUNDS", 1)
    monkeypatch.setattr(bench_workers, "_CATALOGUE", 50)
    figures = measure_workers(800, seed=3)["figures"]
    for fold in ("session_fold", "joiner", "counters"):
        assert all(figures[f"{fold}_us_{workers}"] > 0 for workers in WORKERS)
    assert 0 < figures["counters_largest_difference"] < 1e-4
    assert figures["counters_rows_of_tables"] > figures["counters_rows"] > 100


@pytest.mark.slow
def test_a_state_that_depends_on_the_number_of_workers_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_workers, "_ROUNDS", 1)
    monkeypatch.setattr(bench_workers, "_CATALOGUE", 50)
    monkeypatch.setattr(bench_workers, "_examples", lambda events, workers: (1.0, str(workers)))
    with pytest.raises(RuntimeError, match="joiner: the state depends on the number of workers"):
        measure_workers(300, seed=3)
