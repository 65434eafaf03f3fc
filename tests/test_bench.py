"""The benches run, small, and say what they should; no time is asserted."""

import json

import pytest
from click.testing import CliRunner

from recsys.cli.main import load

pytest.importorskip("fbgemm_gpu")


def test_the_table_bench_tells_its_figures_beside_the_peer(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["table", "--rows", "20000", "--batches", "2", "--json", str(file)]
    result = CliRunner().invoke(load("recsys.cli.bench:bench", "bench"), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["bench"] == "table" and found["seed"] == 0
    assert set(found["comparators"]) == {"fbgemm", "torchrec", "embedding_bag", "python_dict"}
    for figures in (found["figures"], *found["comparators"].values()):
        assert figures["lookups_per_s"] > 0 and figures["updates_per_s"] > 0
    assert found["figures"]["published_per_s"] > 0
    assert 1 < found["figures"]["times_its_floats"]


def test_an_unknown_bench_is_refused():
    result = CliRunner().invoke(load("recsys.cli.bench:bench", "bench"), ["nonsense"])
    assert result.exit_code == 2 and "expected table, train, join" in result.output
