"""Experiments as tables on a terminal."""

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
    MetricEffect,
    Readout,
    SubgroupEffect,
)
from runtime.reports.tables import plain_table

COLOURS = {BETTER: "green", SAFE: "green", WORSE: "red", MIXED: "red", HARM: "red", BROKEN: "red"}


ARM_COLUMNS = ("arm", "share", "users", "expected", "shown")


def list_table(rows: Sequence[dict[str, Any]], revision: int) -> Table:
    """Lists one experiment per row."""
    columns = ("experiment", "state", "layer", "traffic", "arms", "decides", "guarded by", "why")
    cells = []
    for row in rows:
        arms = ", ".join(f"{name} {share:.0%}" for name, share in row["arms"].items())
        traffic = f"{row['traffic']:.1%}"
        if row["traffic"] != row["of"]:
            traffic += f" of {row['of']:.1%}"
        guardrails = ", ".join(f"{name} {loss:.0%}" for name, loss in row["guardrails"].items())
        cells.append((row["name"], row["state"], row["layer"], traffic, arms,
                      ", ".join(row["primary"]), guardrails, row["why"]))  # fmt: skip
    return plain_table(columns, cells, title=f"experiments, revision {revision}", fold=("why",))


def report_tables(readout: Readout, notes: Sequence[str]) -> list[Table | Text]:
    """Lays out verdict, arms, metrics, days, segments and notes."""
    colour = COLOURS.get(readout.verdict, "yellow")
    verdict = (f"{readout.experiment}: {readout.verdict}", f"bold {colour}")
    head = Text.assemble(verdict, f"  {readout.hypothesis}")
    parts: list[Table | Text] = [head, *(Text(f"  {why}") for why in readout.why)]
    parts += [_arms(readout), _metrics(readout)]
    for group, effects in (("day since exposure", readout.days), ("segment", readout.segments)):
        if effects:
            title = f"{readout.metric} by {group} (exploratory; decides nothing)"
            parts.append(_subgroups(title, effects))
    return [*parts, *(Text(f"note: {note}", style="dim") for note in notes)]


def arm_rows(readout: Readout) -> list[tuple[str, ...]]:
    """One row of ``ARM_COLUMNS`` per arm."""
    return [
        (arm.name, f"{arm.share:.1%}", f"{arm.users:,}", f"{expected:,.0f}", f"{arm.shown:,.0f}")
        for arm, expected in zip(readout.arms, readout.sample_ratio.expected, strict=True)
    ]


def _arms(readout: Readout) -> Table:
    ratio = readout.sample_ratio
    title = f"users by arm: p {ratio.p:.3g}{', ALARM' if ratio.alarm else ''}"
    return plain_table(ARM_COLUMNS, arm_rows(readout), title=title, right=ARM_COLUMNS[1:])


def _metrics(readout: Readout) -> Table:
    numbers = ("control", "arm's", "effect", "interval", "p", "saved")
    cells = [
        (
            line.metric, _role(line), line.arm, *_numbers(line.effect), f"{line.p:.3g}",
            f"{line.effect.saved:.0%}", Text(line.finding, style=COLOURS.get(line.finding, "")),
        )
        for line in readout.lines
    ]  # fmt: skip
    title = f"against the control; intervals are valid at every look, α {readout.alpha:g}"
    columns = ("metric", "role", "arm", *numbers, "verdict")
    return plain_table(columns, cells, title=title, right=numbers)


def _subgroups(title: str, effects: Sequence[SubgroupEffect]) -> Table:
    numbers = ("users", "control", "arm's", "effect", "interval")
    cells = [(row.part, row.arm, f"{sum(row.effect.users):,}", *_numbers(row.effect)) for row in effects]
    return plain_table(("part", "arm", *numbers), cells, title=title, right=numbers)


def _numbers(effect: Effect) -> tuple[str, str, str, str]:
    return value(effect.control), value(effect.treatment), percent(effect), bounds(effect)


def _role(line: MetricEffect) -> str:
    return f"{line.role}, {line.tolerated:.0%}" if line.tolerated else line.role


def value(mean: float) -> str:
    """An arm's mean of a metric; a dash without users."""
    return f"{mean:.4g}" if math.isfinite(mean) else "–"


def percent(effect: Effect) -> str:
    """The relative effect; a dash with too few users."""
    return f"{effect.relative:+.2%}" if math.isfinite(effect.relative) else "–"


def bounds(effect: Effect) -> str:
    """The interval of the relative effect; a dash with too few users."""
    return "–" if effect.high == float("inf") else f"{effect.low:+.2%} to {effect.high:+.2%}"
