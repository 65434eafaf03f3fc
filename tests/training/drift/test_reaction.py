"""Alarms in, reactions out."""

import pytest

from training.drift.monitors import AlarmEvidence, DriftAlarm
from training.drift.reaction import (
    PublishEvery,
    ReactionConfig,
    ReactionPolicy,
    SetRate,
    StartOffline,
)

EVIDENCE = AlarmEvidence("page-hinkley", 0.6, 0.7, 0.03, 5, 4)
LOSS = DriftAlarm("loss", "like", 0, 1, EVIDENCE)
HOUR_MS = 3_600_000


def feature(name: str) -> DriftAlarm:
    return DriftAlarm("feature", name, 0, 1, EVIDENCE)


def test_a_loss_raises_the_rate_and_calls_for_the_offline_job_once() -> None:
    reactor = ReactionPolicy()
    assert reactor.step([LOSS], 256, 0) == [SetRate(3.0, (LOSS,)), StartOffline(0, (LOSS,))]
    assert reactor.step([LOSS], 256, HOUR_MS) == []  # the rate is there, the job was called for
    assert reactor.step([LOSS], 256, 7 * HOUR_MS)[-1:] == [StartOffline(7 * HOUR_MS, (LOSS,) * 3)]


def test_the_rate_falls_back_to_the_usual_and_stays_there() -> None:
    reactor = ReactionPolicy()
    reactor.step([LOSS], 256, 0)
    told = [its for _ in range(400) for its in reactor.step([], 256, 1) if isinstance(its, SetRate)]
    factors = [its.factor for its in told]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 1.0 and max(factors) < 3.0
    assert len(factors) < 40


def test_a_feature_alone_calls_for_no_offline_job_and_three_do() -> None:
    reactor = ReactionPolicy()
    assert not any(isinstance(its, StartOffline) for its in reactor.step([feature("a")], 256, 0))
    assert not any(
        isinstance(its, StartOffline) for its in reactor.step([feature("a")] * 2, 256, 0)
    )
    found = reactor.step([feature("b"), feature("c")], 256, 0)
    assert isinstance(found[-1], StartOffline)


def test_a_calm_stream_gathers_more_steps_and_an_alarm_ends_that_at_once() -> None:
    reactor = ReactionPolicy()
    told = [its for _ in range(1_000) for its in reactor.step([], 256, 1)]
    assert told == [PublishEvery(2), PublishEvery(4), PublishEvery(8)]
    assert PublishEvery(1, (LOSS,)) in reactor.step([LOSS], 256, 2)
    assert reactor.gathered == 1


def test_the_rate_is_bounded() -> None:
    with pytest.raises(ValueError, match="most_rate is 20"):
        ReactionConfig(most_rate=20)
