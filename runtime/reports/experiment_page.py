"""An experiment's report as one page: tables and SVG, no script, nothing fetched; on a phone, in the dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

from experiments.statistics.effect import Effect
from experiments.statistics.readout import BETTER, BROKEN, HARM, MIXED, SAFE, WORSE, Readout
from runtime.reports.experiment_table import bounds, percent, value

_TONES: Final = {
    BETTER: "good",
    SAFE: "good",
    WORSE: "bad",
    MIXED: "bad",
    HARM: "bad",
    BROKEN: "bad",
}
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 720, 220, 44, 34, 34
_LONGEST: Final = 28  # characters of a name in a plot; all of it is in its tooltip and in the table
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
    """One interval of a plot, in a tone."""

    name: str
    effect: Effect
    tone: str = "open"


def page(seen: Readout, notes: Sequence[str]) -> str:
    """The whole page, as HTML."""
    until = datetime.fromtimestamp(seen.until_ms / 1000, UTC).isoformat(" ", "minutes")
    metrics = [Bar(f"{n.metric} · {n.arm}", n.effect, _tone(n.said)) for n in seen.lines]
    parts = [
        f"<h1>{escape(seen.experiment)}: {_said(seen.verdict)}</h1>",
        f"<p>{escape(seen.hypothesis)}</p>" if seen.hypothesis else "",
        *(f"<p>{escape(why)}</p>" for why in seen.why),
        f'<p class="dim">as of {until}; intervals hold however often one looks, α {seen.alpha:g}</p>',
        "<h2>Users by arm</h2>", _arms(seen),
        "<h2>Against the control</h2>", plot(metrics), _metrics(seen),
    ]  # fmt: skip
    for title, cells in (("day since exposure", seen.days), ("segment", seen.segments)):
        if cells:
            bars = [Bar(f"{cell.part} · {cell.arm}", cell.effect) for cell in cells]
            parts += [f"<h2>{escape(seen.metric)} by {title}</h2>", plot(bars)]
    if notes:
        parts.append(f'<ul class="dim">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(seen.experiment)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def plot(bars: Sequence[Bar]) -> str:
    """Intervals beside each other around 0, as SVG. Of who has none yet, the name alone."""
    known = [bar for bar in bars if math.isfinite(bar.effect.high)]
    reach = _reach([max(abs(bar.effect.low), abs(bar.effect.high)) for bar in known])
    height = _TOP + _ROW * len(bars) + 8

    def x(value: float) -> float:
        inside = max(-reach, min(reach, value))
        return _LEFT + (inside + reach) / (2 * reach) * (_WIDTH - _LEFT - _RIGHT)

    drawn = []
    for share in (-1, -0.5, 0, 0.5, 1):
        at, kind = x(share * reach), "zero" if share == 0 else "grid"
        drawn.append(
            f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 8}" y2="{height}"/>'
        )
        said = f"{100 * share * reach:+.3g}%" if share else "0"
        drawn.append(f'<text class="dim" x="{at:.1f}" y="20" text-anchor="middle">{said}</text>')
    for number, bar in enumerate(bars):
        y = _TOP + _ROW * number + _ROW / 2
        name = bar.name if len(bar.name) <= _LONGEST else f"{bar.name[: _LONGEST - 1]}…"
        drawn.append(f'<text x="0" y="{y + 4:.1f}">{escape(name)}</text>')
        if bar in known:
            drawn.append(_interval(bar, x, y))
        else:
            drawn.append(f'<text class="dim" x="{_LEFT + 8}" y="{y + 4:.1f}">too few users</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="relative effects with intervals">{"".join(drawn)}</svg>'
    )


def _interval(bar: Bar, x: Callable[[float], float], y: float) -> str:
    its = bar.effect
    return (
        f'<g class="{bar.tone}"><title>{escape(bar.name)}: {percent(its)}, {bounds(its)}</title>'
        f'<line stroke-width="3" x1="{x(its.low):.1f}" x2="{x(its.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle cx="{x(its.relative):.1f}" cy="{y:.1f}" r="5"/></g>'
    )


def _reach(values: Sequence[float]) -> float:
    """A round number that is past most of them: wide intervals of small parts are cut off at the edge."""
    if not values:
        return 0.1
    wanted = min(max(values), 4 * min(values) + 1e-6)
    power = 10 ** math.floor(math.log10(max(wanted, 1e-6)))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= wanted))


def _arms(seen: Readout) -> str:
    rows = [
        (arm.name, f"{arm.share:.1%}", f"{arm.users:,}", f"{expected:,.0f}", f"{arm.shown:,.0f}")
        for arm, expected in zip(seen.arms, seen.sample_ratio.expected, strict=True)
    ]
    alarm = seen.sample_ratio.alarm
    said = "the arms don't have the users that their shares say" if alarm else "as their shares say"
    tone = "bad" if alarm else "dim"
    return _table(("arm", "share", "users", "expected", "shown"), rows) + (
        f'<p class="{tone}">{said}: p {seen.sample_ratio.p:.3g}</p>'
    )


def _metrics(seen: Readout) -> str:
    rows = [
        (
            f"{line.metric} ({line.role})", line.arm, value(line.effect.control),
            value(line.effect.treatment), percent(line.effect), bounds(line.effect),
            f"{line.p:.3g}", line.said,
        )
        for line in seen.lines
    ]  # fmt: skip
    names = ("metric", "arm", "control", "arm's", "effect", "interval", "p", "said")
    return _table(names, rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(v)}</td>' for v in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _said(verdict: str) -> str:
    return f'<span class="{_tone(verdict)}">{escape(verdict)}</span>'


def _tone(said: str) -> str:
    return _TONES.get(said, "open")
