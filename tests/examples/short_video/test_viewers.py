"""Simulated viewers: never above their rate, patient with a bad server, and honest in what they print."""

import threading
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.short_video.crowd import Crowd, Pacer
from examples.short_video.viewers import EVENTS_PER_LIST, Sender, SummaryLines, drive
from examples.short_video.world import World
from recsys.client import Recommendations, Recommended
from recsys.events.event_types import Engagement
from recsys.events.hashing import uniform

T = 1_650_812_400_000


def listed(request_id: str, n: int, items: int = 300) -> Recommendations:
    ids = [int(uniform(5, request_id, i) * items) for i in range(n)]
    fields = {"tags": ["39"], "duration_ms": 8000.0}
    return Recommendations(request_id=request_id, items=[Recommended(item_id=i, fields=fields) for i in ids])


@given(st.floats(0.1, 500), st.lists(st.floats(0, 3), min_size=1, max_size=30))
def test_the_pacer_never_spends_more_than_its_rate(rate: float, waits: list[float]) -> None:
    now_s, spent, pacer = 100.0, 0, Pacer(rate, 100.0)
    for wait_s in waits:
        now_s += wait_s
        left = pacer.left(now_s)
        pacer.spend(left)
        spent += left
        assert spent <= rate * (now_s - 100.0) + pacer.burst
    assert pacer.left(now_s) == 0


def simulate(rate: float, seconds: int, **world: Any) -> SimpleNamespace:
    """A crowd on a server that answers at once, in simulated time."""
    crowd = Crowd(World(1, start_ms=T, **world), rate, T)
    found = SimpleNamespace(sent=[], late=[], inside=[], lists=0, crowd=crowd)
    for now_ms in range(T, T + seconds * 1000, 50):
        work = crowd.turn(now_ms)
        for viewer in work.lists:
            found.lists += 1
            crowd.answered(viewer, listed(f"r{found.lists}", viewer.n), now_ms)
        assert all(event.time_ms <= now_ms for event in work.events)
        found.sent.append(len(work.events) + len(work.lists))
        found.late.append(crowd.late_ms)
        found.inside.append(crowd.inside)
    return found


@settings(max_examples=5, deadline=None)
@given(st.sampled_from([3.0, 20.0, 90.0]))
def test_the_crowd_keeps_to_its_rate_and_comes_close(rate: float) -> None:
    found = simulate(rate, 240)
    for start in range(0, len(found.sent) - 20, 20):
        assert sum(found.sent[start : start + 20]) <= rate + 1 + rate / 10
    half = len(found.sent) // 2
    assert sum(found.sent[half:]) / (half / 20) > 0.85 * rate
    assert max(found.late[half:]) < 15_000


def test_a_list_costs_about_as_many_events_as_the_part_assumes() -> None:
    found = simulate(50.0, 300)
    assert sum(found.sent) / found.lists == pytest.approx(EVENTS_PER_LIST, rel=0.25)


def test_nobody_is_in_twice_and_a_small_world_is_enough() -> None:
    found = simulate(100.0, 60, users=5)
    assert max(found.inside) <= 5


def test_new_items_are_published_within_the_rate() -> None:
    world = World(1, items=30, publish_every_s=1, start_ms=T)
    crowd = Crowd(world, 10.0, T, publish=True)
    ids = []
    for now_ms in range(T, T + 9_000, 100):
        work = crowd.turn(now_ms)
        ids += [item.item_id for item in work.items]
        for viewer in work.lists:
            crowd.failed(viewer, now_ms)
    assert ids == [f"w{i}" for i in range(len(ids))] and len(ids) == 38


class Api:
    """A server in this process that can be out of order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.lists = 0
        self.down = False
        self.lock = threading.Lock()

    def recommend(self, user_id: Any, n: int) -> Recommendations:
        with self.lock:
            if self.down:
                raise ConnectionError("no answer")
            self.lists += 1
            return listed(f"r{self.lists}", n)

    def send_events(self, events: Sequence[Any]) -> Any:
        with self.lock:
            if self.down:
                raise ConnectionError("no answer")
            self.events += events
            return SimpleNamespace(rejected=[])


class Clock:
    def __init__(self) -> None:
        self.now_s = T / 1000

    def __call__(self) -> int:
        return round(1000 * self.now_s)


def settle(sender: Sender, clock: Clock, turns: int) -> None:
    """Turns with the clock going on; a breath in between lets the threads answer."""
    for _ in range(turns):
        sender.turn()
        clock.now_s += 0.1
        time.sleep(0.0005)


def test_nothing_is_lost_while_the_server_is_away() -> None:
    api, clock = Api(), Clock()
    sender = Sender(Crowd(World(1, start_ms=T), 50.0, T), api, clock)
    settle(sender, clock, 300)
    api.down = True
    settle(sender, clock, 100)
    assert sender.counts["failed"] > 0
    api.down = False
    settle(sender, clock, 200)
    sender.close()
    ids = [event.event_id for event in api.events]
    assert len(ids) == len(set(ids)) == sender.counts["events"] > 500
    assert sender.counts["lost"] == 0
    views = sum(event.kind == "view" for event in api.events)
    assert views == sender.counts["shown"]


def test_what_a_server_will_never_take_is_let_go() -> None:
    class Refused(Exception):
        passing = False

    api, clock = Api(), Clock()

    def refuse(events: Sequence[Any]) -> Any:
        raise Refused("status 400")

    api.send_events = refuse  # type: ignore[method-assign]
    sender = Sender(Crowd(World(1, start_ms=T), 50.0, T), api, clock)
    settle(sender, clock, 300)
    sender.close()
    assert sender.counts["lost"] > 0 and sender.counts["events"] == 0


def test_items_are_published_on_their_own_route() -> None:
    api, clock = Api(), Clock()
    published: dict[Any, Any] = {}

    def upsert_items(items: Mapping[Any, Any]) -> Any:
        published.update(items)
        return SimpleNamespace(rejected=[])

    api.upsert_items = upsert_items  # type: ignore[attr-defined]
    crowd = Crowd(World(1, items=30, start_ms=T), 50.0, T, publish=True)
    sender = Sender(crowd, api, clock)
    settle(sender, clock, 100)
    sender.close()
    assert len(published) >= 30 and all(fields for fields in published.values())
    assert all(isinstance(event, Engagement) for event in api.events)


def test_the_lines_say_what_happened() -> None:
    api, clock, said = Api(), Clock(), []
    crowd = Crowd(World(1, start_ms=T), 30.0, T)

    def until() -> bool:
        clock.now_s += 0.1
        time.sleep(0.0005)
        return clock.now_s > T / 1000 + 35

    counts = drive(crowd, api, until, said.append, clock)
    assert len(said) == 4
    assert "events/s" in said[1] and "viewers" in said[1] and "long views" in said[1]
    assert counts["events"] == len(api.events) and counts["lists"] <= api.lists
    assert counts["events"] + counts["lists"] <= 30 * 35.2 + 4
    assert SummaryLines(0.0).line(Sender(crowd, api, clock), crowd, 5.0) is None
