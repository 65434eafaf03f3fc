"""The bench runs, small, and the doors hold; no time is asserted."""

import pytest

from benchmarks.answers.bench_doors import HOSTILE, measure_doors


@pytest.mark.slow
def test_the_doors_hold() -> None:
    figures = measure_doors(lists=20, slow=200)
    assert {cost["status"] for cost in figures["hostile_cpu_ms"].values()} == {202, 400, 422}
    assert figures["hostile_cpu_ms"].keys() == HOSTILE.keys()
    assert figures["slow"]["uploads"] == 200 and figures["slow"]["answered"] == 1.0
    assert figures["repeats"] == {"accepted": 1, "duplicates": 19}
