"""The benches run, small, and say what they should; no time is asserted."""

import json
import multiprocessing
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from runtime.cli.main import load

pytest.importorskip("fbgemm_gpu")


@pytest.mark.slow
def test_the_table_bench_tells_its_figures_beside_the_peer(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["table", "--rows", "20000", "--batches", "2", "--json", str(file)]
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["bench"] == "table" and found["seed"] == 0
    assert set(found["comparators"]) == {"fbgemm"}
    for figures in (found["figures"], *found["comparators"].values()):
        assert figures["lookups_per_s"] > 0 and figures["updates_per_s"] > 0
    assert found["figures"]["published_per_s"] > 0
    assert 1 < found["figures"]["times_its_floats"]


def test_an_unknown_bench_is_refused():
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), ["nonsense"])
    assert result.exit_code == 2 and "No such command 'nonsense'" in result.output


def test_the_serving_bench_refuses_what_it_cannot_measure():
    arguments = ["serve", "--items", "0"]
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), arguments)
    assert (
        result.exit_code == 2 and "'--items': Input should be greater than or equal to 1000" in result.output
    )


def test_the_first_that_holds_is_when_it_happened():
    from benchmarks.system.bench_freshness import _when

    notes = [(1.0, 3), (2.0, 5), (4.0, 9)]
    assert [_when(notes, lambda done, s=s: done >= s) for s in (1, 4, 9, 10)] == [1.0, 2.0, 4.0, None]


@pytest.mark.slow
def test_the_freshness_bench_follows_views_to_answers(monkeypatch):
    """Its processes are forked from one that has the modules: importing them in each took half a minute."""
    from benchmarks.harness import worker_processes
    from benchmarks.system.bench_freshness import STAGES, measure_freshness

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([measure_freshness.__module__])
    forking = SimpleNamespace(get_context=lambda _: context)
    monkeypatch.setattr(worker_processes, "multiprocessing", forking)
    found = measure_freshness(2, 200, every_ms=100, shards=2, seed=0, warm_s=1.0, after_s=10.0)["figures"]
    assert found["views"] > 100 and found["unlearned"] == 0
    for stage in (*STAGES, "view_to_answer"):
        assert 0 <= found[stage]["p50"] <= found[stage]["p95"] <= found[stage]["p99"]
    assert found["view_to_answer"]["p50"] > 0
    assert set(found["cores_busy"]) == {"joined", "cut", "learned", "published", "applied"}
