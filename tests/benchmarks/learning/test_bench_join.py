"""The bench of the joiner runs, small, on the events that it says; what it joins is checked."""

import json
from collections import Counter

import pytest
from click.testing import CliRunner

from benchmarks.learning import bench_join
from recsys.events.event_types import Engagement, Impression
from runtime.cli.main import load


def test_the_events_are_of_one_seed_in_time_order_with_late_ones_and_repeats():
    events = bench_join.draw_events(3000, 4)
    assert len(events) >= 3000 and events == bench_join.draw_events(3000, 4)
    assert events != bench_join.draw_events(3000, 5)
    times = [event.time_ms for event in events]
    assert times == sorted(times)
    shown = {e.request_id: e.time_ms for e in events if isinstance(e, Impression)}
    done = [e for e in events if isinstance(e, Engagement)]
    assert any(e.time_ms - shown[e.request_id] > 60_000 for e in done if e.kind == "like")
    assert max(Counter(map(repr, done)).values()) == 2


def test_the_bench_tells_its_figures_beside_the_peer(tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["join", "--events", "400", "--json", str(file)]
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["bench"] == "join" and found["seed"] == 0
    assert found["figures"]["events_per_cpu_s"] > 0 < found["figures"]["events_per_s"]
    assert found["figures"]["core_events_per_s"] > 0
    assert found["comparators"]["polars_whole_log_at_once"]["events_per_s"] > 0


def test_a_join_that_differs_is_an_error(monkeypatch):
    monkeypatch.setattr(bench_join, "_polars", lambda written: (1.0, {("r0", "v0", 1)}))
    with pytest.raises(RuntimeError, match="labels differ"):
        bench_join.measure_join(100, 0)
