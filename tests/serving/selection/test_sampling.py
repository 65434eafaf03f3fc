import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from serving.request import Slate
from serving.selection.sampling import HEAT, Cap, SamplingInput, SamplingParams, sample_slate
from serving.selection.slate_propensities import SlateWalk

SCORES = np.array([1.0, 0.6, 0.6, 0.2, -0.5])

awkward = st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e300, -1e300, np.inf, -np.inf, np.nan])
scores = st.lists(st.floats(-5, 5) | awkward, max_size=20).map(np.array)


def drawn(scores_N: np.ndarray, n: int = 5, request_id: str = "r", **more: object) -> Slate:
    named = {"temperature": 0.3, "explore": 0.1, "quota": 0.0, "diversity": 0.0}
    params = SamplingParams(**{name: more.pop(name, usual) for name, usual in named.items()})  # type: ignore[arg-type]
    groups_N, per_group = more.pop("groups_N", None), more.pop("per_group", 0)
    caps = [Cap("group", groups_N, per_group)] if per_group else []  # type: ignore[arg-type]
    scores, seed = np.asarray(scores_N, np.float64), more.pop("seed", 0)
    given = SamplingInput(scores, params, caps, **more)  # type: ignore[arg-type]
    return sample_slate(given, n, request_id=request_id, seed=seed)  # type: ignore[arg-type]


def mixture(scores_N: np.ndarray, open_N: np.ndarray, explore: float, temperature: float = 0.1) -> np.ndarray:
    """The probability of each candidate at the first rank."""
    params = SamplingParams(temperature, explore)
    walk = SlateWalk(SamplingInput(scores_N, params, open_N=open_N), 1)
    return walk.step(np.empty(0, np.int64)).total_N


@settings(max_examples=120, deadline=None)
@given(scores=scores, n=st.integers(0, 25), explore=st.sampled_from([0.0, 0.05, 1.0]),
       temperature=st.sampled_from([1e-300, 1e-3, 0.1, 10.0, 1e300]))  # fmt: skip
def test_whatever_the_scores_a_list_comes_with_its_propensities(
    scores: np.ndarray, n: int, explore: float, temperature: float
) -> None:
    out = drawn(scores, n, explore=explore, temperature=temperature)
    assert len(out.positions) == len(out.propensities) == min(n, len(scores))
    assert len(set(out.positions.tolist())) == len(out.positions)
    assert ((out.propensities > 0) & (out.propensities <= 1 + 1e-12)).all()
    if len(scores) and n >= len(scores):
        assert sorted(out.positions.tolist()) == list(range(len(scores)))
        assert out.propensities[-1] == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(scores=scores.filter(len), explore=st.floats(0, 1), data=st.data())
def test_probabilities_sum_to_1_at_every_rank(
    scores: np.ndarray, explore: float, data: st.DataObject
) -> None:
    size = st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))
    open_N = np.array(data.draw(size.filter(any)))
    open_N &= ~np.isnan(scores)
    if not open_N.any():
        return
    p_N = mixture(scores, open_N, explore)
    assert p_N.sum() == pytest.approx(1.0)
    assert (p_N[~open_N] == 0).all() and (p_N >= 0).all()


def test_the_propensity_of_each_rank_is_that_of_the_mixture_then() -> None:
    out = drawn(SCORES, explore=0.2)
    left = np.ones(5, np.bool_)
    for position, propensity in zip(out.positions, out.propensities, strict=True):
        weights = np.exp(SCORES / 0.3) * left
        assert propensity == pytest.approx(0.8 * weights[position] / weights.sum() + 0.2 / left.sum())
        left[position] = False


@pytest.mark.slow
def test_items_come_as_often_as_their_propensity_says() -> None:
    draws = 20_000
    first = np.zeros(5)
    second = np.zeros(5)  # given that item 1 came first
    for n in range(draws):
        a, b = drawn(SCORES, 2, f"r{n}").positions
        first[a] += 1
        if a == 1:
            second[b] += 1
    open_N = np.ones(5, np.bool_)
    for counts in (first, second):
        p_N = mixture(SCORES, open_N, 0.1, 0.3)
        total = counts.sum()
        sigma = np.sqrt(total * p_N * (1 - p_N))
        assert (np.abs(counts - total * p_N) <= 4 * sigma + 1e-9).all()
        open_N[1] = False


def test_the_same_request_gives_the_same_list_and_another_another() -> None:
    lists = [tuple(drawn(SCORES, 3, f"r{n}").positions) for n in range(30)]
    assert lists == [tuple(drawn(SCORES, 3, f"r{n}").positions) for n in range(30)]
    assert len(set(lists)) > 5
    assert lists != [tuple(drawn(SCORES, 3, f"r{n}", seed=1).positions) for n in range(30)]


def test_exploring_always_is_even_and_never_is_the_softmax() -> None:
    assert drawn(SCORES, explore=1.0).propensities == pytest.approx([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1])
    greedy = drawn(SCORES - 1e6 * np.arange(5), explore=0.0, temperature=1e-3)
    assert greedy.positions.tolist() == [0, 1, 2, 3, 4]  # far behind, and still in order
    assert greedy.propensities == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("per_group", [1, 2])
def test_a_group_has_no_more_places_than_it_may(per_group: int) -> None:
    groups = np.array([7, 7, 7, 7, 0, 0, 0, 9])
    for n in range(50):
        out = drawn(np.zeros(8), 8, f"r{n}", groups_N=groups, per_group=per_group)
        chosen = groups[out.positions].tolist()
        assert chosen.count(7) == per_group and chosen.count(0) == 3 and chosen.count(9) == 1
        left = np.ones(8, np.bool_)  # the propensities know what may still come
        for rank, position in enumerate(out.positions):
            assert out.propensities[rank] == pytest.approx(1 / left.sum())
            left[position] = False
            if chosen[: rank + 1].count(7) == per_group:
                left[groups == 7] = False
    assert len(drawn(np.zeros(8), 8, groups_N=groups, per_group=0).positions) == 8


def test_beside_fixed_items_each_propensity_is_the_mixture_of_what_is_left() -> None:
    for n in range(50):
        out = drawn(SCORES, request_id=f"r{n}", explore=0.2, pinned={1: 0, 3: 4})
        assert (out.positions[1], out.positions[3]) == (0, 4)
        assert sorted(out.positions.tolist()) == [0, 1, 2, 3, 4]
        left = np.array([False, True, True, True, False])
        for rank, (position, propensity) in enumerate(zip(out.positions, out.propensities, strict=True)):
            if rank in (1, 3):
                assert propensity == 1.0
                continue
            weights = np.exp(SCORES / 0.3) * left
            expected = 0.8 * weights[position] / weights.sum() + 0.2 / left.sum()
            assert propensity == pytest.approx(expected)
            left[position] = False


@pytest.mark.slow
def test_beside_a_fixed_item_the_others_come_as_often_as_their_propensity_says() -> None:
    draws = 20_000
    first, third = np.zeros(5), np.zeros(5)  # the third, given that item 1 came first
    for n in range(draws):
        a, pinned, b = drawn(SCORES, 3, f"r{n}", pinned={1: 0, 8: 2}).positions
        assert pinned == 0
        first[a] += 1
        if a == 1:
            third[b] += 1
    open_N = np.array([False, True, True, True, True])
    for counts in (first, third):
        p_N = mixture(SCORES, open_N, 0.1, 0.3)
        total = counts.sum()
        sigma = np.sqrt(total * p_N * (1 - p_N))
        assert (np.abs(counts - total * p_N) <= 4 * sigma + 1e-9).all()
        open_N[1] = False


def test_fixed_items_count_for_their_group_first_and_stand_whatever_it_has() -> None:
    groups = np.array([7, 7, 7, 0, 9, 9])
    for n in range(50):
        out = drawn(np.zeros(6), 6, f"r{n}", groups_N=groups, per_group=1, pinned={2: 0, 3: 1})
        assert out.positions[2:4].tolist() == [0, 1]
        chosen = groups[out.positions].tolist()
        assert (chosen.count(7), chosen.count(0), chosen.count(9)) == (2, 1, 1)
        assert out.propensities[0] == pytest.approx(1 / 3)  # of item 3 and the two of group 9


def test_where_the_others_run_out_fixed_items_move_up_in_order() -> None:
    out = drawn(SCORES[:3], 9, pinned={4: 2, 6: 0})
    assert out.positions.tolist() == [1, 2, 0] and out.propensities == pytest.approx([1.0] * 3)
    assert drawn(SCORES[:1], 3, pinned={2: 0}).positions.tolist() == [0]


def test_a_score_that_is_no_number_comes_after_all_others() -> None:
    scores = np.array([np.nan, 0.1, -np.inf, np.nan, 0.2])
    for n in range(50):
        out = drawn(scores, 5, f"r{n}", explore=0.5)
        assert set(out.positions[3:].tolist()) == {0, 3}
        assert out.propensities[3] == pytest.approx(0.5)


def test_infinite_scores_share_evenly() -> None:
    everywhere = np.ones(3, np.bool_)
    assert mixture(np.array([np.inf, 5.0, np.inf]), everywhere, 0.0).tolist() == [0.5, 0, 0.5]
    low = np.array([-np.inf] * 3)
    assert mixture(low, everywhere, 0.0) == pytest.approx([1 / 3] * 3)
    one = mixture(np.array([-np.inf, 1.0, -np.inf]), everywhere, 0.3)
    assert one == pytest.approx([0.1, 0.8, 0.1])


def by_hand(
    scores: np.ndarray, left: np.ndarray, above: list[int], chance: SamplingParams,
    trust: np.ndarray, vectors: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The chances at a rank as the docstring says them, one after the other."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.maximum(0.0, (units @ units[above].T)).max(1) if above else np.zeros(len(scores))
    scores = scores - chance.diversity * near
    usual = np.exp((scores - scores[left].max()) / chance.temperature) * left
    usual = (1 - chance.explore) * usual / usual.sum() + chance.explore * left / left.sum()
    on_trial = left & (trust > 0)
    if not on_trial.any():
        return usual
    heat = chance.temperature * HEAT
    trial = trust * np.exp((scores - scores[on_trial].max()) / heat) * on_trial
    return chance.quota * trial / trial.sum() + (1 - chance.quota) * usual


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), quota=st.sampled_from([0.0, 0.2, 1.0]),
       diversity=st.sampled_from([0.0, 0.5]), explore=st.sampled_from([0.0, 0.1]),
       cap=st.sampled_from([2, 5]), run=st.sampled_from([0, 1, 2]))  # fmt: skip
def test_given_the_ranks_above_each_rank_s_chances_are_as_said_and_sum_to_1(
    seed: int, size: int, quota: float, diversity: float, explore: float, cap: int, run: int
) -> None:
    random = np.random.default_rng(seed)
    scores, trust = random.normal(size=size), random.choice([0.0, 0.3, 1.0], size)
    vectors = random.normal(size=(size, 3)).astype(np.float32)
    groups = random.integers(0, 4, size)
    chance = SamplingParams(0.4, explore, quota, diversity)
    given = SamplingInput(scores, chance, [Cap("group", groups, cap, run)], trust, vectors)
    out = sample_slate(given, size, request_id=f"r{seed}")
    left, above = np.ones(size, np.bool_), []
    for rank, position in enumerate(out.positions.tolist()):
        newest = set(groups[above[-run:]].tolist()) if 0 < run <= len(above) else set()
        following = left & (groups != newest.pop()) if len(newest) == 1 and newest != {0} else left
        following = following if following.any() else left
        p_N = by_hand(scores, following, above, chance, trust, vectors)
        assert p_N.sum() == pytest.approx(1.0)
        assert out.propensities[rank] == pytest.approx(p_N[position], rel=1e-5)
        assert not out.trial_R[rank] or trust[position] > 0
        above.append(position)
        left[position] = False
        if groups[position] and (groups[above] == groups[position]).sum() == cap:
            left &= groups != groups[position]
    assert not left.any() or len(above) == size
    assert out.closed["group"] == size - len(above)


def test_no_more_of_a_group_follow_each_other_than_a_run_while_others_are_left() -> None:
    scores, groups = np.array([9.0, 8, 7, 6, 5, 0, -1]), np.array([1, 1, 1, 1, 1, 0, 2])
    cold = SamplingParams(1e-6, 0.0)
    out = sample_slate(SamplingInput(scores, cold, [Cap("group", groups, 7, 2)]), 7, request_id="r")
    assert out.positions.tolist() == [0, 1, 5, 2, 3, 6, 4] and out.closed == {"group": 0}
    pinned = SamplingInput(scores, cold, [Cap("group", groups, 7, 2)], pinned={1: 4})
    assert sample_slate(pinned, 7, request_id="r").positions.tolist() == [0, 4, 5, 1, 2, 6, 3]


@pytest.mark.parametrize(("quota", "diversity"), [(0.0, 0.6), (0.3, 0.0), (0.3, 0.6)])
def test_over_many_requests_items_come_as_often_as_their_propensity_says(
    quota: float, diversity: float
) -> None:
    scores, trust = np.array([1.0, 0.9, 0.5, 0.2, 0.0]), np.array([0.0, 0.0, 1.0, 0.0, 0.5])
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 1], [-1, 0.2]], np.float32)
    chance = SamplingParams(0.3, 0.1, quota, diversity)
    given = SamplingInput(scores, chance, (), trust, vectors)
    lists = np.array([sample_slate(given, 3, request_id=f"r{n}").positions for n in range(6_000)])
    for above in ([], [0], [0, 2]):
        left = np.isin(np.arange(5), above, invert=True)
        then = lists[(lists[:, : len(above)] == above).all(1)]
        counts = np.bincount(then[:, len(above)], minlength=5)
        p_N = by_hand(scores, left, above, chance, trust, vectors)
        assert counts[~left].sum() == 0 and len(then) > 150
        assert chisquare(counts[left], len(then) * p_N[left]).pvalue > 0.001, above


def test_the_quota_is_kept_where_something_is_on_trial_and_what_it_misses_is_counted() -> None:
    scores, trust = np.linspace(1, 0, 40), np.where(np.arange(40) >= 36, 1.0, 0.0)
    taken = offered = slots = 0
    for n in range(4_000):
        out = drawn(scores, 8, f"r{n}", quota=0.25, trust_N=trust)
        assert (trust[out.positions[out.trial_R]] > 0).all()
        taken, offered = taken + int(out.trial_R.sum()), offered + out.offered
        slots += len(out.positions)
    assert 20_000 < offered <= slots == 32_000
    assert abs(taken / offered - 0.25) < 0.005 and taken / slots < taken / offered
    none = drawn(scores, 8, quota=0.25, trust_N=np.zeros(40))
    assert none.offered == 0 and not none.trial_R.any()
    assert none.propensities == pytest.approx(drawn(scores, 8).propensities)


def test_what_is_near_to_an_item_above_comes_later() -> None:
    scores, vectors = np.array([1.0, 0.9, 0.5]), np.array([[2, 0], [4, 0.1], [0, 1]], np.float32)
    for diversity, expected in ((0.0, [0, 1, 2]), (0.6, [0, 2, 1])):
        out = drawn(scores, diversity=diversity, vectors_NV=vectors, temperature=1e-3, explore=0.0)
        assert out.positions.tolist() == expected
    opposite = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)  # far is no merit: 0 at least
    out = drawn(scores, diversity=0.6, vectors_NV=opposite, temperature=1e-3, explore=0.0)
    assert out.positions.tolist() == [0, 1, 2]


def test_what_is_not_open_is_never_drawn_unless_it_is_fixed() -> None:
    open_N = np.array([True, False, True, False, True])
    out = drawn(SCORES, open_N=open_N, pinned={1: 3})
    assert sorted(out.positions.tolist()) == [0, 2, 3, 4] and out.positions[1] == 3
    assert open_N.sum() == 3  # the caller's mask is its own
