import numpy as np
import pytest

from benchmarks.studies.quality.ratio_interval import paired_ratio_interval


def test_a_ratio_of_means_has_its_interval_over_the_units() -> None:
    theirs = np.random.default_rng(4).uniform(0.5, 1.5, 200)
    same = paired_ratio_interval(1.3 * theirs, theirs)
    assert [same.ratio, same.low, same.high] == pytest.approx([1.3] * 3)  # nothing varies
    noisy = theirs + np.random.default_rng(5).normal(0.3, 0.5, 200)
    found = paired_ratio_interval(noisy, theirs)
    assert 1.0 < found.low < found.ratio < found.high < 1.6
    assert np.isnan(paired_ratio_interval([], []).ratio)
    assert np.isnan(paired_ratio_interval([1.0], [0.0]).ratio)
    with pytest.raises(ValueError, match="2 units, theirs 1"):
        paired_ratio_interval([1.0, 2.0], [1.0])
