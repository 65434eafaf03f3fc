"""The bench runs, small, and the doors hold; no time is asserted."""

import pytest

from benchmarks.answers import bench_doors
from benchmarks.answers.bench_doors import HOSTILE, measure_doors


@pytest.mark.slow
def test_the_doors_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_doors, "_TIMES", 1)
    figures = measure_doors(lists=20, slow=200)
    assert {cost["status"] for cost in figures["hostile_cpu_ms"].values()} == {202, 400, 413}
    assert figures["hostile_cpu_ms"].keys() == HOSTILE.keys()
    assert {each["status"] for each in figures["beside_hostile"]["each"].values()} <= {
        200,
        202,
        400,
        413,
        422,
    }
    assert figures["beside_hostile"]["bodies"] > 100
    assert figures["slow"]["uploads"] == 200 and figures["slow"]["answered"] == 1.0
    assert figures["repeats"] == {"accepted": 1, "duplicates": 19}
