"""Access to the API over ASGI: who may call which route, which engagements count, what is written down."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import UNSET

from recsys.config.safety_config import AccessConfig, SafetyConfig, SafetyRule
from recsys.config.system_config import ServeConfig
from recsys.events.event_types import AGAIN, UNPROVEN, USER_PROVEN, Engagement
from recsys.events.records import CONTROL, ITEM_STATE, ItemState, unpack
from runtime.jobs.key_requests import read_keys, revoke_key, rotate_token_keys
from serving.access.audit import read_trail
from serving.access.scopes import PUBLIC, SCOPES, compiled, needed_scope
from serving.http_app import build_app
from serving.sessions.counter_loop import CounterLoop
from tests.support.serving.service_harness import (
    ADMIN,
    COMPAT,
    NOW_MS,
    World,
    compat_routes,
    living,
    run,
    view,
)

KEYS = AccessConfig(mode="keys", user_lists=0, user_events=0)
PRIVATE = ed25519.Ed25519PrivateKey.generate()
PEM = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
PLACES = {"user_id": "u9", "item_id": "v9", "category": "c", "kind": "like", "model": "m", "rest": "r"}


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def user_token(key: str, user_id: str, **claims: Any) -> str:
    claims = {"sub": user_id, "exp": NOW_MS // 1000 + 600} | claims
    return jwt.encode(claims, PRIVATE, "EdDSA", headers={"kid": key.split("_")[1]})


def routes_of(w: World) -> list[tuple[str, str, str]]:
    """Method, path and scope of each route."""
    paths = build_app(w.service, lambda: "").openapi()["paths"]
    routes = [(method.upper(), path.format(**PLACES)) for path, each in paths.items() for method in each]
    added = compiled(compat_routes().scopes)
    return [(*route, needed_scope(*route, added)) for route in routes]


async def test_each_route_takes_the_right_key_and_no_other(tmp_path: Path) -> None:
    async with living(World(tmp_path, compat=COMPAT, access=KEYS)) as w:
        keys = {scope: await w.add_key(scope) for scope in SCOPES}
        others = {scope: await w.add_key(*(other for other in SCOPES if other != scope)) for scope in SCOPES}
        expired = await w.add_key(*SCOPES, days=1 / 86_400_000)
        revoked = await w.add_key(*SCOPES)
        revoke_key(w.log, revoked.split("_")[1], w.now_ms)
        await asyncio.sleep(0.1)
        w.now_ms += 1_000
        wrong = keys["read"][:-4] + "AAAA"
        checked = 0
        for method, path, scope in routes_of(w):
            if scope == PUBLIC:
                continue
            for sent, status in (
                ({}, 401), (bearer(wrong), 401), (bearer(expired), 401), (bearer(revoked), 401),
                ({"X-API-Key": "other"}, 401), (bearer(others[scope]), 403),
            ):  # fmt: skip
                answer = await w.client.request(method, path, headers=sent)
                assert answer.status_code == status, (method, path, sent, answer.text)
                checked += 1
            for right in (bearer(keys[scope]), {"X-API-Key": keys[scope]}, ADMIN):
                answer = await w.client.request(method, path, headers=right)
                assert answer.status_code not in (401, 403), (method, path, answer.text)
        assert checked > 300
        for path in ("/", "/healthz", "/readyz", "/health", "/api/health/live"):
            assert (await w.client.get(path)).status_code == 200


async def test_the_refusals_say_what_is_missing_and_nothing_of_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async with living(World(tmp_path, access=KEYS)) as w:
        key, other = await w.add_key("events"), await w.add_key("read", user_keys=[PEM])
        revoke_key(w.log, other.split("_")[1], w.now_ms)
        await asyncio.sleep(0.1)
        token = user_token(key, "u1")
        said = ""
        for sent in (key, key[:-3] + "AAA", other, token, "k" * 43):
            for headers in (bearer(sent), {"X-API-Key": sent}, {"X-Admin-Key": sent}):
                answer = await w.client.get("/v1/status", headers=headers)
                assert answer.status_code in (401, 403)
                said += answer.text + str(answer.headers)
        assert "needs a key with the scope read" in said and "key " + key.split("_")[1] in said
        await w.client.post("/v1/events", json={"events": [{"token": key}]}, headers=bearer(key))
        missing = await w.client.get("/v1/status")
        assert "recsys keys add" in missing.text and missing.headers["www-authenticate"] == "Bearer"
        trail = "".join(f.read_text() for f in (w.service.callers.folder).glob("audit-*"))
        log = b"".join(r.value for r in w.log.read(CONTROL, 0, 0)).decode("latin-1")
        for secret in (key.split("_", 2)[2], other.split("_", 2)[2], token.split(".")[2], "k" * 43):
            assert secret not in said + trail + log + caplog.text


@pytest.mark.parametrize("calls", [2, pytest.param(16, marks=pytest.mark.slow)])
async def test_forged_events_change_no_list(tmp_path: Path, calls: int) -> None:
    """500 engagements in each of 16 calls, with invented requests and with a token of another list."""
    async with living(World(tmp_path, items=200)) as w:
        counters = CounterLoop(w.log, w.service.features, None, lambda: w.now_ms)
        target = "v7"

        async def lists() -> list[list[str]]:
            while counters.turn():
                pass
            counters.publish()
            w.now_ms += 2_000
            await asyncio.sleep(0.1)
            while w.fold.turn():
                pass
            asked = [await w.recommend(user_id=f"new{n}", n=10) for n in range(20)]
            return [[item["item_id"] for item in answer["items"]] for answer in asked]

        assert sum(target in items for items in await lists()) < 10, "by chance"
        counted = w.log.end(ITEM_STATE, 0)
        real = await w.recommend(user_id="ghost0", n=3, candidate_ids=[target, "v8"])
        assert real["token"] == "", "nor does a list of the caller's own items prove anything"
        token = (await w.recommend(user_id="other", n=3))["token"]
        for batch in range(calls):
            events = [
                view(real["request_id"] if n == 0 else f"r{batch}-{n}", target, f"x{batch}-{n}")
                | {"user_id": f"ghost{batch * 500 + n}", "kind": "long_view", "time_ms": w.now_ms}
                | ({"token": token} if n % 2 else {"proof": 1, "source": 9})
                for n in range(500)
            ]
            answer = (await w.client.post("/v1/events", json={"events": events})).json()
            assert (answer["accepted"], answer["unproven"]) == (500, 500)
        assert sum(target in items for items in await lists()) < 10, "by chance, as before"
        told = [unpack(each.value, ItemState) for each in w.log.read(ITEM_STATE, 0, counted)]
        assert told, "the events were counted"
        assert not any(each.keys or each.visits for each in told), "no counter of an item has changed"
        forged = [e for e in w.events() if isinstance(e, Engagement)]
        assert len(forged) == 500 * calls and {e.proof for e in forged} == {UNPROVEN}
        ghosts = {user for user in w.sessions.blobs if str(user).startswith("ghost")}
        assert ghosts == {"ghost0"}, "who had a list"
        session = (await w.client.get("/v1/sessions/ghost0")).json()
        assert session["recent"] == [] and session["topics"] == []
        text = (await w.client.get("/metrics")).text
        for why in ("other list", "no token"):
            assert f'recsys_unproven_total{{why="{why}"}} {250 * calls}.0' in text


async def test_a_token_counts_once_for_its_list_until_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.access.key_files._CHECK_S", 0.0)

    async with living(World(tmp_path)) as w:
        answer = await w.recommend(n=3)
        item, request = answer["items"][0]["item_id"], answer["request_id"]

        async def unproven(event_id: str, **more: Any) -> int:
            event = view(request, item, event_id, token=answer["token"]) | more
            sent = (await w.client.post("/v1/events", json={"events": [event]})).json()
            assert sent["rejected"] == 0, sent
            return int(sent["unproven"])

        assert await unproven("e3", kind="like") == 0 and await unproven("e4", kind="like") == 1
        assert await unproven("e3", kind="like") == 0, "the same event again is a repeat"
        assert await unproven("e4", kind="like") == 0, "so is an unproven one"
        assert await unproven("e2") == await unproven("e2b") == 0, "people look again"
        assert await unproven("e5", kind="share", user_id="u2") == 1
        assert await unproven("e6", kind="share", item_id="v59x") == 1
        assert await unproven("e7", kind="share", request_id="0" * 32) == 1
        other = "E" if answer["token"].endswith("A") else "A"
        assert await unproven("e8", kind="share", token=answer["token"][:-1] + other) == 1
        assert await unproven("e9", kind="share", token="") == 1
        rotate_token_keys(Path(w.config.state))
        assert await unproven("e10", kind="share") == 0, "the secret before still verifies"
        w.now_ms += 3 * 3_600_000
        assert await unproven("e11", kind="comment", time_ms=w.now_ms) == 1
        text = (await w.client.get("/metrics")).text
        for why, count in (("repeated", 1), ("other list", 3), ("no token", 1), ("old", 1)):
            assert f'recsys_unproven_total{{why="{why}"}} {count}.0' in text
        kept = [e for e in w.events() if isinstance(e, Engagement)]
        assert all(isinstance(e.source, int) and e.token is UNSET for e in kept)


async def test_a_further_view_in_a_list_counts_once_and_may_become_a_long_one(tmp_path: Path) -> None:
    async with living(World(tmp_path)) as w:
        answer = await w.recommend(n=3)
        views = [
            view(answer["request_id"], answer["items"][0]["item_id"], f"e{n}", token=answer["token"],
                 watch_ms=watch_ms)
            for n, watch_ms in enumerate((1_000, 9_000, 2_000, 10_000))
        ]  # fmt: skip
        sent = (await w.client.post("/v1/events", json={"events": [*views, views[3]]})).json()
        assert (sent["accepted"], sent["duplicates"], sent["unproven"]) == (4, 1, 0)
        kept = [(e.event_id, e.kind, e.proof) for e in w.events() if isinstance(e, Engagement)]
        assert kept == [
            ("e0", "view", UNSET), ("e1:long_view", "long_view", UNSET), ("e1", "view", AGAIN),
            ("e2", "view", AGAIN), ("e3", "view", AGAIN),
        ]  # fmt: skip


async def test_an_unproven_event_does_not_stand_in_the_way_of_a_proven_one(tmp_path: Path) -> None:
    async with living(World(tmp_path)) as w:
        answer = await w.recommend(n=3)
        event = view(answer["request_id"], answer["items"][0]["item_id"], "e1", kind="long_view")
        for more, expected in (({}, 1), ({}, 0), ({"token": answer["token"]}, 1)):
            sent = await w.client.post("/v1/events", json={"events": [event | more]})
            assert sent.json()["accepted"] == expected
        assert sorted(e.attributed for e in w.events()[1:]) == [False, True]


async def test_a_servers_key_attributes_by_itself(tmp_path: Path) -> None:
    async with living(World(tmp_path, access=KEYS)) as w:
        key = bearer(await w.add_key("events", "recommend", "attribute"))
        body = {"user_id": "u1", "n": 2, "candidate_ids": ["v1", "v2"]}
        answer = (await w.client.post("/v1/recommend", json=body, headers=key)).json()
        assert len(answer["items"]) == 2 and answer["token"]
        events = [view(answer["request_id"], "v1", f"e{n}", kind="like") for n in range(3)]
        sent = await w.client.post("/v1/events", json={"events": events}, headers=key)
        assert (sent.json()["accepted"], sent.json()["unproven"]) == (3, 0)
        assert all(e.attributed for e in w.events() if isinstance(e, Engagement))


async def test_a_user_token_reads_and_writes_as_its_user_only(tmp_path: Path) -> None:
    async with living(World(tmp_path, compat=COMPAT, access=KEYS)) as w:
        key = await w.add_key("read", user_keys=[PEM])
        mine = bearer(user_token(key, "u1"))

        async def status(method: str, path: str, body: Any = None) -> int:
            return (await w.client.request(method, path, json=body, headers=mine)).status_code

        assert await status("POST", "/v1/recommend", {"user_id": "u1"}) == 200
        assert await status("POST", "/v1/recommend", {"user_id": "u2"}) == 403
        assert await status("GET", "/v1/sessions/u1") == 200
        assert await status("GET", "/v1/sessions/u2") == 403
        assert await status("GET", "/v1/status") == 200
        for path in ("/metrics", "/v1/inspect/users/u1", "/api/recommend/u1", "/api/item/v1"):
            assert await status("GET", path) == 403, path
        assert await status("POST", "/rank/m", {"id": "r", "items": [{"id": "v1"}]}) == 403
        events = [view("r", "v1", "e1"), view("r", "v1", "e2", user_id="u2")]
        sent = await w.client.post("/v1/events", json={"events": events}, headers=mine)
        [accepted, rejected] = sent.json()["results"]
        assert accepted["status"] == "accepted" and rejected["error"]["field"] == "user_id"
        [event] = [e for e in w.events() if isinstance(e, Engagement)]
        assert event.proof == USER_PROVEN, "the user is proven, the impression isn't"


async def test_a_user_token_cannot_claim_another_age(tmp_path: Path) -> None:
    rule = SafetyRule(value="a3", field="author", unless={"age_band": "adult"})

    async with living(World(tmp_path, access=KEYS, safety=SafetyConfig((rule,)))) as w:
        server = await w.add_key("recommend", user_keys=[PEM])
        body = {"user_id": "u1", "n": 40, "context": {"age_band": "adult"}}
        shown = {}
        for name, key in (("server", server), ("browser", user_token(server, "u1"))):
            answer = await w.client.post("/v1/recommend", json=body, headers=bearer(key))
            items = answer.json()["items"]
            shown[name] = {item["fields"]["author"] for item in items}
        assert "a3" in shown["server"] and "a3" not in shown["browser"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"host": "evil.example"}, 421), ({"host": "localhost:8000"}, 200), ({"host": "[::1]"}, 200),
     ({"origin": "http://evil.example"}, 403), ({"origin": "http://localhost"}, 200),
     ({"sec-fetch-site": "cross-site"}, 403), ({"sec-fetch-site": "same-site"}, 403)],
)  # fmt: skip
async def test_a_page_elsewhere_reaches_no_session(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with living(World(tmp_path)) as w:
        for path in ("/v1/sessions/bob", "/v1/status", "/metrics"):
            assert (await w.client.get(path, headers=headers)).status_code == status
        assert (await w.client.get("/healthz", headers=headers)).status_code == 200
        linked = await w.client.get("/", headers=headers)
        assert linked.status_code == (200 if "sec-fetch-site" in headers else status)


def test_a_page_of_a_listed_origin_may_call(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        app = {"origin": "https://app.example.org"}
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        allowed = await w.client.options("/v1/events", headers=app | asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
        refused = await w.client.get("/v1/status", headers=app)
        assert refused.status_code == 401, "it needs a key all the same, and may read why"
        assert refused.headers["access-control-allow-origin"] == "https://app.example.org"
        exposed = refused.headers["access-control-expose-headers"].split(", ")
        assert sorted(exposed) == ["date", "retry-after"], "clients wait, and set their clocks"
        other = await w.client.get("/v1/status", headers=ADMIN | {"origin": "https://other.example"})
        assert other.status_code == 403

    access = AccessConfig(mode="keys", origins=("https://app.example.org",))
    run(World(tmp_path, access=access), scenario)


async def test_quotas_of_keys_and_users(tmp_path: Path) -> None:
    async with living(World(tmp_path, access=AccessConfig(mode="keys", user_lists=2, user_events=3))) as w:
        key = bearer(await w.add_key("recommend", "events", rate=1.0, daily=15))

        async def asked(**more: Any) -> int:
            answer = await w.client.post("/v1/recommend", json={"user_id": "u1"} | more, headers=key)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
            return answer.status_code

        assert [await asked() for _ in range(12)] == [200] * 10 + [429] * 2
        w.now_ms += 60_000
        assert [await asked() for _ in range(7)] == [200] * 5 + [429] * 2, "the day is used up"
        other = bearer(await w.add_key("recommend", "events"))
        body = {"user_id": "u2"}
        sent = [await w.client.post("/v1/recommend", json=body, headers=other) for _ in range(22)]
        assert [answer.status_code for answer in sent] == [200] * 20 + [429] * 2
        events = [view("r", "v1", f"e{n}", user_id="u3") for n in range(40)]
        body = {"events": events}
        over = await w.client.post("/v1/events", json=body, headers=other)
        assert (over.status_code, over.headers["retry-after"]) == (429, "4"), "10 events, 3 a second"
        assert "10 of 40 events are over access.user_events" in over.json()["error"]
        w.now_ms += 4_000
        again = (await w.client.post("/v1/events", json=body, headers=other)).json()
        assert (again["accepted"], again["duplicates"], again["rejected"]) == (10, 30, 0)
        kept = [e.event_id for e in w.events() if isinstance(e, Engagement)]
        assert sorted(kept) == sorted(f"e{n}" for n in range(40))
        text = (await w.client.get("/metrics", headers=ADMIN)).text
        assert 'recsys_events_total{status="retry"} 10.0' in text


def test_the_trail_names_changes_and_refusals(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        key = await w.add_key("catalogue")
        new = {"items": [{"item_id": "secret name"}]}
        await w.client.post("/v1/items", json=new, headers=bearer(key))
        await w.client.delete("/v1/users/u1", headers=ADMIN)
        await w.client.get("/v1/status", headers=ADMIN)  # changes nothing
        for _ in range(300):
            await w.client.delete("/v1/users/u1", headers=bearer(key))
        w.now_ms += 60_000
        await w.client.delete("/v1/users/u2")

    w = World(tmp_path, access=KEYS)
    run(w, scenario)
    lines = list(read_trail(tmp_path / "run"))
    calls = [line for line in lines if "why" not in line]
    key_id = read_keys(w.log)[0].id
    assert [(c["key"], c["method"], c["path"], c["status"]) for c in calls] == [
        (key_id, "POST", "/v1/items", 202),
        ("admin", "DELETE", "/v1/users/u1", 202),
    ]
    refused = lines[2:]
    assert len(refused) == 101 and refused[-1]["not_logged"] == 200, "a flood is counted"
    assert refused[0]["status"] == 403 and key_id in refused[0]["why"]
    assert list(read_trail(tmp_path / "run", NOW_MS + 30_000)) == [refused[-1]]
    assert "secret name" not in json.dumps(lines)
    assert all(f.stat().st_mode & 0o077 == 0 for f in (tmp_path / "run").glob("audit-*"))


async def test_lists_for_all_count_in_the_quota_of_a_users_token(tmp_path: Path) -> None:
    """A key of a server, which asks for all its users, has its own quota."""
    async with living(World(tmp_path, access=AccessConfig(mode="keys", user_lists=0.5))) as w:
        key = await w.add_key("read", user_keys=[PEM])
        mine, other = (bearer(user_token(key, user)) for user in ("u1", "u2"))
        paths = ["popular", "latest", "trending", "items/v1/similar"] * 2

        async def statuses(headers: dict[str, str]) -> list[int]:
            return [(await w.client.get(f"/v1/{path}", headers=headers)).status_code for path in paths]

        assert await statuses(mine) == [200] * 5 + [429] * 3
        asked = await w.client.post("/v1/recommend", json={"user_id": "u1"}, headers=mine)
        assert asked.status_code == 429
        assert await statuses(other) == [200] * 5 + [429] * 3
        assert await statuses(bearer(await w.add_key("recommend"))) == [200] * 8


async def test_an_engagement_is_not_older_than_its_list(tmp_path: Path) -> None:
    """The bounds of new accounts go by these times: one back-dated by a day would make an account old."""
    async with living(World(tmp_path)) as w:
        answer = await w.recommend(n=1)
        day_before = {"time_ms": NOW_MS - 25 * 3_600_000, "kind": "like"}
        item, token = answer["items"][0]["item_id"], {"token": answer["token"]}
        likes = [
            view(answer["request_id"], item, f"e{n}", **day_before, **more)
            for n, more in enumerate((token, {}))
        ]
        sent = await w.client.post("/v1/events", json={"events": likes})
        assert sent.json()["accepted"] == 2
        times = {e.event_id: e.time_ms for e in w.events() if isinstance(e, Engagement)}
        assert times == {"e0": NOW_MS // 1000 * 1000, "e1": day_before["time_ms"]}


def test_a_whole_64_of_ipv6_is_limited_as_one_client(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        async def asked(address: str) -> int:
            headers = {"x-forwarded-for": address}
            return (await w.client.get("/v1/popular", headers=headers)).status_code

        addresses = ["2001:db8::1", "2001:db8::2:3", "[2001:db8::4]:5678", "2001:db8:0:1::1"]
        assert [await asked(address) for address in addresses] == [200, 429, 429, 200]
        ports = [await asked(f"192.0.2.1:{port}") for port in (5001, 5002)]
        assert ports == [200, 429], "a proxy may write the port, which differs by connection"

    access = AccessConfig(proxies=("127.0.0.1",))
    run(World(tmp_path, serve=ServeConfig(client_rate=0.01), access=access), scenario)
