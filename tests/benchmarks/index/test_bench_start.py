"""The bench of starts measures what it says, on a small catalogue."""

from typing import Any

import pytest

from benchmarks.index.bench_start import measure_start


@pytest.mark.slow
def test_the_first_ranker_folds_and_the_others_start_from_the_snapshot() -> None:
    figures: dict[str, Any] = measure_start(21_000, 2, 0)["figures"]
    assert figures["folded"]["folded_items"] == 21_000
    assert [start["folded_items"] for start in figures["from_snapshot"]] == [0, 0]
    (one,), both = figures["pss_mb"]
    assert len(both) == 2 and figures["pss_of_one"] == round(sum(both) / one, 2)
