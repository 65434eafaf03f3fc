import numpy as np
import pytest

from experiments.statistics.arm_weights import ArmWeights


def shown(draw, size, share, of_arm, of_others):
    """Examples of one feature each; an arm of ``share`` shows feature f with probability ``of_arm[f]``."""
    own_B = draw.random(size) < share
    chance_BF = np.where(own_B[:, None], of_arm, of_others)
    features_B = 1 + (draw.random((size, 1)) > chance_BF.cumsum(1)).sum(1)
    return features_B[:, None], own_B


def learned(weights, share, of_arm, of_others, batches=400, size=64):
    draw = np.random.default_rng(0)
    for _ in range(batches):
        weights.learn(*shown(draw, size, share, np.array(of_arm), np.array(of_others)))
    return weights


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_weights_make_the_mixture_what_the_arm_would_show(share: float) -> None:
    of_arm, of_others = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    weights = learned(ArmWeights(), share, of_arm, of_others)
    mixed = share * of_arm + (1 - share) * of_others
    w_F = weights.weigh(np.array([[1], [2], [3]]))
    assert w_F == pytest.approx(of_arm / mixed, rel=0.25)
    assert w_F @ mixed == pytest.approx(1.0, abs=0.2)  # no more is learned, and no less


def test_where_arms_show_the_same_all_examples_count_alike() -> None:
    same = [0.6, 0.3, 0.1]
    w_F = learned(ArmWeights(), 0.05, same, same).weigh(np.array([[1], [2], [3]]))
    assert w_F == pytest.approx(np.ones(3), abs=0.3)


def test_what_nothing_is_known_of_weighs_one() -> None:
    weights = ArmWeights()
    assert weights.weigh(np.array([[7], [0]])).tolist() == [1.0, 1.0]
    learned(weights, 0.3, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    assert weights.weigh(np.array([[0], [99]])) == pytest.approx([1.0, 1.0])
    assert weights.weigh(np.array([[1]]))[0] > 2.5 > 0.5 > weights.weigh(np.array([[3]]))[0]


def test_a_ramp_changes_the_share() -> None:
    weights = learned(ArmWeights(), 0.05, [1.0], [1.0])
    learned(weights, 0.5, [1.0], [1.0], batches=1_500)
    assert weights.weigh(np.array([[1]])) == pytest.approx([1.0], abs=0.1)


def test_an_arm_of_everybody_weighs_all_alike() -> None:
    weights = learned(ArmWeights(), 1.0, [0.5, 0.5], [0.5, 0.5])
    assert weights.weigh(np.array([[1], [2]])) == pytest.approx([1.0, 1.0])


def test_it_goes_on_from_what_was_exported() -> None:
    one, other = learned(ArmWeights(), 0.2, [0.9, 0.1], [0.1, 0.9]), ArmWeights()
    other.load(one.export())
    for its in (one, other):
        its.learn(np.array([[1], [2]]), np.array([True, False]))
    asked = np.array([[1], [2], [3]])
    assert one.weigh(asked).tolist() == other.weigh(asked).tolist()


def test_no_weight_is_beyond_the_bound() -> None:
    weights = learned(ArmWeights(), 0.01, [1.0, 0.0], [0.0, 1.0], batches=3_000)
    assert 15 < weights.weigh(np.array([[1]]))[0] <= 20


def test_where_only_its_own_count_they_stand_for_all() -> None:
    weights = ArmWeights()
    assert weights.diverted(np.array([True, False])).tolist() == [1.0, 0.0]
    learned(weights, 0.25, [1.0], [1.0])
    assert weights.diverted(np.array([True, False])) == pytest.approx([4.0, 0.0], rel=0.1)
