"""Tables of a judgement: retrieval by source, and this system beside simple lists by question."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from replay.judging.answers import HIT, OURS, is_behind
from replay.judging.questions import FIRST, NEW, NEXT, QUESTIONS
from runtime.reports.tables import plain_table

REPLAY: Final = "replay of the same rows"
_BY_SOURCE: Final = (HIT, "recall@100", "recall@300", "ndcg@10")
_BY_QUESTION: Final = (HIT, "recall@100", "ndcg@10")


def retrieval_table(retrieval: Mapping[str, Any]) -> Table:
    """Figures of each source, the union and the whole path, over all questions."""
    rows = [
        (name, *(_figure(measured, metric) for metric in _BY_SOURCE))
        for group in ("sources", "exposure", "path")
        for name, measured in retrieval.get(group, {}).items()
    ]
    title = f"Retrieval of {retrieval['targets']:,} engaged items"
    return plain_table(("retrieved by", *_BY_SOURCE), rows, title=title, right=_BY_SOURCE)


def print_rehearsal(console: Console, report: Mapping[str, Any]) -> None:
    """Prints the figures of a rehearsal, those of the replay of its rows among them, and how it went."""
    questions = {
        name: measured | {"lists": measured["lists"] | _replayed(report["replay"]["questions"][name])}
        for name, measured in report["questions"].items()
    }
    print_questions(console, {"questions": questions, "seen_before": report["seen"]})
    live, speed, took_s = report["live"], report["speed"], report["seconds"]["all"]
    console.print(
        f"{live['rows']:,} rows in {took_s:,.0f} s, {live['rows in a list']:,} in a served list; event "
        f"time passed {speed['reached']:,.0f} times as fast as the machine's (at most {speed['most']:,.0f})",
        soft_wrap=True,
        highlight=False,
    )


def _replayed(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {} if measured["ours"] is None else {REPLAY: measured["ours"]}


def print_questions(console: Console, retrieval: Mapping[str, Any]) -> None:
    """Prints a table for each question, best lists first, and how this system compares."""
    questions = retrieval["questions"]
    for question in (NEXT, FIRST):
        if measured := questions[question]["ours"]:
            console.print(_question_table(question, measured, questions[question]["lists"]))
    lines = [*(_sentence(each, questions[each]) for each in (NEXT, FIRST)), _new_viewers(questions[NEW])]
    if is_behind(retrieval):
        lines.append(
            "a simple list is ahead: learn from more rows (--learn), compare features on the same rows "
            "(docs/how-to/features.md), and rehearse before you connect anything (recsys rehearse)"
        )
    for name, shown in retrieval.get("exposure", {}).items():
        lines.append(f"by what was {name}: {HIT} {_figure(shown, HIT)}, {shown['cases']:,} cases")
    if count := retrieval["seen_before"]:
        lines.append(f"not asked: {count:,} items that the viewer had seen")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _question_table(question: str, ours: Mapping[str, Any], lists: Mapping[str, Any]) -> Table:
    measured = {OURS: ours, **lists}  # of equal ones this system first
    best_first = sorted(measured, key=lambda name: -(measured[name][HIT] or 0.0))
    rows = [(name, *(_figure(measured[name], metric) for metric in _BY_QUESTION)) for name in best_first]
    title = f"{QUESTIONS[question].capitalize()}: {ours['cases']:,} cases"
    return plain_table(("by", *_BY_QUESTION), rows, title=title, right=_BY_QUESTION)


def _sentence(question: str, measured: Mapping[str, Any]) -> str:
    name, cases = QUESTIONS[question], f"{measured['cases']:,} cases"
    verdict = measured["verdict"]
    if verdict["verdict"] is None:
        return f"{name}: –, {cases}"
    by = plus_minus(verdict["difference"], *verdict["interval"])
    return f"{name}: {verdict['verdict']} {verdict['best']} by {by} in {verdict['metric']}, {cases}"


def _new_viewers(measured: Mapping[str, Any]) -> str:
    line = f"{QUESTIONS[NEW]}: {measured['cases']:,} cases"
    if measured["verdict"]["verdict"] is None:
        return line
    best = measured["verdict"]["best"]
    ours, other = (_figure(x, HIT) for x in (measured["ours"], measured["lists"][best]))
    return f"{line}, {HIT} {ours}, {best} {other}"


def _figure(measured: Mapping[str, Any], metric: str) -> str:
    """A figure with half the width of its interval."""
    if measured.get(metric) is None:
        return "–"
    return f"{measured[metric]:.3f}{_half_width(*measured['intervals'][metric])}"


def plus_minus(difference: float, low: float | None, high: float | None) -> str:
    """A difference with its sign and half the width of its interval."""
    return f"{difference:+.3f}{_half_width(low, high)}"


def _half_width(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ±{(high - low) / 2:.3f}"
