"""The replay bench tells its rate and its memory."""

import json
from pathlib import Path

import pytest

from benchmarks.learning.bench_replay import measure_replay


@pytest.mark.slow
def test_every_example_is_counted(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("labels: [long_view, click]\nwindow_s: 60\nall_shown: true\n")
    events = []
    for n in range(200):
        about = {"user_id": f"u{n % 7}", "request_id": f"r{n}"}
        events.append(
            {"type": "impression", "time_ms": 1000 * n, "items": [{"item_id": f"v{n % 9}"}]} | about
        )
        seen = {"type": "engagement", "item_id": f"v{n % 9}", "kind": "view"} | about
        events.append(seen | {"time_ms": 1000 * n + 500})
    text = "\n".join(json.dumps(event) for event in events)
    (tmp_path / "events.jsonl").write_text(text + "\n")
    found = measure_replay(tmp_path, "")
    assert found["what"].endswith("192 examples, 3 steps")
    figures = found["figures"]
    assert figures["examples_per_cpu_s"] > 0 and figures["peak_gb"] > 0.1
    assert len(figures["digest"]) == 64
