"""A list that two policies draw in turns: by each one's own chances, with propensities that hold."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.statistics.interleaving import NOBODY, TeamDraft
from plugins.off_policy.propensities import probabilities_along
from serving.selection.sampling import BY_SCORE, Cap, SamplingInput, SamplingParams, sample_slate
from serving.selection.team_draft import draft_slate

TEAMS = ("a", "b")
GROUPS = np.array([1, 1, 1, 2, 2, 0, 3, 3])
N = len(GROUPS)


def ballot(seed: int = 0, fixed: dict[int, int] | None = None, **chance: float) -> SamplingInput:
    draw = np.random.default_rng(seed)
    its = {"temperature": 0.3, "explore": 0.1, "quota": 0.2, "diversity": 0.2} | chance
    trust = np.array([0, 0.5, 0, 0, 1.0, 0, 0, 0.2])
    vectors = draw.normal(size=(N, 3)).astype(np.float32)
    open_N = np.arange(N) != 6
    params, caps = SamplingParams(**its), (Cap("author", GROUPS, 2, 1),)
    scores_N = draw.normal(size=N)
    return SamplingInput(scores_N, params, caps, trust, vectors, open_N, fixed or {})


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 50), st.integers(0, 9), st.sampled_from([{}, {1: 3}, {0: 0, 2: 6}]), st.text(max_size=4)
)
def test_against_itself_a_policy_draws_the_list_that_it_draws_alone(seed, n, fixed, request_id) -> None:
    its = ballot(seed, fixed)
    alone = sample_slate(its, n, request_id=request_id)
    both = draft_slate((its, its), n, TEAMS, request_id=request_id)
    assert both.positions.tolist() == alone.positions.tolist()
    assert both.propensities == pytest.approx(alone.propensities, abs=1e-12)
    assert both.trial_R.tolist() == alone.trial_R.tolist() and both.offered == alone.offered
    assert len(both.teams) == len(both.positions) and not alone.teams
    pinned = [r for r, position in fixed.items() if r < len(both.teams) and both.positions[r] == position]
    assert all(both.teams[rank] == "" for rank in pinned)
    theirs = [rank for rank, team in enumerate(both.teams) if team]
    even = theirs[: len(theirs) // 2 * 2]  # the last of an odd number is its picker's alone
    assert list(both.shares) == [0.5 if r in even else float(t == "b") for r, t in enumerate(both.teams)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(0, 9), st.sampled_from([{}, {1: 3}, {0: 0, 2: 6}]))
def test_chances_along_a_list_are_the_propensities_that_it_was_drawn_with(seed, n, fixed) -> None:
    its = ballot(seed, fixed)
    alone = sample_slate(its, n, request_id="r")
    along_RN, more = probabilities_along(its, alone.positions, n)
    ranks = np.arange(len(alone.positions))
    assert along_RN[ranks, alone.positions].tolist() == alone.propensities.tolist()
    assert along_RN.sum(1) == pytest.approx(np.ones(len(ranks)))
    assert not more
    assert (along_RN[:, 6] == 0).all() or 6 in fixed.values()


def test_a_list_that_a_policy_would_go_on_with_is_told() -> None:
    its = ballot()
    short = sample_slate(its, 2, request_id="r").positions
    assert probabilities_along(its, short, 4)[1] and not probabilities_along(its, short, 2)[1]


def test_propensities_are_how_often_items_come_where_a_coin_decides_and_after() -> None:
    one, other = ballot(1, quota=0.0), ballot(2, quota=0.0)
    first, told, then = Counter[int](), {}, Counter[tuple[int, int]]()
    after, runs = {}, 4_000
    for n in range(runs):
        its = draft_slate((one, other), 2, TEAMS, request_id=f"r{n}")
        a, b = its.positions.tolist()
        first[a] += 1
        told[a] = its.propensities[0]
        key = (a, TEAMS.index(its.teams[0]))
        then[*key, b] += 1
        after[*key, b] = its.propensities[1]
    for item, count in first.items():
        assert abs(count / runs - told[item]) < 4 * np.sqrt(told[item] / runs)
    key = max(
        ((a, t) for a, t, _ in then), key=lambda k: sum(c for (a, t, _), c in then.items() if (a, t) == k)
    )
    whole = sum(count for (a, t, _), count in then.items() if (a, t) == key)
    for (a, t, b), count in then.items():
        if (a, t) == key:
            p = after[a, t, b]
            assert abs(count / whole - p) < 4.5 * np.sqrt(p / whole) + 1e-9


def test_a_share_is_how_often_the_second_picked_it_of_those_lists() -> None:
    one, other = (ballot(seed, quota=0.0, temperature=1.0) for seed in (1, 2))
    lists: dict[tuple[int, ...], list[tuple[tuple[str, ...], tuple[float, ...]]]] = {}
    for n in range(6_000):
        its = draft_slate((one, other), 2, TEAMS, request_id=f"r{n}")
        lists.setdefault(tuple(its.positions.tolist()), []).append((its.teams, its.shares))
    often = sorted(lists.values(), key=len, reverse=True)[:8]
    assert min(map(len, often)) > 40
    for seen in often:
        (told,) = {shares for _, shares in seen}  # by the list alone
        for rank, share in enumerate(told):
            picked = np.mean([teams[rank] == "b" for teams, _ in seen])
            assert abs(picked - share) < 4.5 * np.sqrt(share * (1 - share) / len(seen)) + 1e-9
    assert any(0.05 < share < 0.45 for seen in often for share in seen[0][1])


def test_each_pick_is_by_its_own_policy_and_caps_count_what_both_picked() -> None:
    cold = {"temperature": 1e-6, "explore": 0.0, "quota": 0.0, "diversity": 0.0}
    up = SamplingInput(np.arange(N, dtype=float), SamplingParams(**cold), (Cap("author", GROUPS, 2),))
    down = SamplingInput(-np.arange(N, dtype=float), SamplingParams(**cold), (Cap("author", GROUPS, 2),))
    for n in range(20):
        its = draft_slate((down, up), N, TEAMS, request_id=f"r{n}")
        left = list(range(N))
        for rank, (position, team) in enumerate(zip(its.positions.tolist(), its.teams, strict=True)):
            groups = [GROUPS[p] for p in its.positions[:rank]]
            able = [p for p in left if GROUPS[p] == 0 or groups.count(GROUPS[p]) < 2]
            assert position == (min(able) if team == "a" else max(able))
            left.remove(position)
        assert abs(its.teams.count("a") - its.teams.count("b")) <= 1
        assert len(its.positions) == 7  # the third of group 1 is shut out, whoever picked the others


rankings = st.lists(st.integers(0, N - 1), unique=True)


def ranking(positions: list[int]) -> SamplingInput:
    """Draws them in their order, and no others."""
    scores_N, open_N = np.zeros(N), np.zeros(N, np.bool_)
    scores_N[positions], open_N[positions] = -np.arange(len(positions)), True
    return SamplingInput(scores_N, SamplingParams(1e-6, 0.0, 0.0), open_N=open_N)


@settings(max_examples=100, deadline=None)
@given(rankings, rankings, st.integers(0, N), st.text(max_size=5))
def test_a_draft_is_a_list_of_both_in_which_neither_has_two_picks_more(one, other, n, request_id) -> None:
    its = draft_slate((ranking(one), ranking(other)), n, TEAMS, request_id=request_id)
    items, teams = its.positions.tolist(), its.teams
    assert len(items) == len(set(items)) == min(n, len({*one, *other}))
    for end in range(len(teams) + 1):
        assert abs(teams[:end].count("a") - teams[:end].count("b")) <= 1
    assert list(its.shares) == [float(team == "b") if team else 0.0 for team in teams] or any(
        item in one and item in other for item in items
    )
    credited = teams.index(NOBODY) if NOBODY in teams else len(teams)
    assert all(team == NOBODY for team in teams[credited:])  # nobody's, once one has nothing new
    for rank, team in enumerate(teams):
        assert team in (NOBODY, TEAMS[its.drawers[rank]])
        mine = (one, other)[its.drawers[rank]]
        assert items[rank] == next(item for item in mine if item not in items[:rank])


def test_once_one_has_nothing_left_the_other_fills_the_list_for_nobody() -> None:
    few = SamplingInput(np.zeros(N), BY_SCORE, open_N=np.arange(N) < 2)
    its = draft_slate((few, SamplingInput(np.zeros(N), BY_SCORE)), N, TEAMS, request_id="r")
    assert sorted(its.positions.tolist()) == list(range(N))
    ends = its.teams.index("")
    assert 2 <= ends <= 5 and set(its.teams[ends:]) == {""}
    assert draft_slate((few, few), 5, TEAMS, request_id="r").positions.size == 2
    assert draft_slate((few, few), 0, TEAMS, request_id="r").teams == ()


def test_whose_turn_it_is_is_as_a_draft_says() -> None:
    its = ballot()
    for n in range(20):
        turns, teams = (
            TeamDraft(f"r{n}", TEAMS),
            draft_slate((its, its), 6, TEAMS, request_id=f"r{n}").teams,
        )
        assert list(teams) == [turns.picked(turns.turn()) for _ in teams]
