"""Which question an engagement answers."""

import pytest

from recsys.features.families.declared import Declared
from replay.judging.questions import FIRST, NEW, NEXT, Visits, pause_of

MINUTE_MS, DAY_MS = 60_000, 86_400_000


def asked(visits: Visits, *rows: tuple[str, int]) -> list[str]:
    return [visits.take(user, time_ms) for user, time_ms in rows]


def test_a_longer_pause_than_half_an_hour_ends_a_visit() -> None:
    minutes = (0, 1, 31, 62, 92)
    rows = [("a", minute * MINUTE_MS) for minute in minutes]
    assert asked(Visits(), *rows) == [NEW, NEXT, NEXT, FIRST, NEXT]
    assert asked(Visits(600.0), *rows) == [NEW, NEXT, FIRST, FIRST, FIRST]


def test_users_have_visits_of_their_own() -> None:
    rows = ("a", 0), ("b", MINUTE_MS), ("a", 2 * MINUTE_MS)
    assert asked(Visits(), *rows) == [NEW, NEW, NEXT]


def test_the_rows_of_a_moment_answer_its_question() -> None:
    rows = ("a", 0), ("a", 0), ("a", DAY_MS), ("b", DAY_MS), ("a", DAY_MS), ("a", DAY_MS + 1)
    assert asked(Visits(), *rows) == [NEW, NEW, FIRST, NEW, FIRST, NEXT]


def test_a_question_is_that_of_a_row_but_takes_none() -> None:
    visits = Visits()
    assert [visits.question("a", 0) for _ in range(2)] == [NEW, NEW]
    visits.take("a", 0)
    assert visits.question("a", 1) == visits.question("a", 2) == NEXT
    assert visits.question("a", DAY_MS) == FIRST


def test_beyond_the_limit_the_user_inactive_longest_is_new_again() -> None:
    visits = Visits(users=2)
    asked(visits, ("a", 0), ("b", 1), ("a", 2), ("c", 3))
    assert [visits.question(user, 4) for user in "abc"] == [NEXT, NEW, NEXT]


@pytest.mark.parametrize(("declared", "pause_s"), [(Declared(), 1800.0), (Declared(visit_s=60.0), 60.0)])
def test_the_pause_is_that_of_the_app(declared: Declared, pause_s: float) -> None:
    assert pause_of(declared) == pause_s
