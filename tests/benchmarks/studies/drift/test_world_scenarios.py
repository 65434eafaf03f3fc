"""Each story changes what it says, when it says, and nothing else."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.studies.drift.world_scenarios import DAY_MS, SCENARIOS, ScenarioWorld

HOUR_MS = DAY_MS // 24


def likings(world: ScenarioWorld, day: float, users: int = 30, items: int = 30) -> np.ndarray:
    at_ms = world.start_ms + round(day * DAY_MS)
    return np.array(
        [
            [world.true_long_view(f"u{u}", f"w{i}", at_ms) for i in range(items)]
            for u in range(users)
        ]
    )


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_a_day_has_a_night_and_people_come_in_visits() -> None:
    world = ScenarioWorld(3, requests_per_s=0.05)
    day = list(world.next_requests(world.start_ms, world.start_ms + DAY_MS))
    hours = np.array([(r.time_ms - world.start_ms) // HOUR_MS for r in day])
    assert 0.8 < len(day) / (0.05 * 86_400) < 1.2
    assert 8 * np.sum((hours >= 2) & (hours < 6)) < np.sum((hours >= 14) & (hours < 18))
    assert [r.time_ms for r in day] == sorted(r.time_ms for r in day)
    middle = world.start_ms + DAY_MS // 2
    morning = list(world.next_requests(world.start_ms, middle))
    assert day == [*morning, *world.next_requests(middle, world.start_ms + DAY_MS)]
    follows = sum(
        any(o.user_id == r.user_id and o.time_ms == r.time_ms + 120_000 for o in day) for r in day
    )
    assert follows > 0.5 * len(day)


def test_where_nothing_happens_tastes_stay_but_for_moods() -> None:
    world = ScenarioWorld(3)
    assert alike(likings(world, 0.5), likings(world, 4.5)) > 0.8


@pytest.mark.parametrize(
    ("story", "changed", "before_and_after"),
    [("meaning", (2.5, 4.5), (0.5, 1.9)), ("a_b_a", (2.5, 3.1), (0.5, 4.5)),
     ("sale_day", (2.1, 2.9), (1.5, 3.5))],
)  # fmt: skip
def test_tastes_are_others_while_the_story_says_so(
    story: str, changed: tuple[float, float], before_and_after: tuple[float, float]
) -> None:
    world = SCENARIOS[story](3)
    first, second = (likings(world, day) for day in before_and_after)
    assert alike(first, second) > 0.8
    for day in changed:
        assert alike(likings(world, day), first) < 0.75
    assert alike(*(likings(world, day) for day in changed)) > 0.8


def test_a_taste_turns_within_a_session_for_every_second_one() -> None:
    world = SCENARIOS["session_turn"](3)
    stretch = world.start_ms + HOUR_MS  # and a mood begins
    turned = [
        world.taste(f"u{n}", "cooking", stretch)
        != world.taste(f"u{n}", "cooking", stretch + 1_199_000)
        for n in range(200)
    ]
    assert 0.35 < np.mean(turned) < 0.65


def test_everybody_likes_who_is_everywhere() -> None:
    world = SCENARIOS["viral"](3)
    at_ms = world.start_ms + DAY_MS + 12 * HOUR_MS
    author = world.shown_too(at_ms)
    assert author and world.shown_too(at_ms + 7 * HOUR_MS) is None
    assert world.shown_too(world.start_ms + 12 * HOUR_MS) is None
    its = next(f"w{n}" for n in range(500) if world.author(f"w{n}") == author)
    now = np.mean([world.true_long_view(f"u{n}", its, at_ms) for n in range(50)])
    then = np.mean([world.true_long_view(f"u{n}", its, at_ms + 7 * HOUR_MS) for n in range(50)])
    assert now > 0.75 and now - then > 0.3


def test_bots_come_beside_people_and_like_one_author_or_anything() -> None:
    world = SCENARIOS["bots"](3, requests_per_s=0.05)
    midnights = [world.start_ms + day * DAY_MS for day in (1, 2, 3)]
    second, third = (
        [request.user_id for request in world.next_requests(from_ms, until_ms)]
        for from_ms, until_ms in pairwise(midnights)
    )
    people = [user for user in third if world.is_judged(user)]
    assert len(second) == sum(map(world.is_judged, second))
    assert 0.25 < 1 - len(people) / len(third) < 0.42
    assert 0.85 < len(people) / len(second) < 1.15
    bots = sorted(set(third) - set(people))
    others = [f"w{n}" for n in range(1, 200) if world.author(f"w{n}") != world.author("w0")]
    liked = {bot: world.true_long_view(bot, "w0", 0) for bot in bots}
    assert set(liked.values()) == {0.5, 0.98}
    assert {world.true_long_view(bot, others[0], 0) for bot in bots} == {0.5, 0.02}


def test_a_story_is_told_by_its_seed_and_in_days_of_any_length() -> None:
    one, same, other = (SCENARIOS["meaning"](seed) for seed in (3, 3, 4))
    assert np.array_equal(likings(one, 2.5), likings(same, 2.5))
    assert not np.array_equal(likings(one, 2.5), likings(other, 2.5))
    short = SCENARIOS["a_b_a"](3, day_ms=DAY_MS // 12)
    assert short.day(short.start_ms + DAY_MS // 6) == 2.0
