"""What ``recsys experiment power`` answers, as values: from a log, or from given numbers."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from experiments.assignment.definition import Experiment
from experiments.assignment.design import Metrics
from experiments.assignment.metric import Metric, metric_of
from experiments.statistics.effect import eta_of
from experiments.statistics.power import SequentialPower, single_visit_covariance
from recsys.log.protocol import Log
from training.outcomes.population import read_population

_HALVES: Final = (0.5, 0.5)


@dataclass(frozen=True)
class Guess:
    """``effect``: 0 takes the one that the experiment is to find. ``wanted``: the power."""

    effect: float
    wanted: float


def answer_from_log(
    guess: Guess, log: Log, labels: tuple[str, ...], its: Experiment | None, metric: str
) -> dict[str, Any]:
    """Of each primary metric of an experiment, or of one metric and two halves of all users. Users are
    expected to come as they did on the log, for as long. Raises ValueError where it says too little."""
    metrics = its.metrics if its is not None else Metrics()
    names = its.primary if its is not None else (metric or labels[0],)
    asked = [metric_of(name, labels) for name in names]
    arms = [arm.share for arm in its.arms] if its is not None else list(_HALVES)
    traffic = its.traffic if its is not None else 1.0
    if len(arms) < 2:
        raise ValueError(
            f"experiment {its.name if its else ''!r} has one arm, expected two or more"
        )
    seen = read_population(log, labels, asked)
    alpha = metrics.alpha / (len(asked) * (len(arms) - 1))
    eta = eta_of(metrics.find, alpha)
    effect = guess.effect or metrics.find
    shares = (min(arms[1:]), arms[0])  # the smallest treatment: the others find more
    rows = []
    for one in asked:
        looks = SequentialPower(seen.covariance(one), alpha, eta)
        users = seen.users * traffic
        row = _row(one, seen.mean(one), looks, shares, users, effect, guess.wanted)
        rows.append(row | {"users_needed": math.ceil(row["users_needed"] / sum(shares))})
    return {
        "from": f"{seen.users:,} users in {seen.days:.3g} days of the log",
        "traffic": traffic, "arms": len(arms), "alpha": alpha, "power": guess.wanted,
        "effect": effect, "users": round(seen.users * traffic), "metrics": rows,
    }  # fmt: skip


def answer_given(
    guess: Guess, mean: float, sd: float, users_per_day: float, days: int
) -> dict[str, Any]:
    """Of a metric of each user with this mean and deviation; users come once, two halves are compared.
    Raises ValueError for what makes no sense."""
    for name, value in (("--mean", mean), ("--sd", sd), ("--users-per-day", users_per_day)):
        if not value > 0:
            raise ValueError(f"{name} is {value:g}, expected a number above 0")
    if days < 1:
        raise ValueError(f"--days is {days}, expected 1 or more")
    metrics = Metrics()
    effect = guess.effect or metrics.find
    eta = eta_of(metrics.find, metrics.alpha)
    looks = SequentialPower(single_visit_covariance((sd / mean) ** 2, days), metrics.alpha, eta)
    users, given = users_per_day * days, Metric("given", "given")
    row = _row(given, mean, looks, _HALVES, users, effect, guess.wanted)
    found = looks.power(_arms(users, _HALVES), effect)
    reached = np.flatnonzero(found >= guess.wanted)
    row["days_needed"] = int(reached[0]) + 1 if len(reached) else None
    return {
        "from": f"given: {users_per_day:g} users a day for {days} days, each of whom comes once",
        "traffic": 1.0, "arms": 2, "alpha": metrics.alpha, "power": guess.wanted, "effect": effect,
        "users": round(users_per_day * days), "metrics": [row],
    }  # fmt: skip


def _row(
    metric: Metric,
    mean: float,
    looks: SequentialPower,
    shares: tuple[float, float],
    users: float,
    effect: float,
    wanted: float,
) -> dict[str, Any]:
    arms = _arms(users, shares)
    signed = effect if metric.higher_is_better else -abs(effect)
    return {
        "metric": metric.name,
        "mean": mean,
        "power_there": float(looks.power(arms, signed)[-1]),
        "smallest_effect": looks.smallest_effect(arms, wanted),
        "users_needed": looks.users_needed(shares, signed, wanted),  # of the two arms
    }


def _arms(users: float, shares: tuple[float, float]) -> tuple[float, float]:
    return users * shares[0], users * shares[1]
