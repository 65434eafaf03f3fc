import numpy as np
import pytest

from benchmarks.studies.drift.online_ensemble import FixedShare


def two(right: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What two models say of ``count`` examples, of which the one is right and the other is not."""
    labels = np.arange(count) % 2.0
    good, bad = np.where(labels > 0, 0.8, 0.2), np.where(labels > 0, 0.4, 0.6)
    return np.column_stack([good, bad] if right == 0 else [bad, good]), labels


def test_one_model_is_said_as_it_is() -> None:
    mix = FixedShare()
    assert mix.mix(np.array([[0.3], [0.7]])).tolist() == [0.3, 0.7]
    mix.learn(np.array([[0.3]]), np.array([1.0]))
    assert mix.weights_E.tolist() == [1.0]


def test_who_is_right_weighs_most_and_a_change_is_followed_soon() -> None:
    mix = FixedShare(0.01)
    mix.add()
    assert mix.weights_E.tolist() == [0.995, 0.005]
    mix.learn(*two(0, 500))
    assert mix.weights_E[0] > 0.97
    mix.learn(*two(1, 30))
    assert mix.weights_E[1] > 0.97
    assert mix.weights_E.sum() == pytest.approx(1.0)


def test_it_loses_little_to_the_best_sequence_of_models() -> None:
    mix, lost = FixedShare(0.01), 0.0
    mix.add()
    for right in (0, 1, 0):
        said, labels = two(right, 200)
        for n in range(len(labels)):
            p = mix.mix(said[n : n + 1])[0]
            lost -= np.log(p if labels[n] else 1 - p)
            mix.learn(said[n : n + 1], labels[n : n + 1])
    best = -600 * np.log(0.8)
    # Herbster and Warmuth 1998: ln E + what the changes and the staying cost.
    staying, changes = -600 * np.log(0.99), 3 * np.log(2 / 0.01)
    assert best < lost < best + np.log(2) + staying + changes


def test_sure_and_wrong_is_no_end() -> None:
    mix = FixedShare()
    mix.add()
    mix.learn(np.array([[0.0, 0.5]]), np.array([1.0]))
    assert np.isfinite(mix.weights_E).all() and mix.weights_E[1] > 0.9


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="share is 0"):
        FixedShare(0.0)
    mix = FixedShare()
    with pytest.raises(ValueError, match=r"expected \(N, 1\)"):
        mix.mix(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="isn't finite"):
        mix.learn(np.array([[np.nan]]), np.array([1.0]))
