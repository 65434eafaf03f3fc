"""Figures, their intervals and the verdict."""

import numpy as np
import pytest

from replay.judging.answers import AHEAD, BEHIND, LEVEL, OURS, Answers, QuestionedAnswers, user_intervals
from replay.judging.questions import FIRST, NEW, NEXT


def answers_of(ranks: dict[str, list[int]], users: int = 20) -> Answers:
    answers = Answers()
    for n, case in enumerate(zip(*ranks.values(), strict=True)):
        answers.add(f"u{n % users}", n, dict(zip(ranks, case, strict=True)))
    return answers


def test_figures_are_means_over_cases_with_an_interval() -> None:
    ranks = [1 if n % 4 == 0 else 50 if n % 4 == 1 else 0 for n in range(400)]
    figures = answers_of({OURS: ranks}, users=397).figures()[OURS]
    assert (figures["hit@10"], figures["recall@100"], figures["mrr"]) == (0.25, 0.5, 0.255)
    low, high = figures["intervals"]["hit@10"]
    binomial = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(binomial, rel=0.1) and low < 0.25 < high


def test_no_figure_of_fewer_than_fifty_cases() -> None:
    for cases, is_there in ((49, False), (50, True)):
        answers = answers_of({OURS: [1] * cases, "other": [2] * cases})
        figures = answers.figures()
        assert {each["hit@10"] is not None for each in figures.values()} == {is_there}
        assert (figures["other"]["intervals"]["mrr"] == [None, None]) is not is_there
        assert (answers.verdict()["verdict"] is not None) is is_there


def test_cases_of_one_user_count_as_one() -> None:
    """50 users with ten equal cases each know no more than 50 cases do."""
    users, values = np.repeat(np.arange(50), 10), np.repeat(np.arange(50) % 2, 10)[:, None] * 1.0
    ends = [
        float((high - low)[0])
        for low, high in (user_intervals(users, values), user_intervals(np.arange(50), values[::10]))
    ]
    assert ends[0] == pytest.approx(ends[1], rel=0.05) and ends[0] == pytest.approx(0.28, rel=0.2)


def test_a_single_user_has_no_interval() -> None:
    answers = answers_of({OURS: [1] * 60, "other": [20] * 60}, users=1)
    assert answers.figures()[OURS]["intervals"]["hit@10"] == [None, None]
    assert answers.verdict()["verdict"] == LEVEL and answers.verdict()["difference"] == 1.0


@pytest.mark.parametrize(
    ("ours", "verdict", "sign"),
    [([1, 0, 0, 1], LEVEL, 0), ([1, 1, 1, 1], AHEAD, 1), ([0, 0, 0, 0], BEHIND, -1)],
)
def test_the_verdict_is_against_the_best_list(ours: list[int], verdict: str, sign: int) -> None:
    best, worst = [0, 1, 1, 0] * 25, [0, 0, 0, 11] * 25
    measured = answers_of({OURS: ours * 25, "worst": worst, "best": best}, users=100).verdict()
    assert (measured["verdict"], measured["best"], measured["cases"]) == (verdict, "best", 100)
    assert np.sign(measured["difference"]) == sign
    low, high = measured["interval"]
    assert low <= measured["difference"] <= high


def test_a_list_has_no_figure_of_more_places_than_it_has() -> None:
    figures = answers_of({OURS: [1] * 60, "other": [1] * 60}).figures({OURS: 10})
    assert figures[OURS]["hit@10"] == figures[OURS]["ndcg@10"] == figures[OURS]["mrr"] == 1.0
    assert figures[OURS]["recall@100"] is figures[OURS]["recall@300"] is None
    assert figures["other"]["recall@100"] == 1.0


def test_blocks_are_of_rows() -> None:
    answers = Answers()
    for row in range(0, 400, 2):
        answers.add(f"u{row}", row, {OURS: 1 if row < 200 else 11})
    assert answers.blocks(200) == [
        {"from_row": 0, "cases": 100, OURS: 1.0},
        {"from_row": 200, "cases": 100, OURS: 0.0},
    ]
    assert answers.blocks(40)[1] == {"from_row": 40, "cases": 20, OURS: None}


def test_a_list_that_lacks_a_case_is_an_error() -> None:
    answers = Answers()
    answers.add("a", 0, {OURS: 1})
    with pytest.raises(AssertionError):
        answers.add("a", 1, {OURS: 1, "late": 1})


def test_a_report_has_each_question() -> None:
    answers = QuestionedAnswers()
    answers.by_question[FIRST].add("a", 0, {OURS: 1, "other": 2})
    report = answers.report()
    assert [report[q]["cases"] for q in (NEXT, FIRST, NEW)] == [0, 1, 0]
    assert report[FIRST]["ours"]["cases"] == 1 and report[FIRST]["lists"].keys() == {"other"}
    assert report[NEXT]["ours"] is None and report[NEXT]["verdict"] == {"verdict": None, "cases": 0}
