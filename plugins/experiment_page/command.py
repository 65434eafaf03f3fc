"""``recsys experiment page``: writes an experiment's report as an HTML page with plots."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Annotated, Final

import typer
from typer import Argument

from experiments.statistics.effect import Effect
from experiments.statistics.readout import Readout
from runtime.cli.common import StateOption, check_folders, exit_on, with_system
from runtime.jobs.director_requests import find_experiment, newest_experiments
from runtime.reports.experiment_summary import read_report
from runtime.reports.experiment_table import ARM_COLUMNS, COLOURS, arm_rows, bounds, percent, value

_TONES: Final = {"green": "good", "red": "bad"}
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 720, 220, 44, 34, 34
_LONGEST: Final = 28  # characters of a name in a plot; tooltip and table have the full name
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1c1e; --dim: #6b6b70; --paper: #fff; --line: #d9d9de;
  --good: #1a7f4b; --bad: #c2293a; --open: #57606a; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --dim: #9a9aa2; --paper: #16161a;
  --line: #36363d; --good: #4cc38a; --bad: #ff7b86; --open: #a8b1bb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 780px; padding: 16px; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.1rem; margin: 28px 0 8px; }
p, ul { margin: 4px 0; } .dim { color: var(--dim); } .good { color: var(--good); }
.bad { color: var(--bad); } .open { color: var(--open); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { padding: 5px 8px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font-size: 13px; }
svg .dim { fill: var(--dim); } svg .zero { stroke: var(--dim); stroke-dasharray: 3 3; }
svg .grid { stroke: var(--line); } svg .good { stroke: var(--good); fill: var(--good); }
svg .bad { stroke: var(--bad); fill: var(--bad); } svg .open { stroke: var(--open); fill: var(--open); }
@media (max-width: 520px) { svg text { font-size: 21px; } }
"""


@dataclass(frozen=True)
class Bar:
    """One interval of a plot. ``tone``: its CSS class."""

    name: str
    effect: Effect
    tone: str = "open"


def render_page(readout: Readout, notes: Sequence[str]) -> str:
    """Renders the whole page as HTML."""
    until = datetime.fromtimestamp(readout.until_ms / 1000, UTC).isoformat(" ", "minutes")
    metrics = [Bar(f"{n.metric} · {n.arm}", n.effect, _tone(n.finding)) for n in readout.lines]
    parts = [
        f"<h1>{escape(readout.experiment)}: {_verdict(readout.verdict)}</h1>",
        f"<p>{escape(readout.hypothesis)}</p>" if readout.hypothesis else "",
        *(f"<p>{escape(why)}</p>" for why in readout.why),
        f'<p class="dim">as of {until}; intervals are valid at every look, α {readout.alpha:g}</p>',
        "<h2>Users by arm</h2>", _arms(readout),
        "<h2>Against the control</h2>", plot(metrics), _metrics(readout),
    ]  # fmt: skip
    for title, cells in (("day since exposure", readout.days), ("segment", readout.segments)):
        if cells:
            bars = [Bar(f"{cell.part} · {cell.arm}", cell.effect) for cell in cells]
            parts += [f"<h2>{escape(readout.metric)} by {title}</h2>", plot(bars)]
    if notes:
        parts.append(f'<ul class="dim">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(readout.experiment)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def plot(bars: Sequence[Bar]) -> str:
    """Draws intervals around 0 as SVG; of arms with too few users, the name alone."""
    bounded = [bar for bar in bars if math.isfinite(bar.effect.high)]
    reach = _reach([max(abs(bar.effect.low), abs(bar.effect.high)) for bar in bounded])
    height = _TOP + _ROW * len(bars) + 8

    def x(value: float) -> float:
        inside = max(-reach, min(reach, value))
        return _LEFT + (inside + reach) / (2 * reach) * (_WIDTH - _LEFT - _RIGHT)

    drawn = []
    for share in (-1, -0.5, 0, 0.5, 1):
        at, kind = x(share * reach), "zero" if share == 0 else "grid"
        drawn.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" y2="{height}"/>')
        label = f"{100 * share * reach:+.3g}%" if share else "0"
        drawn.append(f'<text class="dim" x="{at:.1f}" y="20" text-anchor="middle">{label}</text>')
    for number, bar in enumerate(bars):
        y = _TOP + _ROW * number + _ROW / 2
        name = bar.name if len(bar.name) <= _LONGEST else f"{bar.name[: _LONGEST - 1]}…"
        drawn.append(f'<text x="0" y="{y + 4:.1f}">{escape(name)}</text>')
        if bar in bounded:
            drawn.append(_interval(bar, x, y))
        else:
            drawn.append(f'<text class="dim" x="{_LEFT + 8}" y="{y + 4:.1f}">too few users</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="relative effects with intervals">{"".join(drawn)}</svg>'
    )


def _interval(bar: Bar, x: Callable[[float], float], y: float) -> str:
    effect, left, right = bar.effect, x(bar.effect.low), x(bar.effect.high)
    return (
        f'<g class="{bar.tone}"><title>{escape(bar.name)}: {percent(effect)}, {bounds(effect)}</title>'
        f'<line stroke-width="3" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle cx="{x(effect.relative):.1f}" cy="{y:.1f}" r="5"/></g>'
    )


def _reach(values: Sequence[float]) -> float:
    """Round limit of the axis, beyond most values; wide intervals of small groups are cut off."""
    if not values:
        return 0.1
    wanted = min(max(values), 4 * min(values) + 1e-6)
    power = 10 ** math.floor(math.log10(max(wanted, 1e-6)))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= wanted))


def _arms(readout: Readout) -> str:
    alarm = readout.sample_ratio.alarm
    text = f"user counts {'do not' if alarm else 'do'} match the arms' shares"
    tone = "bad" if alarm else "dim"
    return _table(ARM_COLUMNS, arm_rows(readout)) + (
        f'<p class="{tone}">{text}: p {readout.sample_ratio.p:.3g}</p>'
    )


def _metrics(readout: Readout) -> str:
    rows = [
        (
            f"{line.metric} ({line.role})", line.arm, value(line.effect.control),
            value(line.effect.treatment), percent(line.effect), bounds(line.effect),
            f"{line.p:.3g}", line.finding,
        )
        for line in readout.lines
    ]  # fmt: skip
    names = ("metric", "arm", "control", "arm's", "effect", "interval", "p", "verdict")
    return _table(names, rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(v)}</td>' for v in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _verdict(verdict: str) -> str:
    return f'<span class="{_tone(verdict)}">{escape(verdict)}</span>'


def _tone(verdict: str) -> str:
    return _TONES.get(COLOURS.get(verdict, ""), "open")


def page(
    name: Annotated[str, Argument(help="Name of the experiment.")],
    file: Annotated[Path, Argument(help="The page to write.")],
    state: StateOption = Path("state"),
) -> None:
    """Writes an experiment's report as an HTML page with plots: one file, without scripts."""
    with exit_on(ValueError):
        check_folders(file)
    with with_system(state) as (config, log):
        experiment = find_experiment(name, newest_experiments(log), config)
        if experiment.interleaves:
            raise ValueError(
                f"{name} is an interleaving, which has no page: see `recsys experiment report {name}`"
            )
        readout, notes = read_report(log, config, experiment)
        file.write_text(render_page(readout, notes), "utf-8")
    typer.echo(f"{name}: {readout.verdict}. Wrote {file}")
