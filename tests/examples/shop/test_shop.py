"""The simulated shop: the same for the same seed, valid, and with the structure that it states."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from examples.shop.make_log import make_log
from examples.shop.shop_world import ShopWorld
from recsys.events.event_types import Engagement, Impression, Item
from tests.support.example_logs import events_in

_HOUR_MS = 3_600_000


def small_world(seed: int = 0, **more: bool) -> ShopWorld:
    return ShopWorld(seed, users=90, clicks=1_500, hours=6, items=400, clusters=10, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shop")
    make_log(folder, small_world())
    return folder


@pytest.fixture(scope="module")
def clicks(folder: Path) -> list[Engagement]:
    events = events_in(folder)
    return [e for e in events if isinstance(e, Engagement) and e.kind == "click"]


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for seed, is_same in ((0, True), (1, False)):
        make_log(tmp_path, small_world(seed))
        name = "events.jsonl.gz"
        same = (tmp_path / name).read_bytes() == (folder / name).read_bytes()
        assert same == is_same, seed


def test_the_log_is_valid_and_sorted_and_has_no_lists(folder: Path) -> None:
    events = events_in(folder)
    assert [e.time_ms for e in events] == sorted(e.time_ms for e in events)
    assert not any(isinstance(e, Impression) for e in events)
    assert all(e.fields == {} for e in events if isinstance(e, Item))


def test_purchases_are_rarer_than_clicks(folder: Path, clicks: list[Engagement]) -> None:
    kinds = Counter(e.kind for e in events_in(folder) if isinstance(e, Engagement))
    assert 1_250 < kinds["click"] < 1_750 and kinds["click"] == len(clicks)
    assert 0.01 < kinds["purchase"] / kinds["click"] < 0.08


def test_items_may_name_their_cluster() -> None:
    events = small_world(categories=True).events()
    named = {e.fields["category"] for e in events if isinstance(e, Item)}
    assert named == {f"c{n}" for n in range(10)}


def test_visits_stay_in_a_cluster_and_look_again(clicks: list[Engagement]) -> None:
    visits = defaultdict(list)
    for click in clicks:
        visits[click.request_id].append(str(click.item_id))
    again = sum(len(items) - len(set(items)) for items in visits.values())
    assert 0.1 < again / len(clicks) < 0.5
    clusters = [{int(i[1:]) % 10 for i in items if i[0] == "p"} for items in visits.values()]
    assert max(map(len, clusters)) == 1


def test_popularity_of_the_last_hour_hits_more_than_that_of_all_time(clicks: list[Engagement]) -> None:
    """hit@10 of the next click in the second half."""
    hits: Counter[str] = Counter()
    half = len(clicks) // 2
    for n in range(half, len(clicks), 4):
        click = clicks[n]
        lists = {
            "all time": clicks[:n],
            "last hour": [c for c in clicks[:n] if c.time_ms > click.time_ms - _HOUR_MS],
        }
        for name, past in lists.items():
            top = Counter(c.item_id for c in past).most_common(10)
            hits[name] += click.item_id in dict(top)
    assert hits["last hour"] > 1.5 * hits["all time"] > 0


def test_a_shop_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clusters 9.*items 3: .*at least as many items"):
        ShopWorld(items=3, clusters=9)
