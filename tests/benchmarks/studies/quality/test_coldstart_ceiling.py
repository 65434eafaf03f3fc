"""The study's ceiling: it knows the world's laws, keeps the cap and what is gone, and isn't disappointed."""

from itertools import combinations

import numpy as np
import pytest

from benchmarks.studies.quality.coldstart_ceiling import (
    Ceiling,
    Swipe,
    clusters_of,
    outcome_likelihood,
    swipes_of,
)
from benchmarks.studies.quality.taste_posterior import learn
from examples.short_video.world import AFTER, World
from recsys.events.hashing import uniform
from tests.support.serving.taste_draws import reweighed

LONG = 10**12  # after which all has come that comes


def test_the_probabilities_of_all_that_may_come_of_a_swipe_are_1_in_sum() -> None:
    outcomes = [frozenset({"view"}), frozenset({"view", "hide"})]
    outcomes += [
        frozenset({"view", "long_view", *kinds})
        for n in range(len(AFTER) + 1)
        for kinds in combinations(AFTER, n)
    ]
    swipes = [Swipe("w0", 0, 0, kinds) for kinds in outcomes]
    for logit in (-4.0, -1.0, 0.5, 3.0):
        logs = outcome_likelihood(swipes, LONG)(np.full(len(swipes), logit))
        assert np.exp(logs).sum() == pytest.approx(1)


def test_what_comes_late_says_nothing_by_not_being_there_yet() -> None:
    view = Swipe("w0", 0, 1000, frozenset({"view", "long_view", "click", "like"}))
    at_once, later = (outcome_likelihood([view], now)(np.array([0.5]))[0] for now in (1000, LONG))
    assert at_once > later  # later there could have been a comment, and there is none
    assert outcome_likelihood([view], 0)(np.array([0.5]))[0] == at_once


def test_swipes_are_what_was_seen_in_order_with_what_came_of_it_so_far() -> None:
    world = World(0, 50, 100)
    ids = [f"w{n}" for n in range(6)]
    events = world.react("u1", ids, "r", world.start_ms)
    swipes = swipes_of(events, {item: rank for rank, item in enumerate(ids)})
    assert [s.item_id for s in swipes] == ids[: len(swipes)] and swipes
    assert [s.rank for s in swipes] == list(range(len(swipes)))
    for swipe in swipes:
        assert swipe.kinds == {e.kind for e in events if e.item_id == swipe.item_id}
        assert "view" in swipe.kinds


def test_the_list_is_the_best_that_the_cap_and_what_is_gone_allow() -> None:
    world = World(0, 50, 300)
    ceiling = Ceiling(world, world.start_ms)
    chances = dict(zip(ceiling.ids, ceiling.chances("u1", [], world.start_ms), strict=True))
    free = ceiling.show("u1", [], world.start_ms, (), 8, 0)
    assert free == sorted(chances, key=lambda item: -chances[item])[:8]
    shown = ceiling.show("u1", [], world.start_ms, free[:3], 8, 1)
    authors = [world.item(int(str(item)[1:])).fields["author"] for item in shown]
    assert len(set(authors)) == 8 and not {*shown} & {*free[:3]}
    assert len(Ceiling(world, world.start_ms + 10 * world.publish_every_ms).ids) == 310


def test_who_it_takes_a_person_for_is_among_the_clusters_of_their_age() -> None:
    world = World(5, 300, 10)
    for user in (f"u{n}" for n in range(300)):
        assert world._cluster(user) in clusters_of(world.user(user).fields["age_band"])


def test_expected_and_own_taste_make_up_the_taste_of_a_person() -> None:
    world, now = World(2, 4000, 10), World().start_ms + 7_000_000
    away = [
        world.taste(user, "rock", now) - world.shared_taste(world._cluster(user), "rock", now)
        for user in (f"u{n}" for n in range(4000))
    ]
    assert abs(np.mean(away)) < 0.05 and np.var(away) == pytest.approx(0.77, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("swipes", [0, 5, 20])
def test_it_expects_what_comes_and_is_near_the_true_posterior(swipes: int) -> None:
    """Over people its list is worth what it says, though they are the best: it isn't disappointed."""
    world = World(4, 60 if swipes else 120, 400)
    ceiling, now = Ceiling(world, world.start_ms), world.start_ms + 600_000
    said, worth, shares, errors = [], [], [], []
    for n in range(world.num_users):
        user = f"u{n}"
        ids = sorted(ceiling.ids, key=lambda item: uniform(7, user, item))[:swipes]
        events = [
            event
            for item in ids  # one by one: all are seen
            for event in world.react(user, [item], f"{user}-{item}", world.start_ms)
        ]
        its = swipes_of([e for e in events if e.time_ms <= now], dict.fromkeys(ids, 0))
        chances = ceiling.chances(user, its, now)
        best = np.argsort(-chances)[:8]
        said.append(chances[best].mean())
        worth.append(np.mean([world.true_long_view(user, ceiling.ids[i], now) for i in best]))
        if its and n < 10:
            prior, rows, law = (
                ceiling.prior(user, now),
                ceiling.rows(its),
                outcome_likelihood(its, now),
            )
            tastes_DT, weights_D, share = reweighed(
                learn(prior, *rows, law), prior, *rows, law, 5000, np.random.default_rng(n)
            )
            logits = ceiling._base_N + tastes_DT @ ceiling._x_NT.T
            errors.append(np.abs(weights_D @ (1 / (1 + np.exp(-logits))) - chances)[best].max())
            shares.append(share)
    off = np.array(said) - np.array(worth)
    assert abs(off.mean()) < 4 * off.std() / len(off) ** 0.5
    if swipes:
        assert min(shares) > 0.4 and np.median(errors) < 0.03
