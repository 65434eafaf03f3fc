"""The bench of starts measures what it says, on a small catalogue."""

import pytest

from benchmarks.index.bench_start import measure_start


@pytest.mark.slow
def test_rankers_start_one_after_the_other_and_share_memory() -> None:
    figures = measure_start(21_000, 2, 0)["figures"]
    assert figures["folded"]["processor_s"] > 3 * figures["from_snapshot"][1]["processor_s"]
    (one,), both = figures["pss_mb"]
    assert one < sum(both) < 2 * one and figures["pss_of_one"] == round(sum(both) / one, 2)
