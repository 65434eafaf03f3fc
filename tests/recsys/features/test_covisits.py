import numpy as np
import pytest

from recsys.config.system_config import CovisitConfig
from recsys.features.covisits import COLUMNS, NEIGHBOURS, PREVIOUS, Covisits, Visits
from recsys.features.families.visit import newest_visit
from recsys.features.session import Entry

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
CONFIG = CovisitConfig()


def near(covisits: Covisits, *history: int, now_ms: int = NOW_MS) -> dict[int, float]:
    keys, scores = covisits.near(np.array(history, np.int64), np.ones(len(history)), now_ms)
    return dict(zip(keys.tolist(), scores.tolist(), strict=True))


def covisits_of(*visits: tuple[str, int, int], config: CovisitConfig = CONFIG) -> Covisits:
    """Of (viewer, item, days before now)."""
    made, covisits = Visits(config), Covisits(config)
    for user, item, days in visits:
        made.add(user, item, NOW_MS - days * DAY_MS)
    covisits.add(made.take())
    return covisits


def random_visits(count: int, users: int = 30, items: int = 400) -> np.ndarray:
    random, made = np.random.default_rng(5), Visits(CONFIG)
    for n in range(count):
        item = int(random.zipf(1.3)) % items + 1
        made.add(int(random.integers(users)), item, NOW_MS + 60_000 * (n - int(random.integers(9))))
    return made.take()


def test_items_of_the_same_viewers_are_near_both_ways() -> None:
    covisits = covisits_of(("a", 1, 0), ("a", 2, 0), ("b", 1, 0), ("b", 2, 0), ("b", 3, 0))
    assert set(near(covisits, 1)) == {2, 3} and set(near(covisits, 2)) == {1, 3}
    assert near(covisits, 1)[2] > near(covisits, 1)[3]
    assert near(covisits, 9) == {}


def test_a_share_of_few_viewers_counts_more_than_one_of_all() -> None:
    rare = [(f"r{n}", item, 0) for n in range(5) for item in (1, 2)]
    common = [(f"c{n}", item, 0) for n in range(5) for item in (3, 4)]
    found = near(covisits_of(*rare, *common, *((f"d{n}", 4, 0) for n in range(50))), 2, 4)
    assert found[1] > 5 * found[3]


def test_what_rises_comes_before_what_fades() -> None:
    pairs = [(f"u{n}", item, 5) for n in range(9) for item in (1, 2)]
    pairs += [(f"u{n}", 3, 5) for n in range(9)] + [(f"v{n}", 3, 0) for n in range(4)]
    found = near(covisits_of(*pairs), 1)
    assert found[3] > found[2]


def test_a_late_visit_weighs_as_if_it_had_come_in_order() -> None:
    in_order = covisits_of(("a", 1, 9), ("a", 2, 9), ("b", 1, 1), ("b", 3, 1))
    late = covisits_of(("b", 1, 1), ("b", 3, 1), ("a", 1, 9), ("a", 2, 9))
    assert near(late, 1) == pytest.approx(near(in_order, 1), rel=1e-5)


def test_visits_that_are_taken_back_leave_nothing() -> None:
    made, covisits = Visits(CONFIG), Covisits(CONFIG)
    for sign in (1, -1):
        for item in range(1, 30):
            made.add("farm", item, NOW_MS, sign)
        made.forget("farm")
        covisits.add(made.take())
    assert near(covisits, *range(1, 30)) == {}


def test_an_item_visited_again_makes_no_pairs_twice() -> None:
    once = covisits_of(("a", 1, 0), ("a", 2, 0))
    again = covisits_of(("a", 1, 0), ("a", 2, 0), ("a", 1, 0), ("a", 2, 0))
    assert near(again, 1)[2] < near(once, 1)[2]  # the same pair of more visits


def test_a_copy_goes_on_with_the_same_bits() -> None:
    visits = random_visits(3_000)
    original, copy = Covisits(CONFIG), Covisits(CONFIG)
    original.add(visits[:2_000])
    original.remove(np.unique(visits[:5, 2]))
    for start in range(0, len(original), 100):
        copy.put(original.export(start, start + 100))
    assert len(copy) == len(original) > 300
    for covisits in (original, copy):
        covisits.add(visits[2_000:])
    history = [int(key) for key in visits[-20:, 2]]
    assert near(copy, *history) == near(original, *history) != {}


def test_batches_of_visits_do_not_matter() -> None:
    visits, whole, single = random_visits(300), Covisits(CONFIG), Covisits(CONFIG)
    whole.add(visits)
    for visit in visits:
        single.add(visit[None, :])
    assert whole.export() == single.export()


def test_an_item_keeps_its_strongest_neighbours() -> None:
    visits = [(f"v{n}", item, 0) for n in range(3) for item in (1, 2)]
    visits += [(f"u{n}", item, 0) for n in range(NEIGHBOURS + 50) for item in (1, 100 + n)]
    found = near(covisits_of(*visits), 1)
    assert len(found) == NEIGHBOURS and 2 in found and 100 + NEIGHBOURS + 49 in found


def test_rows_beyond_the_limit_go_by_their_last_visit() -> None:
    config = CovisitConfig(items=32)
    covisits = covisits_of(*((f"u{n}", n + 1, 60 - n) for n in range(40)), config=config)
    gone = covisits.surplus()
    assert gone.tolist() == list(range(1, 9))
    covisits.remove(gone)
    assert len(covisits) == 32 and not len(covisits.surplus())


def test_of_viewers_the_longest_away_are_forgotten_and_counted() -> None:
    made = Visits(CovisitConfig(users=2))
    for user in ("a", "b", "a", "c"):
        made.add(user, ord(user), NOW_MS)
    made.take()
    for user in ("a", "b"):
        made.add(user, 7, NOW_MS)
    visits = made.take()
    assert made.forgotten == 2  # b for c, then c for b
    assert visits[0, 3] == ord("a") and not visits[1, 3:].any()
    assert visits.shape == (2, 3 + PREVIOUS)


def test_entries_before_the_newest_visit_weigh_little() -> None:
    covisits = covisits_of(("a", 1, 0), ("a", 11, 0), ("b", 2, 0), ("b", 12, 0))
    history = [Entry("r", [item], [1.0], 0, NOW_MS) for item in (2, 1)]  # oldest first

    def scores(visit: int | None) -> dict[int, float]:
        keys, values = covisits.of_history(history, NOW_MS, visit)
        return dict(zip(keys.tolist(), values.tolist(), strict=True))

    assert scores(None)[12] == pytest.approx(0.9 * scores(None)[11])
    assert scores(1)[12] == pytest.approx(0.09 * scores(1)[11]) and scores(2) == scores(None)
    assert scores(0)[11] == pytest.approx(0.1 * scores(None)[11])


def test_a_visit_ends_with_a_pause() -> None:
    history = [Entry("r", [n], [1.0], 0, 60_000 * minute) for n, minute in enumerate((1, 2, 9, 10))]
    assert [e.keys[0] for e in newest_visit(history, 300.0, 11 * 60_000)] == [2, 3]
    assert [e.keys[0] for e in newest_visit(history, 420.0, 11 * 60_000)] == [0, 1, 2, 3]
    assert not newest_visit(history, 300.0, 16 * 60_000) and not newest_visit([], 300.0, 0)


def test_scores_of_some_items_are_those_near_to_the_bit() -> None:
    chance = np.random.default_rng(3)
    covisits, items = Covisits(CovisitConfig()), chance.integers(1, 60, (400, COLUMNS)) << 12  # one chain
    visits = items.copy()
    visits[:, 0], visits[:, 1] = NOW_MS - 1000 * np.arange(400, 0, -1), 1
    covisits.add(visits)
    covisits.remove(np.array([5 << 12, 9 << 12]))
    keys_N = np.array([n << 12 for n in (*range(60), 7, 7)] + [(3 << 12) + 1])
    for seed in range(3):
        history = [Entry("r", [int(item)], [float(item & 4096)], 0, 0) for item in items[seed]]
        keys, scores = covisits.of_history(history, NOW_MS)
        by_key = dict(zip(keys.tolist(), scores.tolist(), strict=True))
        found = covisits.scores(keys_N, history, NOW_MS).tolist()
        assert len(by_key) > 30 and found == [by_key.get(key, 0.0) for key in keys_N.tolist()]
