"""The recovery bench runs, small: a killed shard answers again, with its rows."""

import pytest


@pytest.mark.services
@pytest.mark.slow
def test_a_killed_shard_is_waited_for_and_has_its_rows():
    pytest.importorskip("ray")
    from benchmarks.system.bench_recovery import measure_recovery

    found = measure_recovery(rows=30_000, steps=3, kills=2, seed=0)["figures"]
    assert found["rows"] == 30_000 and found["file_mb"] > 1
    assert len(found["waited_s"]) == 2 and all(0 < waited < 120 for waited in found["waited_s"])
