"""The schedule of kills; no system is started here."""

import pytest

from benchmarks.system.bench_kills import ALONE, SUPERVISOR, KillOptions, schedule, summary


def test_sixty_kills_hit_every_part_and_twenty_come_in_pairs() -> None:
    strikes = schedule(KillOptions())
    assert sum(map(len, strikes)) == 60
    assert sum(len(strike) for strike in strikes if len(strike) == 2) == 20
    assert {name for strike in strikes for name in strike} == ALONE.keys()
    assert ("ray", SUPERVISOR) in strikes and strikes == schedule(KillOptions())
    assert strikes != schedule(KillOptions(seed=1))


def test_a_short_run_kills_different_parts_and_some_can_be_chosen() -> None:
    short = schedule(KillOptions(kills=12))
    assert sum(map(len, short)) == 12
    some = schedule(KillOptions(only=("valkey", "joiner")))
    assert some.count(("valkey",)) == 3 and some.count(("valkey", "joiner")) == 1
    with pytest.raises(ValueError, match="--only names broker, expected of session-fold"):
        schedule(KillOptions(only=("broker",)))


def test_recovery_times_are_listed_by_target() -> None:
    strikes = [("a",), ("a", "b"), ("a",), ("c",)]
    rows: list[dict[str, object]] = [{"whole_after_s": seconds} for seconds in (1.0, None, 2.0)]
    assert summary(strikes, rows) == {"a": [1.0, 2.0], "a+b": [None]}
