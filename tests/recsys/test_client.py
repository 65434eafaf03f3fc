"""The Python clients against a transport that answers as the server would."""

import asyncio
import inspect
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from recsys.client import ATTEMPTS, BATCH, ApiError, AsyncClient, Client
from recsys.events.event_types import Engagement, parse

NOW_MS = 1_800_000_000_000


class Server:
    """Keeps the requests; ``failures`` are answered first, in order."""

    def __init__(self, *failures: httpx.Response | Exception) -> None:
        self.failures = list(failures)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    def client(self, admin_key: str | None = None, draw: float = 0.0) -> Client:
        return Client("http://feed.test", admin_key=admin_key, **self.options(draw))

    def options(self, draw: float = 0.0) -> dict[str, Any]:
        return {
            "transport": httpx.MockTransport(self.answer),
            "clock_ms": lambda: NOW_MS,
            "sleep": self.waits.append,
            "draw": lambda: draw,
        }

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if request.url.path == "/v1/recommend":
            return httpx.Response(200, json=ANSWER)
        if request.url.path.startswith("/v1/sessions/"):
            return httpx.Response(200, json={"user_id": "a/b", "offset": 7})
        if request.url.path == "/readyz":
            return httpx.Response(200, json={})
        if request.method == "DELETE" or request.url.path == "/v1/users/erase":
            return httpx.Response(202, json={"accepted": 1, "results": [{"status": "accepted"}]})
        (events,) = json.loads(request.content).values()
        results = [{"status": "rejected", "error": {"field": "x"}} if e.get("item_id") == "bad" else
                   {"status": "accepted"} for e in events]  # fmt: skip
        accepted = sum(one["status"] == "accepted" for one in results)
        answer = {"accepted": accepted, "unproven": 1, "rejected": 0, "results": results}
        return httpx.Response(202, json=answer)


ANSWER = {
    "request_id": "r9",
    "items": [
        {
            "item_id": "v12", "score": 1.25, "rank": 0, "sources": ["vector"], "propensity": 0.04,
            "predictions": {"long_view": 0.31}, "reasons": [{"feature": "tags", "value": "cats", "met": 2.0}],
            "fields": {"author": "a1", "tags": ["cats"]}, "new_in_the_next_version": 1,
        },
        {"item_id": 7, "score": None, "rank": 1, "sources": [], "propensity": 1.0, "fields": {}},
    ],
    "stamp": {"line": "main", "epoch": 1, "step": 42, "arms": {"exp": "b"}},
    "took_ms": 4.5,
    "degraded": ["session"],
}  # fmt: skip


def like(item_id: str = "v12") -> Engagement:
    return Engagement(
        time_ms=NOW_MS, request_id="r9", user_id="u", item_id=item_id, kind="like", event_id=None
    )


def test_recommend_asks_for_what_was_wanted_and_reads_the_answer() -> None:
    server = Server()
    with server.client() as client:
        answer = client.recommend("u1", 2, context={"device": "phone"}, exclude_ids=["v3", 5], explain=True)
    assert server.bodies() == [
        {"user_id": "u1", "n": 2, "surface": "feed", "context": {"device": "phone"},
         "exclude_ids": ["v3", 5], "candidate_ids": None, "explain": True}
    ]  # fmt: skip
    assert [item.item_id for item in answer.items] == ["v12", 7]
    assert answer.items[0].predictions == {"long_view": 0.31}
    assert answer.stamp is not None and (answer.stamp.step, answer.stamp.arms) == (42, {"exp": "b"})
    assert answer.degraded == ["session"]


def test_rankings_and_lists_for_all_are_asked_for_with_filters() -> None:
    listed = httpx.Response(200, json={"items": ANSWER["items"], "degraded": []})
    ranked = httpx.Response(200, json=ANSWER | {"warnings": [{"item_id": "v9", "why": "unknown"}]})
    server = Server(ranked, listed, listed, httpx.Response(200, json=ANSWER))
    client = server.client()
    answer = client.rank("u1", ["v12", 7, "v9"], log=False, filters={"tags": "cats"})
    assert answer.warnings == [{"item_id": "v9", "why": "unknown"}]
    assert [item.item_id for item in client.items("popular", 2, {"price": {"max": 3}})] == ["v12", 7]
    assert client.similar("a/b c")[0].rank == 0
    client.recommend("u1", filters={"tags": ["cats"]}, profiling=False)
    first, second, third, fourth = server.requests
    assert json.loads(first.content) == {
        "user_id": "u1", "candidate_ids": ["v12", 7, "v9"], "n": 100, "surface": "feed", "context": {},
        "filters": {"tags": "cats"}, "log": False,
    }  # fmt: skip
    assert second.url.path == "/v1/popular"
    assert dict(second.url.params) == {"n": "2", "filters": '{"price":{"max":3}}'}
    assert third.url.raw_path.startswith(b"/v1/items/a%2Fb%20c/similar?n=10")
    assert json.loads(fourth.content)["filters"] == {"tags": ["cats"]}
    assert json.loads(fourth.content)["profiling"] is False


def test_no_candidates_and_any_candidates_are_different_requests() -> None:
    server = Server()
    server.client().recommend("u1", candidate_ids=[])
    assert server.bodies()[0]["candidate_ids"] == []


def test_a_list_is_asked_for_once_since_each_is_an_impression() -> None:
    server = Server(httpx.Response(503))
    with pytest.raises(ApiError) as caught:
        server.client().recommend("u1")
    assert caught.value.passing and caught.value.status == 503
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "failure",
    [httpx.Response(503), httpx.Response(429), httpx.ReadTimeout("late"), httpx.ConnectError("gone")],
)
def test_events_are_sent_again_under_the_same_id(failure: httpx.Response | Exception) -> None:
    server = Server(failure, failure)
    assert server.client().send_events([like()]).accepted == 1
    ids = {body["events"][0]["event_id"] for body in server.bodies()}
    assert len(server.requests) == 3 and len(ids) == 1
    assert server.waits == [0.1, 0.2]


def test_an_id_that_was_given_is_kept_and_others_differ() -> None:
    server = Server()
    named = Engagement(time_ms=1, request_id="r", user_id="u", item_id="i", kind="view", event_id="mine")
    server.client().send_events([named, like(), like()])
    ids = [event["event_id"] for event in server.bodies()[0]["events"]]
    assert ids[0] == "mine" and len(set(ids)) == 3


def test_the_server_says_how_long_to_wait() -> None:
    server = Server(httpx.Response(429, headers={"retry-after": "3"}))
    server.client().send_events([like()])
    assert server.waits == [3.0]


def test_waits_are_random_but_never_shorter_than_the_server_asks() -> None:
    for draw, waits in ((0.5, [0.15, 3.75]), (0.99, [0.199, 4.485])):
        server = Server(httpx.Response(503), httpx.Response(429, headers={"retry-after": "3"}))
        server.client(draw=draw).send_events([like()])
        assert server.waits == pytest.approx(waits)


def test_what_the_server_will_never_take_is_not_sent_again() -> None:
    server = Server(httpx.Response(413, text="too large"))
    with pytest.raises(ApiError, match=r"POST /v1/events: status 413 \(too large\).*won't help"):
        server.client().send_events([like()])
    assert len(server.requests) == 1 and server.waits == []


def test_it_gives_up_in_the_end() -> None:
    server = Server(*[httpx.Response(503)] * 99)
    with pytest.raises(ApiError):
        server.client().send_events([like()])
    assert len(server.requests) == ATTEMPTS and len(server.waits) == ATTEMPTS - 1


def test_many_events_go_in_batches_and_the_receipt_keeps_their_order() -> None:
    server = Server()
    events = [like(f"v{i}") for i in range(2 * BATCH + 3)]
    events[BATCH + 1] = like("bad")
    receipt = server.client().send_events(events)
    assert [len(body["events"]) for body in server.bodies()] == [BATCH, BATCH, 3]
    assert (receipt.accepted, receipt.unproven) == (2 * BATCH + 2, 3)
    assert receipt.rejected == [BATCH + 1]
    assert len(receipt.results) == len(events)


def test_large_items_go_in_batches_that_the_server_takes() -> None:
    server = Server()
    items: dict[str | int, Any] = {f"v{i}": {"vector": [0.123456789] * 800} for i in range(300)}
    assert server.client().upsert_items(items).accepted == 300
    sizes = [len(request.content) for request in server.requests]
    assert 400_000 > max(sizes) > 350_000, "the server refuses a body beyond 1 MB for good"


def test_items_of_many_short_values_go_in_batches_that_the_server_takes() -> None:
    server = Server()
    items: dict[str | int, Any] = {f"v{i}": {"tags": [1] * 300} for i in range(400)}
    assert server.client().upsert_items(items).accepted == 400
    counts = [sum(map(request.content.count, (b",", b"[", b"{"))) for request in server.requests]
    assert 40_000 >= max(counts) > 35_000 and len(counts) == 4


def test_no_events_need_no_request() -> None:
    server = Server()
    assert server.client().send_events([]).results == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda c: c.upsert_items({"v1": {"tags": ["a"]}, 2: {}}),
         ("POST", "/v1/items", {"items": [
             {"item_id": "v1", "fields": {"tags": ["a"]}, "time_ms": NOW_MS},
             {"item_id": 2, "fields": {}, "time_ms": NOW_MS}]})),
        (lambda c: c.upsert_users({"u1": {"age_band": "25-34"}}),
         ("POST", "/v1/users", {"users": [
             {"user_id": "u1", "fields": {"age_band": "25-34"}, "time_ms": NOW_MS}]})),
        (lambda c: c.set_preference("u1", "tags", "cats", "mute"),
         ("POST", "/v1/preferences", {"preferences": [
             {"user_id": "u1", "field": "tags", "value": "cats", "wish": "mute", "time_ms": NOW_MS}]})),
        (lambda c: c.delete_item("a/b c"), ("DELETE", "/v1/items/a%2Fb%20c", None)),
        (lambda c: c.delete_user(".."), ("POST", "/v1/users/erase", {"user_id": ".."})),
    ],
)  # fmt: skip
def test_items_and_users_go_to_their_own_routes_with_the_key(
    call: Callable[[Client], object], wanted: tuple[str, str, Any]
) -> None:
    server = Server(httpx.Response(503))
    call(server.client(admin_key="secret"))
    assert len(server.requests) == 2, "they are sent again too: doing it twice does no harm"
    for request in server.requests:
        body = json.loads(request.content) if request.content else None
        assert (request.method, request.url.raw_path.decode(), body) == wanted
        assert request.headers["x-admin-key"] == "secret"


def test_what_is_sent_as_an_event_is_what_the_server_parses() -> None:
    server = Server()
    server.client().send_events([like()])
    parsed = parse(server.bodies()[0]["events"][0], now_ms=NOW_MS)
    assert isinstance(parsed, Engagement) and parsed.event_id
    assert (parsed.kind, parsed.item_id) == ("like", "v12")


def test_engage_names_the_request_that_showed_the_item() -> None:
    server = Server()
    client = server.client()
    client.engage(client.recommend("u1"), "u1", "v12", "view", watch_ms=5200)
    event = server.bodies()[1]["events"][0]
    wanted = {"type": "engagement", "request_id": "r9", "user_id": "u1", "item_id": "v12", "kind": "view",
              "watch_ms": 5200, "time_ms": NOW_MS}  # fmt: skip
    assert {name: event[name] for name in wanted} == wanted


def test_seen_names_the_list_by_its_first_item_and_an_empty_list_by_nothing() -> None:
    server = Server()
    client = server.client()
    answer = client.recommend("u1")
    assert client.seen(answer, "u1", surface="front").accepted == 1
    (event,) = server.bodies()[1]["events"]
    wanted = {"request_id": "r9", "user_id": "u1", "item_id": "v12", "kind": "seen", "surface": "front"}
    assert {name: event[name] for name in wanted} == wanted
    assert client.seen(msgspec.structs.replace(answer, items=[]), "u1").accepted == 0
    assert len(server.requests) == 2


def test_the_async_client_sends_seen_with_the_token_of_its_list() -> None:
    server = Server(httpx.Response(200, json=ANSWER | {"token": "t9"}))

    async def scenario() -> int:
        async with AsyncClient(server.client()) as client:
            return (await client.seen(await client.recommend("u1"), "u1")).accepted

    assert asyncio.run(scenario()) == 1
    (event,) = server.bodies()[1]["events"]
    assert (event["kind"], event["token"]) == ("seen", "t9")


def test_health_is_a_plain_answer() -> None:
    assert Server().client().health()
    assert not Server(httpx.Response(503)).client().health()
    assert not Server(httpx.ConnectError("nobody listens")).client().health()


def test_an_answer_of_another_shape_is_an_error_that_names_the_field() -> None:
    server = Server(httpx.Response(200, json={"items": []}))
    with pytest.raises(ApiError, match="request_id"):
        server.client().recommend("u1")


def test_a_session_is_asked_for_by_its_user_whatever_the_id() -> None:
    server = Server()
    assert server.client().session("a/b")["offset"] == 7
    assert server.requests[0].url.raw_path == b"/v1/sessions/a%2Fb"


def test_the_async_client_has_every_method_of_the_other() -> None:
    methods = dict(inspect.getmembers(Client, inspect.isfunction))
    names = {name for name in methods if not name.startswith("_")} - {"close"}
    for name in names:
        call = getattr(AsyncClient, name)
        assert inspect.iscoroutinefunction(call)
        assert inspect.signature(call) == inspect.signature(methods[name])
        assert call.__doc__ == methods[name].__doc__


async def test_async_calls_run_at_the_same_time_and_retry() -> None:
    server = Server(httpx.Response(503))
    together = threading.Barrier(3)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/recommend":
            together.wait(10)  # none ends before all have begun
        return server.answer(request)

    options = server.options() | {"transport": httpx.MockTransport(answer)}
    async with AsyncClient(Client("http://feed.test", **options), calls=3) as client:
        assert (await client.send_events([like()])).accepted == 1 and server.waits == [0.1]
        lists = await asyncio.gather(*(client.recommend(f"u{n}", n=2) for n in range(3)))
        assert [each.request_id for each in lists] == ["r9"] * 3
        server.failures = [httpx.Response(422)]
        with pytest.raises(ApiError, match="status 422"):
            await client.session("u1")
