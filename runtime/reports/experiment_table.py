"""Experiments as tables of a terminal."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.statistics.effect import Effect
from experiments.statistics.readout import (
    BETTER,
    BROKEN,
    HARM,
    MIXED,
    SAFE,
    WORSE,
    SubgroupEffect,
    MetricEffect,
    Readout,
)

_COLOURS = {BETTER: "green", SAFE: "green", WORSE: "red", MIXED: "red", HARM: "red", BROKEN: "red"}


def list_table(rows: Sequence[dict[str, Any]], revision: int) -> Table:
    """One experiment a line."""
    table = _table(f"experiments, revision {revision}")
    for name in ("experiment", "state", "layer", "traffic", "arms", "decides", "guarded by"):
        table.add_column(name)
    table.add_column("why", overflow="fold")
    for row in rows:
        arms = ", ".join(f"{name} {share:.0%}" for name, share in row["arms"].items())
        traffic = f"{row['traffic']:.1%}"
        if row["traffic"] != row["of"]:
            traffic += f" of {row['of']:.1%}"
        table.add_row(
            row["name"], row["state"], row["layer"], traffic, arms, ", ".join(row["primary"]),
            ", ".join(f"{name} {loss:.0%}" for name, loss in row["guardrails"].items()), row["why"],
        )  # fmt: skip
    return table


def number_table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    """A name and what belongs to it a line."""
    table = _table(title)
    for _ in rows[0]:
        table.add_column("")
    for row in rows:
        table.add_row(*row)
    return table


def power_table(found: dict[str, Any]) -> Table:
    """One metric a line."""
    table = _table(
        f"{found['from']}; {found['users']:,} would be in it, in {found['arms']} arms\n"
        f"to find {found['effect']:+.1%} with probability {found['power']:.0%}, however often one looks "
        f"(α {found['alpha']:.3g})"
    )
    for name in ("metric", "mean", "power there", "smallest effect", "users needed", "days needed"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in found["metrics"]:
        days = row.get("days_needed", "–")
        table.add_row(
            row["metric"], f"{row['mean']:.4g}", f"{row['power_there']:.1%}",
            f"{row['smallest_effect']:.2%}", f"{row['users_needed']:,}",
            "more" if days is None else str(days),
        )  # fmt: skip
    return table


def report_tables(seen: Readout, notes: Sequence[str]) -> list[Table | Text]:
    """Verdict, arms, metrics, days, segments, notes."""
    colour = _COLOURS.get(seen.verdict, "yellow")
    said = (f"{seen.experiment}: {seen.verdict}", f"bold {colour}")
    head = Text.assemble(said, f"  {seen.hypothesis}")
    found: list[Table | Text] = [head, *(Text(f"  {why}") for why in seen.why)]
    found += [_arms(seen), _metrics(seen)]
    for title, cells in (("by day since exposure", seen.days), ("by segment", seen.segments)):
        if cells:
            found.append(_cells(f"{seen.metric} {title} (to look at; decides nothing)", cells))
    return [*found, *(Text(f"note: {note}", style="dim") for note in notes)]


def _arms(seen: Readout) -> Table:
    ratio = seen.sample_ratio
    table = _table(f"users by arm: p {ratio.p:.3g}{', ALARM' if ratio.alarm else ''}")
    for name in ("arm", "share", "users", "expected", "shown"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, expected in zip(seen.arms, ratio.expected, strict=True):
        table.add_row(
            arm.name, f"{arm.share:.1%}", f"{arm.users:,}", f"{expected:,.0f}", f"{arm.shown:,.0f}"
        )
    return table


def _metrics(seen: Readout) -> Table:
    table = _table(f"against the control; intervals hold at all times, α {seen.alpha:g}")
    for name in (
        "metric",
        "role",
        "arm",
        "control",
        "arm's",
        "effect",
        "interval",
        "p",
        "saved",
        "said",
    ):
        table.add_column(
            name, justify="left" if name in ("metric", "role", "arm", "said") else "right"
        )
    for line in seen.lines:
        its = line.effect
        table.add_row(
            line.metric, _role(line), line.arm, value(its.control), value(its.treatment),
            percent(its), bounds(its), f"{line.p:.3g}", f"{its.saved:.0%}",
            Text(line.said, style=_COLOURS.get(line.said, "")),
        )  # fmt: skip
    return table


def _cells(title: str, cells: Sequence[SubgroupEffect]) -> Table:
    table = _table(title)
    for name in ("part", "arm", "users", "control", "arm's", "effect", "interval"):
        table.add_column(name, justify="left" if name in ("part", "arm") else "right")
    for cell in cells:
        its = cell.effect
        table.add_row(
            cell.part, cell.arm, f"{sum(its.users):,}", value(its.control), value(its.treatment),
            percent(its), bounds(its),
        )  # fmt: skip
    return table


def _role(line: MetricEffect) -> str:
    return f"{line.role}, {line.tolerated:.0%}" if line.tolerated else line.role


def value(of_an_arm: float) -> str:
    """What a metric is in an arm; a dash where nobody was seen."""
    return f"{of_an_arm:.4g}" if math.isfinite(of_an_arm) else "–"


def percent(its: Effect) -> str:
    """The relative effect; a dash where too few users were seen."""
    return f"{its.relative:+.2%}" if math.isfinite(its.relative) else "–"


def bounds(its: Effect) -> str:
    """The interval; a dash where too few users were seen."""
    return "–" if its.high == float("inf") else f"{its.low:+.2%} to {its.high:+.2%}"


def _table(title: str) -> Table:
    return Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
