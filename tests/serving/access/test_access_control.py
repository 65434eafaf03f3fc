"""Who a caller is while a replica starts, and after."""

from typing import Any

import jwt
import pytest

from recsys.clock import Clock, Pace
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config
from recsys.events.control_records import ApiKey
from serving.access.access_control import AccessControl, Credentials
from serving.access.access_layer import refusal
from serving.access.caller import Denied
from serving.access.keyring import Keyring, digest_of_secret, text_of
from serving.access.quotas import Quotas

CONFIG = Config(access=AccessConfig(mode="keys"))
DOOR_KEYS = ("d" * 43,)
KEY = "rk_abcd1234_" + "s" * 43
USER = jwt.encode({"sub": "u1", "exp": 2_000_000_000}, "x" * 32, headers={"kid": "abcd1234"})


def control(keyring: Keyring, door_keys: tuple[str, ...] = DOOR_KEYS) -> AccessControl:
    return AccessControl(
        CONFIG, keyring, Quotas(CONFIG), lambda: "admin", lambda: ("source",), lambda: door_keys, lambda: 0
    )


def call(key: str) -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"x-api-key", key.encode())]
    return {"path": "/v1/recommend", "method": "POST", "headers": headers, "client": ("::1", 1)}


@pytest.mark.parametrize("key", [KEY, USER])
def test_a_replica_that_has_not_read_the_keys_yet_asks_to_try_again(key: str) -> None:
    """401 would tell an app that its key is wrong."""
    keyring = Keyring(complete=False)
    with pytest.raises(Denied) as early:
        control(keyring).admit(call(key))
    assert (early.value.status, early.value.reason) == (503, "starting")
    assert refusal(early.value).headers["retry-after"] == "1"
    keyring.complete = True
    with pytest.raises(Denied) as wrong:
        control(keyring).admit(call(key))
    assert wrong.value.status == 401


def test_the_admin_key_needs_no_log_and_no_key_at_all_is_refused_at_once() -> None:
    starting = control(Keyring(complete=False))
    assert starting.admit(call("admin")).key_id == "admin"
    with pytest.raises(Denied) as none:
        starting.admit(call(""))
    assert none.value.status == 401


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "10.0.0.2"])
def test_only_the_systems_own_haproxy_tells_a_callers_address(peer: str) -> None:
    def address(door: str, door_keys: tuple[str, ...] = DOOR_KEYS) -> str:
        headers = [(b"x-forwarded-for", b"192.0.2.1"), (b"x-recsys-door", door.encode())]
        return control(Keyring(), door_keys).address({"headers": headers, "client": (peer, 1)})

    assert address(DOOR_KEYS[0]) == "192.0.2.1"
    assert [address(door) for door in ("", "x", "d" * 44)] == [peer] * 3
    assert address("", ()) == peer, "a replica that can't read the key believes nobody"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, ""),
        ({"authorization": "Bearer  rk_1 "}, "rk_1"),
        ({"authorization": "bEARER rk_1", "origin": "https://a.b"}, "rk_1"),
        ({"authorization": "Basic cms6MQ=="}, ""),
        ({"authorization": "Bearer a", "x-api-key": "b"}, "b"),
        ({"authorization": "Bearer a", "x-api-key": "b", "x-admin-key": " c "}, "c"),
    ],
)
def test_a_key_is_read_from_the_header_that_counts_first(headers: dict[str, str], key: str) -> None:
    sent = {"host": "feed.example", "sec-fetch-site": "cross-site"} | headers
    pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
    origin = headers.get("origin", "")
    assert Credentials.of({"headers": pairs}) == ("feed.example", origin, "cross-site", key)


def test_keys_expire_by_the_machines_time_and_quotas_go_by_event_time() -> None:
    machine_s, day_s = 1_700_000_000, 86_400
    pace = Pace(machine_ns=machine_s * 10**9, event_ms=0, speed=day_s, until_ns=2**62)
    now_s, keyring = [machine_s], Keyring()
    secret, until_ms = "s" * 43, (machine_s + 10) * 1000
    digest = digest_of_secret(secret)
    keyring.fold(ApiKey(id="abcd1234", digest=digest, scopes=["recommend"], daily=1, until_ms=until_ms))
    keyring.complete = True
    caller = AccessControl(
        CONFIG, keyring, Quotas(CONFIG), lambda: "admin", lambda: ("source",), lambda: (),
        Clock(lambda: pace, lambda: now_s[0] * 10**9),
    )  # fmt: skip
    key = text_of("abcd1234", secret)
    for now_s[0] in range(machine_s, machine_s + 10):  # a day a second
        caller.admit(call(key))
        with pytest.raises(Denied) as quota:
            caller.admit(call(key))
        assert quota.value.status == 429
    now_s[0] += 1
    with pytest.raises(Denied) as over:
        caller.admit(call(key))
    assert over.value.status == 401
