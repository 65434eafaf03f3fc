"""Figures of answers: how high the lists rank the wanted items, with intervals by a bootstrap over users."""

import itertools
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from replay.judging.questions import QUESTIONS

Floats = NDArray[np.float64]
OURS: Final = "this system"
HIT: Final = "hit@10"  # of one wanted item also the recall
METRICS: Final = (HIT, "recall@100", "recall@300", "ndcg@10", "mrr")
AT_LEAST: Final = 50  # cases, for a figure
AHEAD, LEVEL, BEHIND = "ahead of", "level with", "behind"
_DEPTHS: Final = {HIT: 10, "recall@100": 100, "recall@300": 300, "ndcg@10": 10}
_SAMPLES, _LEVEL, _SEED, _GROUPS = 1_000, 0.95, 0, 1_000
_DIGITS: Final = 4


class Answers:
    """Ranks of the wanted items by list. State: 4 bytes for each case and list, and the users' ids."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._users, self._rows = array("i"), array("q")
        self._ranks: defaultdict[str, array[int]] = defaultdict(lambda: array("i"))

    def __len__(self) -> int:
        return len(self._users)

    def add(self, user_id: str, row: int, ranks: Mapping[str, int]) -> None:
        """Adds a case: the rank of its item in each list, 1 is first, 0 not in it. ``row``: of the log."""
        self._users.append(self._codes.setdefault(user_id, len(self._codes)))
        self._rows.append(row)
        for name, rank in ranks.items():
            self._ranks[name].append(rank)
            assert len(self._ranks[name]) == len(self._users), f"{name} lacks a case"

    def figures(self, depths: Mapping[str, int] | None = None) -> dict[str, dict[str, Any]]:
        """Figures by list. ``depths``: lengths of lists, which have no figure of more places."""
        depths = depths or {}
        values = {name: case_metrics(ranks) for name, ranks in self._ranks.items()}
        means = dict(zip(values, self._means([*values.values()]), strict=True))
        return {
            name: {"cases": len(self)}
            | {metric: mean[m][0] for m, metric in enumerate(METRICS)}
            | {"intervals": {metric: [*mean[m][1:]] for m, metric in enumerate(METRICS)}}
            for name, all_means in means.items()
            for mean in [_as_deep(all_means, depths.get(name))]
        }

    def verdict(self) -> dict[str, Any]:
        """This system against the simple list with the most hits among the first ten: the difference."""
        hits = {name: case_metrics(ranks)[:, 0] for name, ranks in self._ranks.items()}
        ours = hits.pop(OURS, None)
        if ours is None or not hits or len(self) < AT_LEAST:
            return {"verdict": None, "cases": len(self)}
        best = max(hits, key=lambda name: hits[name].sum())  # of equal ones the first
        (((difference, low, high),),) = self._means([(ours - hits[best])[:, None]])
        return {
            "verdict": verdict_of(low, high), "best": best, "metric": HIT, "difference": difference,
            "interval": [low, high], "cases": len(self),
        }  # fmt: skip

    def difference(self, other: "Answers") -> tuple[float | None, ...]:
        """The difference of our hits among the first ten to those of other answers to the same cases, and its
        interval; None of too few. Raises ValueError for other cases."""
        if (len(self), self._codes) != (len(other), other._codes):
            raise ValueError(f"{len(self)} and {len(other)} cases differ, expected the same ones")
        own, others = (case_metrics(each._ranks[OURS])[:, 0] for each in (self, other))
        (((difference, low, high),),) = self._means([(own - others)[:, None]])
        return difference, low, high

    def blocks(self, rows: int) -> list[dict[str, Any]]:
        """Hits among the first ten by list, for each block of so many rows that has cases."""
        block_of = np.array(self._rows, np.int64) // rows
        hits = {name: case_metrics(ranks)[:, 0] for name, ranks in self._ranks.items()}
        return [
            {"from_row": int(block * rows), "cases": int(among.sum())}
            | {
                n: round(float(x[among].mean()), _DIGITS) if among.sum() >= AT_LEAST else None
                for n, x in hits.items()
            }
            for block in np.unique(block_of)
            for among in [block_of == block]
        ]

    def _means(self, values: Sequence[Floats]) -> list[list[tuple[Any, ...]]]:
        """Mean, low and high of the columns of each list's values (C, M); None of too few cases."""
        if len(self) < AT_LEAST:
            return [[(None, None, None)] * one.shape[1] for one in values]
        together = np.concatenate(values, 1)
        means, (low, high) = together.mean(0), user_intervals(np.array(self._users), together)
        columns = [tuple(map(_rounded, figures)) for figures in zip(means, low, high, strict=True)]
        starts = np.cumsum([0, *(one.shape[1] for one in values)])
        return [columns[a:b] for a, b in itertools.pairwise(starts)]


class QuestionedAnswers:
    """Answers by question."""

    def __init__(self) -> None:
        self.by_question = {question: Answers() for question in QUESTIONS}

    def report(self, depth: int | None = None) -> dict[str, Any]:
        """By question the number of cases, our figures, those of the lists, and the verdict. ``depth``:
        length of our lists."""
        report = {}
        for question, answers in self.by_question.items():
            figures = answers.figures({} if depth is None else {OURS: depth})
            ours = figures.pop(OURS, None)
            report[question] = {"cases": len(answers), "ours": ours, "lists": figures} | {
                "verdict": answers.verdict()
            }
        return report

    def curves(self, rows: int = 1_000) -> dict[str, list[dict[str, Any]]]:
        """Hits of each list by question and block of so many rows."""
        return {question: answers.blocks(rows) for question, answers in self.by_question.items()}


def verdict_of(low: float | None, high: float | None) -> str:
    """How we compare, by the ends of a difference's interval; level without one."""
    if low is None or high is None or low <= 0 <= high:
        return LEVEL
    return AHEAD if low > 0 else BEHIND


def is_behind(retrieval: Mapping[str, Any] | None) -> bool:
    """Whether a simple list is ahead of this system in a question."""
    questions = (retrieval or {}).get("questions", {})
    return any(each["verdict"]["verdict"] == BEHIND for each in questions.values())


def rank_of(indices: NDArray[np.int64], scores: Floats, target: int) -> int:
    """Rank of an item by scores, 1 is first; of equal scores the first. 0: not there."""
    (places,) = np.nonzero(indices == target)
    if not len(places) or scores[places[0]] == -np.inf:
        return 0
    score = scores[places[0]]
    return int((scores > score).sum() + (scores[: places[0]] == score).sum()) + 1


def case_metrics(ranks: ArrayLike) -> Floats:
    """``METRICS`` of each case (C, M) from the rank of its wanted item: hits among the first 10, 100 and 300,
    1 / log₂(rank + 1) among the first ten, 1 / rank."""
    rank = np.asarray(ranks, np.float64)
    rank = np.where(rank > 0, rank, np.inf)
    hits = [rank <= k for k in (10, 100, 300)]
    return np.stack([*hits, hits[0] / np.log2(rank + 1), 1 / rank], 1).astype(np.float64)


def user_intervals(users: NDArray[np.int64], values: Floats) -> tuple[Floats, Floats]:
    """Ends (M,) of the 95 % percentile intervals of means over cases (C, M), by a bootstrap over users (C,),
    whose cases aren't independent; NaN of a single user. Deterministic. Many users are drawn in a thousand
    groups, so that it takes a tenth of a second."""
    units, unit = np.unique(users % _GROUPS, return_inverse=True)
    if len(units) < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    cases = np.bincount(unit).astype(np.float64)
    sums = np.stack([np.bincount(unit, column) for column in values.T], 1)
    even = np.full(len(units), 1 / len(units))
    drawn = np.random.default_rng(_SEED).multinomial(len(units), even, _SAMPLES)
    means = (drawn @ sums) / (drawn @ cases)[:, None]
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return low, high


def _rounded(value: float) -> float | None:
    return round(float(value), _DIGITS) if np.isfinite(value) else None


def _as_deep(means: Sequence[tuple[Any, ...]], depth: int | None) -> list[tuple[Any, ...]]:
    """The figures, without those of more places than a list has."""
    return [
        (None, None, None) if depth is not None and _DEPTHS.get(metric, 0) > depth else mean
        for metric, mean in zip(METRICS, means, strict=True)
    ]
