"""Both questions over rows: what is asked, what the lists know by then, and what is reported."""

from collections.abc import Sequence

import numpy as np
import pytest

from replay.judging.answers import OURS
from replay.judging.asked_lists import AskedLists, Judge, simple_lists
from replay.judging.questions import FIRST, NEW, NEXT
from replay.judging.simple_lists import OwnItems

HALF_HOUR_MS, DAY_MS = 1_800_000, 86_400_000


class Watcher:
    """A list of the items 0 to 9, that writes down what it learns."""

    name = "watcher"

    def __init__(self) -> None:
        self.learned: list[tuple[str, int, int]] = []

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        self.learned.append((user_id, item, time_ms))

    def scores(self, user_id: str, now_ms: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(10), -np.arange(10.0)


def asked(repeats: bool = False) -> tuple[AskedLists, Watcher]:
    watcher = Watcher()
    return AskedLists(1_800.0, repeats, [watcher]), watcher


def ranks(lists: AskedLists, question: str) -> list[int]:
    return lists.answers.by_question[question]._ranks["watcher"].tolist()


def test_rows_of_a_moment_are_learned_when_it_is_over() -> None:
    lists, watcher = asked()
    lists.learn("a", 1, 10)
    lists.learn("a", 2, 10)
    lists.ask("a", 10, [3], [0])
    assert watcher.learned == [] and ranks(lists, NEW) == [4]  # nor are 1 and 2 closed yet
    lists.ask("a", 11, [3], [0])
    assert watcher.learned == [("a", 1, 10), ("a", 2, 10)] and ranks(lists, NEXT) == [2]


@pytest.mark.parametrize("repeats", [False, True])
def test_an_item_that_the_viewer_had_is_asked_only_if_items_repeat(repeats: bool) -> None:
    lists, _ = asked(repeats)
    lists.learn("a", 1, 10)
    lists.see("a", 0)
    assert not lists.is_asked("a", 1, 10)  # twice in a moment
    assert [lists.is_asked("a", item, 20) for item in (0, 1, 2)] == [repeats, repeats, True]
    assert lists.is_asked("b", 1, 20)
    lists.ask("a", 20, [4], [0])
    assert ranks(lists, NEXT) == [5 if repeats else 3]


def test_of_long_ago_the_viewer_s_own_items_are_known() -> None:
    own, watcher = OwnItems(), Watcher()
    lists = AskedLists(1_800.0, True, [watcher, own])
    lists.recall("a", 3, 10)
    lists.learn("a", 4, DAY_MS)
    lists.ask("a", 2 * DAY_MS, [3], [0])
    assert watcher.learned == [("a", 4, DAY_MS)]
    assert own.scores("a", 0)[0].tolist() == [4, 3]
    assert lists.rows == 2 and ranks(lists, FIRST) == [4]


def test_lists_have_open_items_only() -> None:
    lists, _ = asked()
    lists.ask("a", 0, [4, 7, -1], [1, 0, 2], np.arange(10) % 2 == 0)
    assert ranks(lists, NEW) == [3, 0, 0]


def rows_of_two_groups(visits: int = 6) -> list[tuple[str, str, int]]:
    """Visits of 40 users, half an hour and more apart: those of one group take a, b, c in this order, those
    of the other x, y, z, each visit from a set of its own; a set is the group's for one visit."""
    rows = []
    for visit in range(visits):
        for user in range(40):
            names = "abc" if user % 2 else "xyz"
            began_ms = visit * DAY_MS + user * 60_000
            rows += [(f"u{user}", f"{name}{visit}", began_ms + n * 1_000) for n, name in enumerate(names)]
    return sorted(rows, key=lambda row: row[2])


def judged(rows: Sequence[tuple[str, str, int]], repeats: bool, ours: Sequence[str] = ()) -> dict:
    judge = Judge(1_800.0, repeats)
    for user, item, time_ms in rows:
        judge.ask(user, time_ms, ours)
        judge.take(user, item, time_ms)
    return judge.report(block=200)


def test_transitions_and_neighbours_know_what_follows() -> None:
    report = judged(rows_of_two_groups(), repeats=False, ours=[f"b{n}" for n in range(6)])
    cases = {question: report["questions"][question]["cases"] for question in (NEXT, FIRST, NEW)}
    assert cases == {NEXT: 40 * 2 * 6, FIRST: 40 * 5, NEW: 40} and report["rows"] == 720
    lists = report["questions"][NEXT]["lists"]
    # Each is new to its first users: two of the six sets' 80 rows, which have one chance in ten.
    for name in ("transitions", "item-kNN", "session-kNN, pause 0.5 h"):
        assert lists[name]["hit@10"] > 0.9, name
    assert lists["transitions"]["mrr"] > 0.9
    verdict = report["questions"][NEXT]["verdict"]
    assert verdict["verdict"] == "behind" and verdict["cases"] == 480
    assert report["questions"][NEXT]["ours"]["hit@10"] == 0.25
    assert report["questions"][NEXT]["ours"]["recall@100"] is None
    curve = report["curves"][NEXT]
    assert [row["from_row"] for row in curve] == [0, 200, 400, 600]
    assert sum(row["cases"] for row in curve) == 480
    assert all(row["transitions"] > row[OURS] for row in curve)


def test_items_repeat_where_the_app_says_so() -> None:
    rows = [(f"u{n % 30}", f"v{n % 30}", n * 60_000) for n in range(300)]
    report = judged(rows, repeats=False)
    assert report["seen"] == 270 and report["questions"][NEW]["cases"] == 30
    report = judged(rows, repeats=True, ours=["v0"])
    assert report["seen"] == 0 and report["questions"][NEXT]["cases"] == 270
    assert report["questions"][NEXT]["lists"]["transitions"]["hit@10"] == pytest.approx(240 / 270, abs=1e-4)
    assert report["questions"][NEXT]["ours"]["hit@10"] == pytest.approx(1 / 30, abs=1e-4)


def test_a_row_without_our_list_is_learned_only() -> None:
    judge = Judge(1_800.0, False)
    judge.take("a", "v", 0)
    judge.ask("a", 1, None)
    judge.take("a", "w", 1)
    report = judge.report()
    assert report["rows"] == 2 and not any(q["cases"] for q in report["questions"].values())


def test_a_list_for_another_row_is_refused() -> None:
    judge = Judge(1_800.0, False)
    judge.ask("a", 1, ["v"])
    with pytest.raises(ValueError, match="of user a at 1, the row of a at 2"):
        judge.take("a", "v", 2)


def test_items_beyond_the_limit_are_cases_that_no_list_learns() -> None:
    judge = Judge(1_800.0, False, items=2)
    for n in range(4):
        judge.ask("a", n, [f"v{n}"])
        judge.take("a", f"v{n}", n)
    report = judge.report()
    assert report["items_beyond"] == 2 and report["rows"] == 2
    assert report["questions"][NEXT]["cases"] == 3


def test_the_same_rows_give_the_same_figures() -> None:
    rows = rows_of_two_groups()
    assert judged(rows, False) == judged(rows, False)
    names = [each.name for each in simple_lists(repeats=True)]
    assert len(set(names)) == len(names) == 11
