"""A replica measures its progress: views that were learned, the age of its weights, its lag."""

from pathlib import Path

import pytest

from recsys.config.system_config import Config
from recsys.events.control_records import Candidate
from recsys.events.hashing import key_of
from recsys.events.records import CONTROL, DELTAS, EXAMPLES, STEPS, Range, SampledView, Step
from serving.variants.model_variant import ModelVariant
from tests.support.serving.followed_log import FEATURES, NOW_MS, FollowedLog


@pytest.fixture
def fixture(tmp_path: Path) -> FollowedLog:
    return FollowedLog(tmp_path)


def step_record(number: int, stop: int, views: list[SampledView], examples: int = 40) -> Step:
    return Step(
        line="main", epoch=0, step=number, ranges=[Range(2, 0, stop)], examples=examples, lanes=4,
        time_ms=NOW_MS, config="c", views=views,
    )  # fmt: skip


def test_a_view_is_followed_to_the_step_that_learned_it(fixture: FollowedLog) -> None:
    fixture.turn()
    fixture.live.progress.freshness.acknowledged("r1", "v0", fixture.now_ms, fixture.now_ms)
    fixture.put(STEPS, step_record(1, 5, [SampledView(key_of("r1", "v0"), 2, 4)]))
    fixture.turn()
    assert len(fixture.live.progress.freshness.to_served) == 0
    fixture.step(1, 1.0)
    fixture.turn()
    assert fixture.live.progress.freshness.to_served.percentile(1.0) == 2 * 1_001
    fixture.turn()
    assert fixture.live.progress.examples.per_s() == pytest.approx(40 / 4, rel=0.4)


def test_views_of_a_step_that_a_snapshot_held_are_served_with_the_next(fixture: FollowedLog) -> None:
    variant = fixture.another()
    variant.progress.freshness.acknowledged("r1", "v0", fixture.now_ms, fixture.now_ms)
    fixture.put(STEPS, step_record(1, 5, [SampledView(key_of("r1", "v0"), 2, 4)]))
    fixture.put(STEPS, step_record(2, 9, []))
    fixture.snapshot(1, 1.0)
    fixture.turn(variant)
    assert variant.replica.step == 1 and len(variant.progress.freshness.to_served) == 0
    fixture.step(2, 2.0)
    fixture.turn(variant)
    assert variant.replica.step == 2 and len(variant.progress.freshness.to_served) == 1


def test_no_example_is_read_and_yet_weights_age_while_examples_wait(
    fixture: FollowedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, read = set[str](), fixture.log.read
    monkeypatch.setattr(fixture.log, "read", lambda topic, *rest: topics.add(topic) or read(topic, *rest))
    stale_ms = round(1000 * Config().serve.stale_s) + 1
    fixture.step(1, 1.0)
    fixture.turn()
    fixture.now_ms += 10 * stale_ms
    fixture.turn()
    assert not fixture.live.progress.stale(fixture.now_ms)  # none waits
    end = 1 + fixture.put(EXAMPLES, b"an example", partition=2)
    fixture.turn()
    assert not fixture.live.progress.stale(fixture.now_ms)
    assert fixture.live.progress.stale(fixture.now_ms + stale_ms)
    fixture.put(STEPS, step_record(2, end, []))
    fixture.step(2, 2.0)
    fixture.turn()
    fixture.turn()
    assert not fixture.live.progress.stale(fixture.now_ms + stale_ms)  # it is learned
    assert EXAMPLES not in topics and topics > {STEPS, DELTAS}


@pytest.mark.parametrize("learns", [True, False])
def test_a_candidate_that_does_not_learn_answers_for_as_long_as_it_is_the_canary(
    fixture: FollowedLog, learns: bool
) -> None:
    fixture.snapshot(3, 9.0, line="cand")
    fixture.put(CONTROL, Candidate(line="cand", registry="r", learns=learns))
    clock, stale_ms = lambda: fixture.now_ms, round(1000 * fixture.config.serve.stale_s) + 1
    fixture.turn()
    control = fixture.live.control
    canary = ModelVariant(fixture.config, fixture.log, FEATURES, clock, line="cand", control=control)
    fixture.turn(canary)
    fixture.put(EXAMPLES, b"an example")
    fixture.turn(canary)
    assert canary.progress.stale(fixture.now_ms + stale_ms) is learns


def test_lag_and_waiting_examples_are_seen_though_the_clock_was_set_back(fixture: FollowedLog) -> None:
    stale_ms = round(1000 * Config().serve.stale_s) + 1
    fixture.step(1, 1.0)
    fixture.turn()
    fixture.put(EXAMPLES, b"an example", partition=2)
    fixture.now_ms += 2_000
    fixture.turn()
    fixture.now_ms -= 3_600_000
    batch = fixture.live.followers.read()
    [change] = [change for follower, change in batch.changes if follower is fixture.live.progress]
    assert change.events_end is not None and change.example_ends[2] == 1
    fixture.live.followers.apply(batch)
    assert not fixture.live.progress.stale(fixture.now_ms)
    assert fixture.live.progress.stale(fixture.now_ms + stale_ms)
