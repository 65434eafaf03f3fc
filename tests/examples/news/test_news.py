"""The simulated news page: the same for the same seed, valid, and with the structure that it states."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.news.make_log import make_log
from examples.news.news_world import SLATE, NewsWorld, click_probabilities
from recsys.events.event_types import Engagement, Impression, Item
from recsys.model.prediction_metrics import auc
from tests.support.example_logs import events_in

_HOUR_MS = 3_600_000


def small_world(seed: int = 0) -> NewsWorld:
    """About 1,500 shown articles."""
    return NewsWorld(seed, users=40, hours=8, visits_per_h=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("news")
    make_log(folder, small_world())
    return folder


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for seed, is_same in ((0, True), (1, False)):
        make_log(tmp_path, small_world(seed))
        for name in ("events.jsonl.gz", "truth.parquet"):
            same = (tmp_path / name).read_bytes() == (folder / name).read_bytes()
            assert same == is_same, (seed, name)


def test_the_log_is_valid_sorted_and_as_its_world(folder: Path) -> None:
    events = events_in(folder)
    assert [e.time_ms for e in events] == sorted(e.time_ms for e in events)
    assert events == small_world().events()


def test_slates_have_few_clicks(folder: Path) -> None:
    events = events_in(folder)
    slates = [e for e in events if isinstance(e, Impression)]
    clicks = [e for e in events if isinstance(e, Engagement)]
    shown = SLATE * len(slates)
    assert 1_000 < shown <= 3_000 and {len(e.items) for e in slates} == {SLATE}
    assert len({e.request_id for e in slates}) == len(slates)
    assert 0.05 < len(clicks) / shown < 0.12
    clicked = np.unique([e.request_id for e in clicks], return_counts=True)[1]
    assert len(clicked) < 0.9 * len(slates) and clicked.max() > 1


def test_the_truth_is_the_probability_that_clicks_are_drawn_from(folder: Path) -> None:
    truth = pq.read_table(folder / "truth.parquet").to_pydict()
    rows = dict(zip(zip(truth["request_id"], truth["item_id"], strict=True), truth["clicked"], strict=True))
    clicks = {(e.request_id, e.item_id) for e in events_in(folder) if isinstance(e, Engagement)}
    assert {row for row, clicked in rows.items() if clicked} == clicks
    probability, clicked = np.array(truth["probability"]), np.array(truth["clicked"])
    spread = np.sqrt((probability * (1 - probability)).sum())
    assert abs(probability.sum() - clicked.sum()) < 3 * spread
    by_probability, by_level = (auc(truth[n], clicked) for n in ("probability", "without_position"))
    assert by_probability > 0.75 and abs(by_probability - by_level) < 0.03


def test_articles_rise_within_an_hour_and_fade_within_hours() -> None:
    world = small_world()
    appeal = [
        np.mean([float(world.appeal(int(t) + age_ms, np.array([n]))[0])
                 for n, t in enumerate(world.articles.time_ms)])
        for age_ms in (60_000, _HOUR_MS, 4 * _HOUR_MS, 12 * _HOUR_MS)
    ]  # fmt: skip
    assert appeal[0] < appeal[1] - 1 and appeal[1] > appeal[2] + 0.3 > appeal[3] + 1


def test_breaking_news_lifts_its_category_for_hours() -> None:
    world = small_world()
    burst_ms, category = world.bursts[0]
    taste = [world.taste("u1", "phone", "v", burst_ms + after)[category] for after in (-1, 0)]
    assert taste[1] > taste[0] + 0.7


def test_attractive_neighbours_take_clicks_away() -> None:
    utility = np.zeros(SLATE)
    alone = click_probabilities(utility, 1.0)
    utility[1:] += 1
    assert click_probabilities(utility, 1.0)[0] < 0.7 * alone[0]


def test_tastes_differ_and_drift() -> None:
    world = small_world()
    at = world.start_ms
    tastes = np.array([world.taste(f"u{n}", "phone", "v", at) for n in range(40)])
    later = np.array([world.taste(f"u{n}", "phone", "v", at + 48 * _HOUR_MS) for n in range(40)])
    assert tastes.std(0).mean() > 0.4
    own_drift = (later - later.mean(0)) - (tastes - tastes.mean(0))
    assert own_drift.std() > 0.15


def test_read_and_old_articles_are_not_shown(folder: Path) -> None:
    read: defaultdict[object, set[object]] = defaultdict(set)
    live: set[object] = set()
    pending: list[Engagement] = []
    for event in events_in(folder):
        if isinstance(event, Item):
            (live.discard if event.removed else live.add)(event.item_id)
        elif isinstance(event, Engagement):
            pending.append(event)
            read[event.user_id].add(event.item_id)
        elif isinstance(event, Impression):
            shown = {served.item_id for served in event.items}
            assert shown <= live and not shown & read[event.user_id]
    assert pending


@pytest.mark.parametrize(("name", "value"), [("users", 0), ("hours", -1), ("visits_per_h", 0)])
def test_a_world_of_nothing_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{value}.*positive numbers"):
        NewsWorld(**{name: value})
