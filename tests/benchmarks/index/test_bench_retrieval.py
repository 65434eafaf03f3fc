"""The bench of retrieval in shards runs, small, and says what it should; no size and no time is asserted."""

import pytest

from benchmarks.index import bench_retrieval


@pytest.mark.slow
def test_each_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: one for each takes ten seconds more."""
    monkeypatch.setattr(bench_retrieval, "_measure_in_process", bench_retrieval.measure_memory)
    figures = bench_retrieval.measure_retrieval(2_000, 2, 0)["figures"]
    held = figures["bytes_per_item"]
    assert set(held) == {"replica_with_index", "replica_without", "shard"}
    assert figures["leaves_the_replica"] == held["replica_with_index"] - held["replica_without"]
    assert figures["search_ms"] > 0 and figures["search_behind_ms"] > 0
    assert figures["index"] == "flat"
