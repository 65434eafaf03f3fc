"""``recsys experiment power``: users that an effect needs, and effects that can be detected."""

import math
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from rich.table import Table
from typer import Argument, Option

from experiments.assignment.definition import Arm, Experiment
from experiments.assignment.design import Metric, Metrics
from experiments.statistics.effect import eta_of
from experiments.statistics.readout import metrics_needed
from plugins.experiment_power.population import read_population
from plugins.experiment_power.sequential_power import SequentialPower, single_visit_covariance
from recsys.features.feature_set_file import labels_of
from recsys.log.protocol import Log
from runtime.cli.common import JsonOption, StateOption, exit_on, show, with_system
from runtime.jobs.director_requests import find_experiment, newest_experiments
from runtime.reports.tables import plain_table

_HALVES: Final = (0.5, 0.5)


def power_from_log(
    log: Log, labels: tuple[str, ...], experiment: Experiment | None, metric: str, effect: float,
    wanted: float,
) -> dict[str, Any]:  # fmt: skip
    """Power of an experiment's primary metrics, or of one metric with two halves of all users.

    ``effect``: relative; 0 takes the one that the experiment is to find. ``wanted``: the power.

    Assumes that users come as they did on the log, for as long. Raises ValueError where the log has too
    little.
    """
    if experiment is None:
        halves = Arm("control", 0.5), Arm("treatment", 0.5)
        experiment = Experiment("halves", halves, metric=metric or labels[0])
    metrics, traffic = experiment.metrics, experiment.traffic
    primary, _ = metrics_needed(experiment, labels)
    arms = [arm.share for arm in experiment.arms]
    if len(arms) < 2:
        raise ValueError(f"experiment {experiment.name!r} has one arm, expected two or more")
    population = read_population(log, labels, primary)
    alpha = metrics.alpha / (len(primary) * (len(arms) - 1))
    eta = eta_of(metrics.find, alpha)
    effect = effect or metrics.find
    shares = (min(arms[1:]), arms[0])  # the smallest treatment: larger ones have more power
    rows = []
    for item in primary:
        power = SequentialPower(population.covariance(item), alpha, eta)
        users = population.users * traffic
        row = _row(item, population.mean(item), power, shares, users, effect, wanted)
        rows.append(row | {"users_needed": math.ceil(row["users_needed"] / sum(shares))})
    return {
        "from": f"{population.users:,} users in {population.days:.3g} days of the log",
        "traffic": traffic, "arms": len(arms), "alpha": alpha, "power": wanted,
        "effect": effect, "users": round(population.users * traffic), "metrics": rows,
    }  # fmt: skip


def power_from_numbers(
    mean: float, sd: float, users_per_day: float, days: int, effect: float, wanted: float
) -> dict[str, Any]:
    """Power for a user metric with this mean and deviation; each user comes once, two halves are compared.

    Raises ValueError for invalid numbers.
    """
    for name, value in (("--mean", mean), ("--sd", sd), ("--users-per-day", users_per_day)):
        if not value > 0:
            raise ValueError(f"{name} is {value:g}, expected a number above 0")
    if days < 1:
        raise ValueError(f"--days is {days}, expected 1 or more")
    metrics = Metrics()
    effect = effect or metrics.find
    eta = eta_of(metrics.find, metrics.alpha)
    covariance = single_visit_covariance((sd / mean) ** 2, days)
    power = SequentialPower(covariance, metrics.alpha, eta)
    users, given = users_per_day * days, Metric("given", "given")
    row = _row(given, mean, power, _HALVES, users, effect, wanted)
    by_day = power.power(_arms(users, _HALVES), effect)
    has_bounds = users_per_day * (1 + np.arange(days)) >= 2 * power.least_users
    reached = np.flatnonzero((by_day >= wanted) & has_bounds)
    row["days_needed"] = int(reached[0]) + 1 if len(reached) else None
    return {
        "from": f"given: {users_per_day:g} users a day for {days} days, each of whom comes once",
        "traffic": 1.0, "arms": 2, "alpha": metrics.alpha, "power": wanted,
        "effect": effect, "users": round(users_per_day * days), "metrics": [row],
    }  # fmt: skip


def _row(
    metric: Metric, mean: float, power: SequentialPower, shares: tuple[float, float], users: float,
    effect: float, wanted: float,
) -> dict[str, Any]:  # fmt: skip
    arms = _arms(users, shares)
    signed = effect if metric.higher_is_better else -abs(effect)
    return {
        "metric": metric.name,
        "mean": mean,
        "power_there": float(power.power(arms, signed)[-1]) if min(arms) >= power.least_users else 0.0,
        "smallest_effect": power.smallest_effect(arms, wanted),
        "users_needed": power.users_needed(shares, signed, wanted),  # of the two arms
    }


def _arms(users: float, shares: tuple[float, float]) -> tuple[float, float]:
    return users * shares[0], users * shares[1]


def power(
    name: Annotated[str, Argument(help="Experiment or YAML file; optional.")] = "",
    state: StateOption = Path("state"),
    metric: Annotated[str, Option(help="Metric, if no experiment is given.")] = "",
    effect: Annotated[float, Option(help="Relative effect: 0.02 is 2 % more.")] = 0.0,
    wanted: Annotated[float, Option("--power", help="Probability to detect it.")] = 0.8,
    mean: Annotated[float, Option(help="Mean of a user's value, instead of the log's.")] = 0.0,
    sd: Annotated[float, Option(help="Standard deviation among users.")] = 0.0,
    users_per_day: Annotated[float, Option(help="New users per day.")] = 0.0,
    days: Annotated[int, Option(help="Maximum duration in days.")] = 28,
    json: JsonOption = None,
) -> None:
    """Computes how many users an effect needs, and which effects can be detected.

    From a system's log, where users return; or from a given mean and deviation, where each user comes once.
    """
    with exit_on(ValueError):
        if mean or sd or users_per_day:
            answer = power_from_numbers(mean, sd, users_per_day, days, effect, wanted)
        else:
            with with_system(state) as (config, log):
                newest = newest_experiments(log)
                experiment = find_experiment(name, newest, config) if name else None
                if experiment is not None and experiment.interleaves:
                    raise ValueError(
                        f"{name} is an interleaving, expected an experiment of arms: an interleaving needs "
                        "far fewer lists, and has no power analysis"
                    )
                answer = power_from_log(log, labels_of(config), experiment, metric, effect, wanted)
    show(answer, json, lambda _: [_table(answer)])


def _table(answer: dict[str, Any]) -> Table:
    """Lists one metric per row."""
    title = (
        f"{answer['from']}; {answer['users']:,} users would take part, in {answer['arms']} arms\n"
        f"to detect {answer['effect']:+.1%} with probability {answer['power']:.0%}, at any look "
        f"(α {answer['alpha']:.3g})"
    )
    numbers = ("mean", "power at the end", "smallest effect", "users needed", "days needed")
    cells = []
    for row in answer["metrics"]:
        days = row.get("days_needed", "–")
        cells.append((
            row["metric"], f"{row['mean']:.4g}", f"{row['power_there']:.1%}",
            f"{row['smallest_effect']:.2%}", f"{row['users_needed']:,}",
            "more" if days is None else days,
        ))  # fmt: skip
    return plain_table(("metric", *numbers), cells, title=title, right=numbers)
