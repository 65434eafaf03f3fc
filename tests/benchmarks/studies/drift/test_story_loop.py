"""The study of reactions: all stories are one until they part, and an arm differs by its reaction alone."""

import numpy as np
import pytest

from benchmarks.studies.drift.story_loop import (
    DAY_MS,
    PLAIN,
    SAME_DAYS,
    STORIES,
    StoryLoop,
    spans,
    world_of,
)
from benchmarks.studies.drift.study_reaction import compare

HOUR_MS = 3_600_000


def test_stories_are_one_until_they_part_and_differ_afterwards() -> None:
    worlds = {name: world_of(story, 3, 0.1) for name, story in STORIES.items()}
    start_ms = worlds["none"].start_ms
    people, items = [f"u{n}" for n in range(12)], [f"w{n}" for n in range(12)]

    def chances(name: str, day: float) -> list[float]:
        at_ms = start_ms + round(day * DAY_MS)
        return [worlds[name].true_long_view(u, i, at_ms) for u in people for i in items]

    for name, world in worlds.items():
        same_ms = start_ms + round(SAME_DAYS * DAY_MS)
        assert list(world.next_requests(start_ms, same_ms)) == list(
            worlds["none"].next_requests(start_ms, same_ms)
        )
        assert chances(name, 1.9) == chances("none", 1.9)
        assert (chances(name, 2.5) == chances("none", 2.5)) == (name in ("none", "bots"))
    author = worlds["viral"].shown_too(start_ms + round(2.5 * DAY_MS))
    assert author and worlds["viral"].shown_too(start_ms + round(3.5 * DAY_MS)) is None
    late_ms = start_ms + round(2.5 * DAY_MS)
    late = list(worlds["bots"].next_requests(late_ms, late_ms + HOUR_MS))
    bots = [visit for visit in late if not worlds["bots"].is_judged(visit.user_id)]
    assert 0.1 < len(bots) / len(late) < 0.6


def test_spans_are_the_first_hour_after_each_change_and_the_rest() -> None:
    def hours(name: str) -> dict[str, float]:
        named = spans(STORIES[name], 0)
        return {span: (until - since) / HOUR_MS for span, since, until in named}

    assert hours("sale_day") == pytest.approx({"hour": 1.0, "rest": 0.2375}, abs=1e-3)
    # B lasts less than ten minutes after its first hour.
    expected = {"hour 1": 1.0, "hour 2": 1.0, "rest 2": 0.2375}
    assert hours("a_b_a") == pytest.approx(expected, abs=1e-3)


def test_the_interval_is_that_of_paired_differences() -> None:
    def run(plain: float, oracle: float) -> dict[str, object]:
        arms = {PLAIN: plain, "oracle": oracle}
        return {arm: {"spans": {"hour": {"auc": value}}} for arm, value in arms.items()}

    found = compare([run(0.5, 0.51), run(0.7, 0.73)], "oracle", "hour", "auc")
    assert found["mean"] == pytest.approx(0.02)
    assert found["half"] == pytest.approx(12.706 * np.std([0.01, 0.03], ddof=1) / 2**0.5, rel=1e-3)


@pytest.mark.slow
def test_an_oracle_raises_the_rate_of_steps_and_the_plain_arm_does_not() -> None:
    story = STORIES["none"]

    def played(arm: str) -> StoryLoop:
        world = world_of(story, 1, 0.05)
        loop = StoryLoop(world, world.start_ms)
        until_ms = world.start_ms + DAY_MS // 2
        loop.begin(arm)
        loop.tell(arm, world.start_ms)
        loop.run(world.start_ms, until_ms)
        return loop

    plain, oracle, again = played(PLAIN), played("oracle"), played(PLAIN)
    assert plain.probes == again.probes and plain.watched == again.watched
    assert not plain.loop.rates and oracle.loop.rates[0] == 3.0
    assert oracle.loop.digest() != plain.loop.digest() == again.loop.digest()
    assert len(oracle.watched) == len(plain.watched) > 20
