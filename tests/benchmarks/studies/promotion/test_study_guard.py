import pytest

from benchmarks.studies.promotion.study_guard import measure_guard, text_lines

pytestmark = pytest.mark.steady


@pytest.mark.slow
def test_the_study_tells_good_lines_from_broken_ones() -> None:
    found = measure_guard(2, 0.75, 0.02, chosen=True)
    assert found["equal"]["back"] == 0 and found["far worse"]["back"] == 1
    assert found["breaks"]["median_examples_to_go_back"] < found["guard_examples"] / 2
    assert len(text_lines(found)) == 4 and text_lines(found)[0].startswith(
        "    equal (+0.000 AUC): rolled back 0.0%"
    )
