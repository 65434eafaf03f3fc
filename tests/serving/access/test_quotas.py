"""Quotas by key, by user, and by day."""

from dataclasses import replace

from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.control_records import ApiKey
from serving.access.caller import SERVER, Caller
from serving.access.quotas import BURST_S, Quotas
from serving.admission.admission import TokenBuckets

KEY = ApiKey(id="k", digest="", scopes=[])


def quotas(replicas: int = 1, **access: float) -> Quotas:
    serve = ServeConfig(replicas=replicas)
    return Quotas(replace(Config(), serve=serve, access=AccessConfig(**access)))


def test_a_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    buckets = TokenBuckets(burst_s=BURST_S)
    assert [buckets.take("a", 100.0, 2.0) for _ in range(int(2 * BURST_S))] == [0.0] * 20
    assert buckets.take("a", 100.0, 2.0) == 0.5 and buckets.take("b", 100.0, 2.0) == 0.0
    assert buckets.take("a", 100.5, 2.0) == 0.0 and buckets.take("a", 100.5, 2.0) == 0.5
    assert buckets.take("a", 50.0, 2.0) == 0.5, "a clock that goes back adds nothing"
    assert all(buckets.take("a", 100.0, 0.0) == 0.0 for _ in range(100))


def test_the_oldest_bucket_is_forgotten() -> None:
    buckets = TokenBuckets(clients=2, burst_s=BURST_S)
    for name in "abc":
        assert buckets.take(name, 0.0, 0.1) == 0.0
    assert buckets.take("a", 0.0, 0.1) == 0.0, "it restarted full"
    assert buckets.take("c", 0.0, 0.1) == 10.0


def test_a_key_has_its_own_rate_or_the_configured_one() -> None:
    limited = quotas(key_rate=1.0)
    fast = ApiKey(id="fast", digest="", scopes=[], rate=3.0)
    assert sum(limited.call(KEY, 0.0) == 0.0 for _ in range(50)) == 10
    assert sum(limited.call(fast, 0.0) == 0.0 for _ in range(50)) == 30
    shared = quotas(2, key_rate=1.0)
    assert sum(shared.call(KEY, 0.0) == 0.0 for _ in range(50)) == 5, "its half, of two replicas"


def test_a_daily_quota_ends_at_midnight() -> None:
    limited, key = quotas(), ApiKey(id="d", digest="", scopes=[], daily=3)
    noon_s = 43_200.0
    assert [limited.call(key, noon_s) for _ in range(4)] == [0.0, 0.0, 0.0, 43_200.0]
    assert limited.call(key, 86_400.0) == 0.0


def test_a_user_is_limited_and_nobody_can_empty_anothers_bucket() -> None:
    limited = quotas(user_lists=1.0, user_events=0.1)
    stranger, user = Caller(source=1), Caller(user_id="u", source=1)
    assert sum(limited.list(stranger, "u", 0.0) == 0.0 for _ in range(20)) == 10
    assert limited.list(user, "u", 0.0) == 0.0 and limited.list(Caller(source=2), "u", 0.0) == 0.0
    assert limited.list(stranger, "v", 0.0) == 0.0
    assert [limited.event(user, "u", 0.0) for _ in range(2)] == [0.0, 10.0]
    assert all(limited.list(SERVER, "u", 0.0) == 0.0 for _ in range(100)), "a server's key has none"


def test_one_of_several_replicas_takes_a_whole_burst_of_events_and_then_its_share() -> None:
    shared, user = quotas(4, user_events=2.0), Caller(user_id="u")
    assert sum(shared.event(user, "u", 100.0) == 0.0 for _ in range(50)) == 20
    assert shared.event(user, "u", 100.0) == 2.0
