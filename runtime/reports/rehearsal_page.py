"""The page of a rehearsal: hits among the first ten by thousands of rows, for both questions.
Self-contained."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from replay.judging.answers import HIT, OURS
from replay.judging.questions import FIRST, NEXT, QUESTIONS
from runtime.reports.retrieval_tables import REPLAY
from serving.control_room.room_app import WEB

_COLOURS: Final = ("--glow", "--text", "--pink", "--amber", "--blue", "--violet")
_LISTS: Final = 4  # simple lists with a curve: the best, by both questions
_WIDTH, _HEIGHT, _LEFT, _BELOW = 720, 280, 44, 28
_STYLE: Final = """
main { max-width: 900px; padding-top: 24px; }
h1 { font-size: clamp(24px, 4vw, 36px); letter-spacing: -.03em; margin-bottom: 6px; }
section { background: var(--panel); border: 1px solid var(--edge); border-radius: 18px;
  padding: 20px; margin-top: 20px; box-shadow: var(--shade); }
h2 { font-size: 17px; margin-bottom: 10px; }
p { color: var(--soft); }
svg { width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--edge); }
table { border-collapse: collapse; width: 100%; margin-top: 12px; font-size: 14px; }
th, td { text-align: right; padding: 4px 0 4px 12px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td i { display: inline-block; width: 18px; height: 3px; border-radius: 2px; margin-right: 8px;
  vertical-align: middle; }
td:last-child { white-space: nowrap; }
tr.ours { font-weight: 700; }
@media (max-width: 600px) {
  svg text { font-size: 22px; }
  table { font-size: 13px; }
}
"""


def page_of(name: str, report: Mapping[str, Any]) -> str:
    """The page of an app's rehearsal, from its report."""
    colours = _colours(report)
    sections = "".join(_section(report, question, colours) for question in (NEXT, FIRST))
    live, speed = report["live"], report["speed"]
    went = (
        f"{live['rows']:,} rows, event time {speed['reached']:,.0f} times as fast as the machine's "
        f"(at most {speed['most']:,.0f})"
    )
    style = (WEB / "control.css").read_text("utf-8") + _STYLE
    title = f"{escape(name)}, rehearsed"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><main><h1>{title}</h1><p>{went}</p>{sections}</main></body></html>\n"
    )


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    """Colours of the curves, by name."""
    lists = [report["questions"][question]["lists"] for question in (NEXT, FIRST)]
    hits = {name: sum(each[name][HIT] or 0.0 for each in lists if name in each) for name in lists[0]}
    best = sorted(hits, key=lambda name: -hits[name])[:_LISTS]
    return dict(zip((OURS, REPLAY, *best), _COLOURS, strict=False))


def _section(report: Mapping[str, Any], question: str, colours: Mapping[str, str]) -> str:
    measured, replayed = report["questions"][question], report["replay"]["questions"][question]
    heading = f"<h2>{escape(QUESTIONS[question].capitalize())}: {measured['cases']:,} cases</h2>"
    if measured["ours"] is None or measured["ours"][HIT] is None:
        return f"<section>{heading}<p>Too few for a figure.</p></section>"
    figures = {OURS: measured["ours"], REPLAY: replayed["ours"], **measured["lists"]}
    curves = {n: _curve(report["curves"][question], n) for n in colours if n != REPLAY}
    curves[REPLAY] = _curve(report["replay"]["curves"][question], OURS)
    return f"<section>{heading}{_chart(curves, colours)}{_table(figures, colours)}</section>"


def _curve(blocks: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(block["from_row"], block[name]) for block in blocks if block.get(name) is not None]


def _chart(curves: Mapping[str, list[tuple[int, float]]], colours: Mapping[str, str]) -> str:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return "<p>No thousand rows have enough cases for a point.</p>"
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top = max(0.05, *(y for _, y in points)) * 1.1

    def place(x: int, y: float) -> str:
        across = (x - first) / max(1, last - first) * (_WIDTH - _LEFT - 12)
        return f"{_LEFT + across:.1f},{(_HEIGHT - _BELOW) * (1 - y / top):.1f}"

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{top * part:.2f}</text>'
        for part in (0.0, 0.5, 1.0)
        for at in [(_HEIGHT - _BELOW) * (1 - part)]
    )
    lines = "".join(
        f'<polyline points="{" ".join(place(*point) for point in curve)}" fill="none" '
        f'stroke="var({colours[name]})" stroke-width="{3 if name == OURS else 1.8}"'
        f"{' stroke-dasharray=' + chr(34) + '5 4' + chr(34) if name == REPLAY else ''}/>"
        for name, curve in curves.items()
    )
    label = f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">rows {first:,} to {last:,}</text>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{HIT} by thousands of rows">'
        f"{grid}{lines}{label}</svg>"
    )


def _table(figures: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    rows = ""
    for name, measured in sorted(figures.items(), key=lambda each: -((each[1] or {}).get(HIT) or 0.0)):
        if measured is None or measured[HIT] is None:
            continue
        low, high = measured["intervals"][HIT]
        mark = f'<i style="background:var({colours[name]})"></i>' if name in colours else ""
        kind = ' class="ours"' if name == OURS else ""
        rows += (
            f"<tr{kind}><td>{mark}{escape(name)}</td><td>{measured[HIT]:.3f}</td>"
            f"<td>{low:.3f} to {high:.3f}</td></tr>"
        )
    return f"<table><tr><th>by</th><th>{HIT}</th><th>95 %</th></tr>{rows}</table>"
