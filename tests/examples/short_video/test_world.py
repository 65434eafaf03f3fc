"""The simulated world: the same seed gives the same world, and there is something in it to learn."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from examples.short_video.viewer import Viewer
from examples.short_video.world import World
from recsys.client import Recommendations, Recommended
from recsys.events.event_types import Engagement, parse
from recsys.events.hashing import uniform
from tests.support.serving.simulated_visits import browse, run

T = 1_650_812_400_000
HOUR_MS = 3_600_000


def answer(request_id: str, ids: list[str]) -> Recommendations:
    return Recommendations(request_id=request_id, items=[Recommended(item_id=i) for i in ids])


def to_json(events: Sequence[Any]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(msgspec.json.encode(event)) for event in events]


class Server:
    """A server that serves by the true tastes (``epsilon`` of the items at random), and remembers."""

    def __init__(self, world: World, epsilon: float) -> None:
        self.world, self.epsilon = world, epsilon
        self.events: list[Engagement] = []
        self.served: dict[str, list[str]] = {}
        self.now_ms = T

    def recommend(self, user_id: Any, n: int) -> Recommendations:
        request_id = f"r{len(self.served)}"
        ids = [f"w{i}" for i in range(200)]
        ids.sort(key=lambda i: -self.world.true_long_view(user_id, i, self.now_ms))
        if uniform(0, request_id) < self.epsilon:
            ids.sort(key=lambda i: uniform(1, request_id, i))
        self.served[request_id] = ids[:n]
        return answer(request_id, ids[:n])

    def send_events(self, events: Sequence[Engagement]) -> None:
        self.events.extend(events)


def test_the_world_has_no_memory() -> None:
    world, other = World(3), World(3)
    ids = ["w1", "w2", "w3"]
    later = world.react("u5", ids, "r9", T + HOUR_MS)
    first = world.react("u5", ids, "r1", T)
    assert other.react("u5", ids, "r1", T) == first == world.react("u5", ids, "r1", T)
    assert other.react("u5", ids, "r9", T + HOUR_MS) == later
    assert World(4).react("u5", ids, "r1", T) != first
    assert world.items(T)[:3] == other.items(T)[:3] != World(4).items(T)[:3]


def test_items_are_published_over_time_with_what_the_page_shows() -> None:
    world = World(1, items=50, publish_every_s=60)
    assert len(world.items(T)) == 50 and len(world.items(T + HOUR_MS)) == 110
    assert world.new_items(T + 60_000, T + 180_000) == world.items(T + 179_999)[50:]
    new = world.new_items(0, T + 120_001)
    assert [item.time_ms - T for item in new] == [60_000, 120_000]
    for item in to_json(world.items(T)):
        assert parse(item)
        assert item["fields"].keys() == {"author", "tags", "topic", "emoji", "hue", "duration_ms", "title"}
    topics = Counter(item.fields["topic"] for item in world.items(T))
    assert len(topics) > 8


def test_tastes_differ_between_people_and_drift() -> None:
    world = World(2)

    def likings(time_ms: int) -> np.ndarray:
        return np.array(
            [[world.true_long_view(f"u{u}", f"w{i}", time_ms) for i in range(60)] for u in range(40)]
        )

    now, later = likings(T), likings(T + 12 * HOUR_MS)
    assert 0.25 < now.mean() < 0.45
    assert np.sort(now, axis=1)[:, -6:].mean() > 0.75  # there is something to find for everyone
    assert now.mean(axis=0).std() < 0.6 * now.std()  # and popularity alone doesn't find it
    assert 0.4 < np.corrcoef(now.ravel(), later.ravel())[0, 1] < 0.9
    soon = likings(T + 60_000)
    assert np.corrcoef(now.ravel(), soon.ravel())[0, 1] > 0.99


def test_what_happens_follows_the_true_probability() -> None:
    world = World(5)
    expected, came = 0.0, 0
    for i in range(3000):
        user, item = f"u{i % 300}", f"w{i % 170}"
        expected += world.true_long_view(user, item, T + 300)
        came += any(e.kind == "long_view" for e in world.react(user, [item], f"r{i}", T))
    assert came == pytest.approx(expected, rel=0.06)


def test_lower_ranks_are_watched_less_and_some_are_never_shown() -> None:
    world = World(5)
    chances = [world.true_long_view("u1", "w1", T, rank) for rank in range(8)]
    assert chances == sorted(chances, reverse=True) and chances[0] > chances[-1]
    lists = [world.react("u1", [f"w{j}" for j in range(10)], f"r{i}", T) for i in range(200)]
    views = [sum(e.kind == "view" for e in found) for found in lists]
    assert min(views) < 10 == max(views)


def test_the_view_ends_what_came_with_it_and_some_things_come_later() -> None:
    world = World(6)
    late = 0
    for i in range(300):
        events = world.react(f"u{i}", [f"w{j}" for j in range(6)], f"r{i}", T)
        assert [e.time_ms for e in events] == sorted(e.time_ms for e in events)
        ended = {e.item_id: n for n, e in enumerate(events) if e.kind == "view"}
        for n, event in enumerate(events):
            assert event.item_id in ended
            if event.kind in ("long_view", "click", "like", "hide", "skip"):
                assert n < ended[event.item_id]
            late += n > ended[event.item_id]
        assert len({e.event_id for e in events}) == len(events)
        assert all(parse(e) for e in to_json(events))
    assert late > 30


def test_foreign_items_are_liked_by_their_tags() -> None:
    world = World(7)
    for item_id in range(40):
        world.know(item_id, {"tags": [str(item_id % 4)], "author": "a", "duration_ms": 9000.0})
    tastes = [world.taste(123, str(tag), T) for tag in range(4)]
    likes = [np.mean([world.true_long_view(123, i, T) for i in range(tag, 40, 4)]) for tag in range(4)]
    assert np.argmax(likes) == np.argmax(tastes) and np.argmin(likes) == np.argmin(tastes)
    assert 0 < world.true_long_view(123, "never seen", T) < 1


def test_requests_come_at_their_rate_in_order_however_they_are_asked_for() -> None:
    world = World(8, requests_per_s=2.0)
    whole = list(world.next_requests(T, T + 600_000))
    assert 700 < len(whole) < 1900
    assert [r.time_ms for r in whole] == sorted(r.time_ms for r in whole)
    cut = T + 123_456
    assert whole == [*world.next_requests(T, cut), *world.next_requests(cut, T + 600_000)]
    by_user = Counter(r.user_id for r in whole)
    assert by_user.most_common(1)[0][1] > 3 * len(whole) / world.num_users


def test_a_visit_asks_watches_and_leaves() -> None:
    world = World(9)
    server = Server(world, epsilon=0.0)
    tally = browse(Viewer(world, "u1", T, n=5), server, T)
    assert tally.lists == len(server.served) >= 1
    assert tally.events == len(server.events)
    for event in server.events:
        assert event.item_id in server.served[event.request_id]
    times = [event.time_ms for event in server.events]
    assert times == sorted(times)


@pytest.mark.slow
def test_who_serves_what_they_like_sees_it_in_the_tally() -> None:
    world = World(10, users=100, requests_per_s=0.5)
    good, bad = Server(world, 0.0), Server(world, 1.0)
    ours, theirs = (run(world, server, T, T + 60_000) for server in (good, bad))
    assert ours.liked / ours.shown > theirs.liked / theirs.shown + 0.25
    assert ours.lists > 20
    times = [event.time_ms for event in good.events]
    assert times == sorted(times)


def test_a_viewer_that_got_no_list_asks_again() -> None:
    viewer = Viewer(World(1), "u1", T)
    assert viewer.wants_list(T)
    viewer.asked()
    assert not viewer.wants_list(T + 10_000) and not viewer.gone
    viewer.failed(T + 100)
    assert not viewer.wants_list(T + 200) and viewer.wants_list(T + 2_100)
    viewer.asked()
    viewer.take(answer("r", []), T + 3_000)
    assert viewer.gone


def test_sizes_that_make_no_world_are_refused() -> None:
    with pytest.raises(ValueError, match="topics is 99"):
        World(topics=99)
    with pytest.raises(ValueError, match="items 0"):
        World(items=0)
