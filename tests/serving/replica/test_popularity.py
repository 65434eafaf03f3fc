from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.events.event_types import Item
from recsys.events.hashing import key_of
from recsys.features.counters import HALF_LIVES_MS, CounterTable
from serving.replica import popularity
from serving.replica.popularity import Popularity
from tests.support.training.small_feed import FEATURES, START_MS

KINDS = FEATURES.kinds
FAST_MS = int(HALF_LIVES_MS[0])


def fixture(items: int = 6) -> tuple[Popularity, CounterTable]:
    from recsys.features.catalogue import Catalogue

    catalogue = Catalogue(FEATURES)
    for n in range(items):
        catalogue.apply(Item(time_ms=0, item_id=f"v{n}"))
    return Popularity(FEATURES, catalogue), CounterTable(len(KINDS))


def happen(counters: CounterTable, item: int, times: float, at_ms: int) -> np.ndarray:
    amounts = np.zeros(len(KINDS), np.float32)
    amounts[KINDS.index("long_view")] = times
    key = key_of("item", f"v{item}")
    counters.add([key], amounts, at_ms)
    return np.array([key])


def told(its: Popularity, counters: CounterTable) -> None:
    its.update(*counters.export())


def test_the_order_is_that_of_faded_counts_at_any_time() -> None:
    its, counters = fixture()
    happen(counters, 0, 5.0, START_MS)
    happen(counters, 1, 2.0, START_MS)
    happen(counters, 2, 1.6, START_MS + FAST_MS)  # counts twice as much
    told(its, counters)
    assert its.top.tolist() == [0, 2, 1]
    for later_ms in (0, FAST_MS, 40 * FAST_MS):
        keys = np.array([key_of("item", f"v{n}") for n in range(3)])
        faded = counters.read(keys, START_MS + FAST_MS + later_ms)[:, KINDS.index("long_view")]
        assert np.argsort(-faded).tolist() == [0, 2, 1]
    np.testing.assert_allclose(its.values[0] - its.values[1], np.log2(2.5), atol=1e-5)


def test_only_what_somebody_engaged_with_is_popular() -> None:
    its, counters = fixture()
    assert its.top.tolist() == []
    happen(counters, 3, 1.0, START_MS)
    happen(counters, 4, 0.0, START_MS)  # shown perhaps, never liked
    told(its, counters)
    assert its.top.tolist() == [3] and np.isneginf(its.values[4])


def test_the_best_of_many_are_found_anew_once_a_second_of_event_time() -> None:
    its, counters = fixture(1_000)
    for n in range(500):
        happen(counters, n, 1.0, START_MS)
    told(its, counters)
    happen(counters, 600, 9.0, START_MS + 500)
    told(its, counters)
    assert 600 not in its.top  # within the second
    happen(counters, 700, 0.1, START_MS + 1_000)
    told(its, counters)
    assert its.top[0] == 600 and its.top[-1] == 700


def test_few_are_ranked_anew_at_each_change() -> None:
    its, counters = fixture()
    for n, times in enumerate((1.0, 9.0)):
        happen(counters, n, times, START_MS + n)
        told(its, counters)
    assert its.top.tolist() == [1, 0]


def test_entities_that_are_no_items_are_passed_over() -> None:
    its, counters = fixture()
    counters.add([key_of("item.author", "a")], np.ones(len(KINDS), np.float32), START_MS)
    told(its, counters)
    its.update(np.empty(0, np.int64), np.zeros((0, counters.columns), np.float32), np.empty(0, np.int64))
    assert its.top.tolist() == [] and len(its.values) == 6


def test_it_grows_with_the_catalogue_and_keeps_the_best_of_many() -> None:
    its, counters = fixture(5_000)
    for n in range(5_000):
        happen(counters, n, 1.0 + n, START_MS)
    told(its, counters)
    assert its.top.tolist() == list(range(4_999, 4_999 - 4_096, -1))


def test_the_best_of_many_are_those_of_all_though_only_what_moved_is_looked_at() -> None:
    """Against a sort of everything, over steps in which counts grow, fade and (a counter set anew) shrink."""
    draw, items = np.random.default_rng(3), 6_000
    its, _ = fixture(items)
    keys = np.array([key_of("item", f"v{n}") for n in range(items)])
    counts = np.zeros(items)
    for second in range(1, 16):
        chosen = np.arange(items) if second == 1 else draw.choice(items, 900, replace=False)
        more = draw.gamma(1.0, 3.0, len(chosen)) * (draw.random(len(chosen)) < 0.8)
        counts[chosen] = counts[chosen] * (0.1 if second % 5 == 0 else 1.0) + more
        told_now = np.zeros((len(chosen), len(KINDS) * 2), np.float32)
        told_now[:, KINDS.index("long_view")] = counts[chosen]
        its.update(keys[chosen], told_now, np.full(len(chosen), START_MS + 1_000 * second))
        there = np.flatnonzero(its.values > -np.inf)
        expected = there[np.lexsort((there, -its.values[there]))][:4096]
        assert its.top.tolist() == expected.tolist()


def test_an_item_that_is_known_later_than_its_counters_is_as_popular() -> None:
    first, counters = fixture(items=3)
    later, _ = fixture(items=2)
    for n, times in enumerate((2.0, 1.0, 3.0)):
        happen(counters, n, times, START_MS)
    told(first, counters)
    told(later, counters)
    assert later.top.tolist() == [0, 1]
    index = later._catalogue.apply(Item(time_ms=0, item_id="v2"))
    later.enter(index, counters)
    assert later.values.tobytes() == first.values.tobytes()
    happen(counters, 0, 0.0, START_MS + 1_000)
    told(later, counters)
    assert later.top.tolist() == [2, 0, 1]
    later.enter(later._catalogue.apply(Item(time_ms=0, item_id="v3")), counters)
    assert later.values[3] == -np.inf


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 38), st.sampled_from([1.0, 2.0, 4.0])), max_size=6), max_size=12
    )
)
def test_a_change_of_few_gives_the_order_of_all(changes: list[list[tuple[int, float]]]) -> None:
    """Many have equal counts; the best 30 are kept."""
    with patch.object(popularity, "_TOP", 30), patch.object(popularity, "_FEW", 3):
        its, counters = fixture(40)
        for second, changed in enumerate(changes):
            keys = [happen(counters, item, times, START_MS) for item, times in changed]
            keys.append(happen(counters, 39, 1.0, START_MS + 1000 * second))
            its.update(*counters.export(np.unique(np.concatenate(keys)).tolist()))
            values = its.values
            slow = [i for i in np.argsort(-values, kind="stable") if values[i] > -np.inf]
            assert its.top.tolist() == slow[:30]
