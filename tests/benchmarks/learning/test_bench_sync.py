"""The bench of publishing runs, small, and its figures are those of the same rows sent in different ways."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.learning import bench_sync
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.table.table import Table
from runtime.cli.main import load
from tests.support.parameter_server.small_line import DENSE, LANES, TABLES, toy_spec, work


def test_the_clock_of_ours_holds_the_lookup_of_the_changed_rows(monkeypatch):
    now = 0.0

    def lookup(table, keys, real=Table.lookup):
        nonlocal now
        now += 1.0
        return real(table, keys)

    shard = bench_sync._Timed(toy_spec(), DENSE)
    monkeypatch.setattr(Table, "lookup", lookup)
    monkeypatch.setattr(bench_sync.time, "process_time", lambda: now)
    work(LocalClient([shard]), list(range(LANES)), 3)
    assert shard.publishing_s == 3 * len(TABLES)


@pytest.mark.slow
def test_the_bench_tells_what_each_way_costs_and_errs(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["sync", "--ids", "200", "--batches", "8", "--budget-kb", "4", "--json", str(file)]
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["bench"] == "sync" and "--budget-kb 4" in found["command"]
    ours, others = found["figures"], found["comparators"]
    sizes = [ours[name]["bytes_per_step"] for name in ("fp32", "fp16", "int8")]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * sizes[2]
    errors = [ours[name]["row_error_max"] for name in ("fp32", "fp16", "int8")]
    assert errors[0] == 0 < errors[1] < errors[2] and ours["fp16"]["logit_error_max"] < 0.01
    bounded = ours["fp16, 4 KiB of rows"]
    assert bounded["held_back_at_the_end"] > 0
    assert bounded["bytes_per_step"] < bounded["dense_bytes_per_step"] + 4096 + 1024
    assert set(others) == {
        "fp16, 4 KiB of rows, any first", "whole table, safetensors", "touched rows, safetensors",
        "touched rows, safetensors and zstd", "touched rows, torch.save",
    }  # fmt: skip
    assert all(figures["rows_per_s"] > 0 for figures in (ours | others).values())
