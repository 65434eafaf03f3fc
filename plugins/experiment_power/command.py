"""``recsys experiment power``: users that an effect needs, and effects that can be detected."""

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from plugins.experiment_power.analysis import power_from_log, power_from_numbers
from recsys.features.feature_set_file import labels_of
from runtime.cli.common import JsonOption, StateOption, exit_on, show, with_system
from runtime.jobs.director_requests import find_experiment, newest_experiments
from runtime.reports.tables import plain_table


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
                        f"{name} is an interleaving, expected an experiment of arms: see `recsys study "
                        "interleaving` for how many lists it takes"
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
