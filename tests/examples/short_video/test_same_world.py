"""A seed gives the same world in each version: figures of studies and of the demo stay comparable."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from examples.short_video.crowd import Crowd
from examples.short_video.demo_data import warmup_from_world
from examples.short_video.viewer import Viewer
from examples.short_video.world import World
from recsys.client import Recommendations, Recommended
from recsys.events.hashing import uniform

T = 1_650_812_400_000
HOUR_MS = 3_600_000


def fingerprint(values: Iterable[Any]) -> str:
    return sha256(msgspec.json.encode(list(values))).hexdigest()[:12]


def test_items_people_and_requests() -> None:
    world = World(3, users=60, items=80, requests_per_s=0.2)
    assert fingerprint(world.items(T + 600_000)) == "54fafce3d2b4"
    assert fingerprint(world.users()) == "e4c562394dc7"
    evening = (
        vars(r) for h in (0, 6) for r in world.next_requests(T + h * HOUR_MS, T + h * HOUR_MS + 300_500)
    )
    assert fingerprint(evening) == "9200c9264941"


def test_true_tastes() -> None:
    world = World(3, items=80)
    world.know("long", {"author": "somebody", "duration_ms": 90_000})
    world.know("short", {"tags": ["a", "b", "c"], "duration_ms": 500})
    ids = ["w1", "w80", "w200", "long", "short", "unknown"]
    chances = [
        world.true_long_view(f"u{n}", item_id, T + n * HOUR_MS * 5 // 2, n) for n, item_id in enumerate(ids)
    ]
    assert chances == pytest.approx(
        [0.675163525201, 0.637514524621, 0.515575842774, 0.025006090758, 0.262162570601, 0.054887576136],
        rel=1e-9,
    )


def test_reactions() -> None:
    world = World(3, items=80)
    events = [
        event
        for n in range(400)
        for event in world.react(f"u{n % 60}", [f"w{n + m}" for m in range(9)], f"r{n}", T + 977 * n)
    ]
    assert fingerprint(events) == "5eb6a3b47fb1"


def test_events_to_warm_up_with() -> None:
    data = warmup_from_world(T, requests=60, items=70)
    assert (data.name, data.impressions, data.last_ms - T) == ("world", 60, 105_792)
    assert fingerprint(data.events()) == "f4da2061c6db"


@pytest.mark.parametrize(
    ("rate", "max_lists", "same"),
    [(30.0, 1_000, "e03cef1a71a9"), (4.0, 1_000, "bcf933370f5f"), (200.0, 2, "b43198013e43")],
)
def test_a_crowd_at_enough_too_little_and_too_much_rate(rate: float, max_lists: int, same: str) -> None:
    """One request of ten fails; the others are answered by the next turn."""
    crowd = Crowd(World(3, users=40, items=20), rate, T, publish=True)
    happened: list[Any] = []
    asked: list[Viewer] = []
    for now_ms in range(T, T + 150_000, 250):
        for viewer in asked:
            request_id = f"{viewer.user_id}-{now_ms}"
            if uniform(1, request_id) < 0.1:
                crowd.failed(viewer, now_ms)
                continue
            items = [Recommended(item_id=f"w{int(20 * uniform(n, request_id))}") for n in range(4)]
            crowd.answered(viewer, Recommendations(request_id=request_id, items=items), now_ms)
        work = crowd.turn(now_ms, max_lists)
        asked = work.lists
        happened += [work.events, work.items, [viewer.user_id for viewer in asked]]
        happened += [crowd.late_ms, crowd.inside, crowd.fits]
    assert fingerprint(happened) == same
