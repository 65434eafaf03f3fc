import numpy as np
import pytest

from recsys.events.event_types import Engagement, Impression, ServedItem, Verdict
from recsys.features import source_credits
from recsys.features.item_counters import ItemCounters
from recsys.features.source_credits import ALL, KEYS, UNION, SourceCredits, source_key
from tests.support.training.small_feed import FEATURES

NOW_MS = 1_790_000_000_000


def served(request_id: str, **sources: list[str]) -> Impression:
    items = [ServedItem(item_id=name, sources=names) for name, names in sources.items()]
    return Impression(time_ms=NOW_MS, request_id=request_id, user_id="u", items=items)


def liked(request_id: str, item_id: str) -> Engagement:
    return Engagement(time_ms=NOW_MS, request_id=request_id, user_id="u", item_id=item_id, kind="long_view")


def counted(fold: ItemCounters, *names: str) -> list[list[float]]:
    """Engagements, and parts of engagements, by source."""
    keys = np.array([{"all": ALL, "union": UNION}.get(name) or source_key(name) for name in names])
    columns = [FEATURES.slow_counter("shown"), FEATURES.slow_counter("long_view")]
    out: list[list[float]] = fold.counters.read(keys, NOW_MS)[:, columns].round(3).tolist()
    return out


def fold_of(*events: Impression | Engagement) -> ItemCounters:
    fold = ItemCounters(FEATURES)
    for event in events:
        if isinstance(event, Impression):
            fold.impression(event, np.empty((0, FEATURES.item_columns), np.int64))
        else:
            fold.engagement(event, FEATURES.item_keys(event.item_id, {}))
    return fold


def test_an_engagement_counts_for_all_sources_of_its_item_and_is_divided_among_them() -> None:
    fold = fold_of(
        served("r1", a=["covisit", "popular", "quota"], b=["fresh"], c=["fixed"]),
        *(liked("r1", item) for item in "abc"),
        liked("elsewhere", "a"),
    )
    assert counted(fold, "all", "union") == [[4, 4], [2, 2]]
    assert counted(fold, "covisit", "popular", "fresh", "vector") == [[1, 0.5], [1, 0.5], [1, 1], [0, 0]]
    assert {ALL, UNION, KEYS["fresh"]} <= set(fold.take_changed())


def test_a_plug_in_has_credits_of_its_version() -> None:
    fold = fold_of(served("r1", a=["near@1", "popular"]), liked("r1", "a"))
    assert counted(fold, "union", "near@1", "popular", "near@2") == [[1, 1], [1, 0.5], [1, 0.5], [0, 0]]


def test_a_quarantine_takes_credits_back() -> None:
    events = served("r1", a=["covisit"]), liked("r1", "a")
    fold = fold_of(*events)
    verdict = Verdict(time_ms=NOW_MS, user_id="u", quarantined=True)
    fold.verdict(verdict, events, lambda item_id: FEATURES.item_keys(item_id, {}))
    assert counted(fold, "all", "covisit") == [[0, 0], [0, 0]]


def test_the_oldest_lists_are_forgotten_and_data_sets_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_credits, "REQUESTS", 2)
    credits = SourceCredits()
    for request_id in ("r1", "r2", "r3"):
        credits.remember(served(request_id, a=["fresh"]))
    credits.remember(served("log", a=["log"]))
    assert list(credits.requests) == ["r2", "r3"]
    of_two_tables = SourceCredits(2)
    for request_id in ("r1", "r2"):
        of_two_tables.remember(served(request_id, a=["fresh"]))
    assert list(of_two_tables.requests) == ["r2"]
