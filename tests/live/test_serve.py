"""The Serve application behind its own proxy, with the folds beside it: one system for all tests here."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.support.systems.serve_process import System, recsys, until, viewed

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]
ITEMS = 300


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    state = tmp_path_factory.mktemp("serve") / "state"
    up = recsys("up", "--detach", "--only", "serve,session-fold,counters", state=state)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        running = System(state)
        items = [
            {
                "item_id": f"v{i}",
                "fields": {"author": f"a{i % 40}", "tags": [f"t{i % 9}"], "duration_ms": 9_000},
            }
            for i in range(ITEMS)
        ]
        put = running.client.post("/v1/items", json={"items": items}, headers=running.admin)
        assert put.status_code == 202 and put.json()["accepted"] == ITEMS
        until(lambda: running.client.get("/v1/status").json()["items"] == ITEMS)
        yield running
    finally:
        recsys("down", state=state)


def test_a_swipe_changes_the_session_and_the_next_list(system: System) -> None:
    first = system.recommend("anna", n=5)
    assert len(first["items"]) == 5 and first["degraded"] == ["model"]
    event = system.view(first, "anna", 8_000)
    until(lambda: system.events_of("anna") == 2)  # the view, and the long view that it was
    second = system.recommend("anna", n=50)
    assert event["item_id"] not in {item["item_id"] for item in second["items"]}
    assert second["stamp"]["session_offset"] > first["stamp"]["session_offset"]
    again = system.client.post("/v1/events", json={"events": [event]}).json()
    assert again["duplicates"] == 1


def test_counters_reach_the_replica(system: System) -> None:
    before = system.recommend("ben")["stamp"]["item_state_offset"]
    system.view(system.recommend("ben", n=1), "ben", 3_000)
    until(lambda: system.recommend("ben")["stamp"]["item_state_offset"] > before)


def test_the_session_fold_is_killed_and_loses_and_repeats_nothing(system: System) -> None:
    counted = 0
    for turn in range(6):
        for _ in range(5):
            system.view(system.recommend("carl", n=1), "carl", 500)
            counted += 1
        if turn in (1, 3):
            pid = system.beat("session-fold")["pid"]
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: system.beat("session-fold")["pid"] != pid)
    until(lambda: system.events_of("carl") >= counted, 60)
    time.sleep(0.3)
    assert system.events_of("carl") == counted


def test_the_session_store_is_killed_and_answers_go_on(system: System) -> None:
    for _ in range(5):
        system.view(system.recommend("dora", n=1), "dora", 500)
    until(lambda: system.events_of("dora") == 5)
    [server] = psutil.Process(system.beat("valkey")["pid"]).children()
    server.kill()
    counted, degraded = 5, 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = system.recommend("dora", n=1)
        degraded += "session" in answer["degraded"]
        system.view(answer, "dora", 500)
        counted += 1
        if degraded and "session" not in answer["degraded"]:
            break
        time.sleep(0.1)
    assert degraded > 0
    until(lambda: system.events_of("dora") >= counted, 60)
    time.sleep(0.3)
    assert system.events_of("dora") == counted


def test_too_much_at_once_is_refused_early(system: System) -> None:
    def ask(i: int) -> tuple[int, str | None]:
        with httpx.Client(base_url=str(system.client.base_url), timeout=60.0) as client:
            answer = client.post("/v1/recommend", json={"user_id": f"u{i}", "n": 10})
            return answer.status_code, answer.headers.get("retry-after")

    with ThreadPoolExecutor(400) as pool:
        answers = list(pool.map(ask, range(400)))
    statuses = {status for status, _ in answers}
    assert 200 in statuses and statuses <= {200, 503}
    assert all(wait is not None for status, wait in answers if status == 503)
    assert system.recommend("u1")["items"]


def test_a_wrong_body_and_a_large_one_come_through_the_proxy(system: System) -> None:
    headers = {"content-type": "application/json"}
    for body, status in {b"{": 400, b'{"n": 1}': 422, b"x" * 1_100_000: 413}.items():
        answer = system.client.post("/v1/recommend", content=body, headers=headers)
        assert answer.status_code == status and answer.json()["error"]


def test_everything_listens_on_loopback_alone(system: System) -> None:
    pids = {system.beat(part)["pid"] for part in ("ray", "serve", "session-fold", "counters")}
    family = {child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)}
    listening = {
        c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.pid in pids | family
    }
    assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_replica_that_dies_is_replaced_and_catches_up(system: System) -> None:
    user_events = system.events_of("anna")
    killed = [p for p in psutil.process_iter(["name", "cmdline"]) if system.serves(p)]
    assert len(killed) == 1
    killed[0].kill()

    def back() -> bool:
        try:
            return system.client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    time.sleep(1.0)
    until(back, 120)
    until(lambda: system.client.get("/v1/status").json()["items"] == ITEMS, 30)
    assert system.events_of("anna") == user_events
    assert system.recommend("anna")["degraded"] == ["model"]


def test_replicas_are_replaced_and_no_request_fails(system: System) -> None:
    stop, failed, answered = threading.Event(), list[str](), Counter[str]()

    def ask(user_id: str) -> None:
        with httpx.Client(base_url=str(system.client.base_url), timeout=20.0) as client:
            while not stop.wait(0.05):
                try:
                    answer = client.post("/v1/recommend", json={"user_id": user_id, "n": 3})
                    answer.raise_for_status()
                    event = viewed(answer.json(), user_id, 500)
                    client.post("/v1/events", json={"events": [event]}).raise_for_status()
                    answered[user_id] += 1
                except httpx.HTTPError as error:
                    failed.append(repr(error))

    before = replicas(system)
    asking = [threading.Thread(target=ask, args=(f"walker{n}",)) for n in range(2)]
    for thread in asking:
        thread.start()
    done = recsys("restart", "serve", state=system.state)
    until(lambda: not before & replicas(system), 30)  # the old one has drained
    stop.set()
    for thread in asking:
        thread.join()
    assert done.returncode == 0, done.stderr
    assert failed == [] and min(answered.values()) > 20
    assert system.client.get("/v1/status").json()["items"] == ITEMS
    for user_id, count in answered.items():
        until(lambda user_id=user_id, count=count: system.events_of(user_id) >= count, 30)


def replicas(system: System) -> set[int]:
    return {p.pid for p in psutil.process_iter(["name", "cmdline"]) if system.serves(p)}


def test_clients_of_gorse_and_metarank_are_served_and_the_parts_are_measured(system: System) -> None:
    client, key = system.client, {"X-API-Key": system.admin["X-Admin-Key"]}
    item = {"ItemId": "film", "Labels": ["t1"], "Categories": ["films"], "IsHidden": False}
    assert client.post("/api/item", json=item, headers=key).json() == {"RowAffected": 1}
    assert client.get("/api/item/film").json()["Labels"] == ["t1"]
    assert client.get("/api/recommend/gwen/films").json() == ["film"]
    star = {"FeedbackType": "star", "UserId": "gwen", "ItemId": "film", "Timestamp": "2022-02-24"}
    assert client.post("/api/feedback", json=[star], headers=key).json() == {"RowAffected": 1}
    until(lambda: system.events_of("gwen") == 1)
    ranking = {"id": "r1", "user": "milo", "items": [{"id": f"v{n}"} for n in range(20)]}
    form = {"content-type": "application/x-www-form-urlencoded"}
    ranked = client.post("/rank/feed", json=ranking, headers=form).json()["items"]
    assert sorted(one["item"] for one in ranked) == sorted(f"v{n}" for n in range(20))
    click = {"event": "interaction", "id": "c1", "ranking": "r1", "type": "click", "user": "milo",
             "item": ranked[0]["item"], "timestamp": str(time.time_ns() // 1_000_000)}  # fmt: skip
    assert client.post("/feedback", json=click, headers=key).json()["accepted"] == 1
    until(lambda: system.events_of("milo") == 1)
    told = recsys("metrics", state=system.state).stdout
    assert 'recsys_part_ready{part="serve"} 1.0' in told and "recsys_serve_replicas 1.0" in told
    unlisted = [line for line in told.splitlines() if line.startswith("recsys_metrics_unlisted{")]
    assert unlisted and all(line.endswith(" 0.0") for line in unlisted), unlisted
