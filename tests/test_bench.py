"""The benches run, small, and say what they should; no time is asserted."""

import json

import pytest
from click.testing import CliRunner

from recsys.cli.main import load

pytest.importorskip("fbgemm_gpu")


def test_the_table_bench_tells_its_figures_beside_the_peer(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["table", "--rows", "10000", "--batches", "2", "--json", str(file)]
    result = CliRunner().invoke(load("recsys.cli.bench:bench", "bench"), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["bench"] == "table" and found["seed"] == 0
    for figures in (found["figures"], found["comparators"]["fbgemm"]):
        assert figures["lookups_per_s"] > 0 and figures["updates_per_s"] > 0


def test_an_unknown_bench_is_refused():
    result = CliRunner().invoke(load("recsys.cli.bench:bench", "bench"), ["nonsense"])
    assert result.exit_code == 2 and "expected table, train, join" in result.output
