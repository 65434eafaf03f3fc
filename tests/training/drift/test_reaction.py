"""Alarms in, reactions out."""

import pytest

from recsys.config.part_configs import DriftConfig
from recsys.events.control_records import Alarm, Reaction
from training.drift.reaction import ReactionPolicy

HOUR_MS = 3_600_000


def alarm(kind: str, what: str) -> Alarm:
    return Alarm(
        kind=kind, what=what, at_ms=0, step=1, expected=0.6, found=0.7, scale=0.03, detector="adwin"
    )


def feature(name: str) -> Alarm:
    return alarm("feature", name)


LOSS = alarm("loss", "like")


def test_a_loss_raises_the_rate_and_calls_for_the_offline_job_once() -> None:
    policy, because = ReactionPolicy(), ["loss like: 0.7, expected 0.6"]
    assert policy.step([LOSS], 256, 0)
    assert policy.reaction == Reaction(rate=3.0, offline=True, because=because)
    assert not policy.step([LOSS], 256, HOUR_MS)  # the rate is there, the job was called for
    assert policy.step([LOSS], 256, 7 * HOUR_MS)
    assert policy.reaction == Reaction(rate=3.0, offline=True, because=because, time_ms=7 * HOUR_MS)


def test_the_rate_falls_back_to_the_usual_and_stays_there() -> None:
    policy = ReactionPolicy()
    policy.step([LOSS], 256, 0)
    factors = [policy.reaction.rate for _ in range(180) if policy.step([], 256, 1)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 1.0 and max(factors) < 3.0
    assert len(factors) < 40


def test_a_feature_alone_calls_for_no_offline_job_and_three_do() -> None:
    policy = ReactionPolicy()
    policy.step([feature("a")], 256, 0)
    policy.step([feature("a")] * 2, 256, 0)
    assert not policy.reaction.offline
    assert policy.step([feature("b"), feature("c")], 256, 0)
    assert policy.reaction.offline and len(policy.reaction.because) == 3


def test_a_calm_stream_gathers_more_steps_and_an_alarm_ends_that_at_once() -> None:
    policy = ReactionPolicy()
    reactions = [policy.reaction for _ in range(1_000) if policy.step([], 256, 1)]
    assert reactions == [Reaction(publish_every=every, time_ms=1) for every in (2, 4, 8)]
    assert policy.step([LOSS], 256, 2) and policy.reaction.publish_every == 1


def test_the_rate_is_bounded() -> None:
    with pytest.raises(ValueError, match="most_rate is 20"):
        DriftConfig(most_rate=20)


def test_half_of_a_raised_rate_is_left_after_eight_thousand_examples() -> None:
    policy, rates = ReactionPolicy(), []
    policy.step([LOSS], 256, 0)
    for examples in (1_000, 7_000, 8_000, 100, 20_000, 10_000):
        policy.step([], examples, 1)
        rates.append(policy.reaction.rate)
    assert rates == [2.834, 2.0, 1.5, 1.5, 1.088, 1.0]  # a change of less than 5 % isn't set
