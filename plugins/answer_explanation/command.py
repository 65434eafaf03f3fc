"""``recsys explain``: a past answer, from log and snapshots alone."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import torch
import typer
from typer import Argument

from experiments.assignment.policy import Policy
from plugins.answer_explanation.answer_check import DIFFERENT, EQUAL, GONE, AnswerCheck, AnswerChecker
from recsys.events.event_types import ServedItem
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from runtime.cli.common import JsonOption, RequestUserOption, StateOption, exit_on, show
from runtime.supervision.launch_plan import open_system
from serving.request import AnswerItem
from serving.sessions.session_view import view_of

_VERDICTS: Final = {
    EQUAL: "recomputed, equal to the last bit",
    DIFFERENT: "recomputed, and DIFFERENT",
    GONE: "can't be recomputed",
}
_MAX_TOPICS: Final = 5  # also of the session's items


def check_answer(request_id: str, state: Path, user: str | None) -> tuple[str, dict[str, Any]]:
    """Recomputes an answer; returns the verdict, and the explanation as plain values."""
    torch.set_num_threads(1)  # as in a replica: sums must not depend on the number of cores
    with open_system(state) as (config, log):
        checker = AnswerChecker(log, config, feature_set(config))
        check = checker.explain(request_id, user)
        return check.verdict, explanation_values(check, checker.catalogue)


def explanation_values(check: AnswerCheck, catalogue: Catalogue) -> dict[str, Any]:
    """Converts a check to plain values."""
    values: dict[str, Any] = {"request_id": check.request_id, "verdict": check.verdict}
    values |= {"why": check.why} if check.why else {}
    impression, answer = check.impression, check.answer
    if impression is None:
        return values
    values |= {
        "user_id": impression.user_id,
        "time_ms": impression.time_ms,
        "place": check.place and dict(zip(("partition", "offset"), check.place, strict=True)),
        "stamp": impression.stamp,
        "inputs": impression.inputs,
        "degraded": impression.degraded,
        "differences": [vars(difference) for difference in check.differences],
    }
    if check.policy is not None:
        values["policy"] = check.policy.config
    if check.session is not None and check.policy is not None:
        values["session"] = _session_values(check.session, catalogue, check.policy)
    if answer is not None and answer.candidates is not None:
        ranked = answer.candidates
        positions = range(len(ranked.indices_N))
        sources = Counter(name for position in positions for name in ranked.sources_of(position))
        values["candidates"] = {"ranked": len(positions), "by_source": dict(sources)}
        values["removed"] = answer.removed
    if check.scores is not None:
        scores = dict(zip(("equal", "of"), check.scores, strict=True))
        values["scores_from_logged_features"] = scores
    recomputed = {str(item.item_id): item for item in answer.items} if answer else {}
    again = (recomputed.get(str(item.item_id)) for item in impression.items)
    values["items"] = list(map(_item_values, impression.items, again))
    return values


def _session_values(session: Session, catalogue: Catalogue, policy: Policy) -> dict[str, Any]:
    view = view_of(session, catalogue, policy.config.weights)
    view["topics"], view["recent"] = view["topics"][:_MAX_TOPICS], view["recent"][:_MAX_TOPICS]
    return view | {"seen": len(session.seen), "hidden": len(session.hidden)}


def _item_values(served: ServedItem, recomputed: AnswerItem | None) -> dict[str, Any]:
    """The logged item, with recomputed predictions and reasons."""
    values: dict[str, Any] = msgspec.to_builtins(served)
    if recomputed is not None:
        values |= {"predictions": recomputed.predictions, "reasons": recomputed.reasons}
    return values


def explanation_lines(values: dict[str, Any]) -> list[str]:
    """Formats the values as lines of text."""
    lines = [f"request {values['request_id']}: {_VERDICTS[values['verdict']]}"]
    lines += [f"  {values['why']}"] if "why" in values else []
    if "stamp" not in values:
        return lines
    for difference in values["differences"]:
        lines.append(f"  {difference['field']}: logged {difference['logged']!r}, now {difference['again']!r}")
    if scores := values.get("scores_from_logged_features"):
        lines.append(
            f"  {scores['equal']} of {scores['of']} scores follow from logged features and the version's rows"
        )
    moment = datetime.fromtimestamp(values["time_ms"] / 1000, UTC)
    lines.append(f"for {values['user_id']} at {moment:%Y-%m-%d %H:%M:%S.%f} UTC")
    lines.append("stamp       " + _pairs(msgspec.to_builtins(values["stamp"])))
    for name in ("inputs", "policy", "removed", "candidates"):
        if values.get(name):
            lines.append(f"{name:<12}" + _pairs(msgspec.to_builtins(values[name])))
    if values["degraded"]:
        lines.append("degraded    " + ", ".join(values["degraded"]))
    if session := values.get("session"):
        liked = ", ".join(f"{topic['tag']} {topic['weight']:+.2f}" for topic in session["topics"])
        lines.append(
            f"session     {session['events']} engagements, {session['seen']} items seen, "
            f"{session['hidden']} hidden; topics: {liked or 'none yet'}"
        )
    return lines + [line for rank, item in enumerate(values["items"]) for line in _item_lines(rank, item)]


def _item_lines(rank: int, item: dict[str, Any]) -> list[str]:
    score = "no score" if item["score"] is None else f"score {item['score']:.6f}"
    sources = ", ".join(item["sources"])
    lines = [f"{rank + 1:>3} {item['item_id']}  {score}, propensity {item['propensity']:.6f}, by {sources}"]
    if item.get("predictions"):
        lines.append("      " + " ".join(f"{k} {v:.4f}" for k, v in item["predictions"].items()))
    for reason in item.get("reasons") or ():
        effect = f"{reason['effect']:+.4f} of the score" if "effect" in reason else "no effect measured"
        met = f", liked {reason['liked']:.0%} of {reason['met']:g}" if "met" in reason else ""
        name = f"{reason['feature']} {reason.get('value', '')}".rstrip()
        lines.append(f"      {name}: {effect}{met}")
    return lines


def _pairs(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"({_pairs(value)})" if isinstance(value, dict) else str(value)

    return " ".join(f"{name}={text(value)}" for name, value in values.items() if value not in ({}, []))


_STATUS: Final = {EQUAL: 0, DIFFERENT: 1}


def explain(
    request_id: Annotated[str, Argument(help="The request's id, as in the answer.")],
    state: StateOption = Path("state"),
    user: RequestUserOption = None,
    json: JsonOption = None,
) -> None:
    """Recomputes an answer from log and snapshots; changes nothing.

    Exit status 0: equal to the last bit; 1: something differs; 2: it can't be recomputed, and why.
    """
    with exit_on():
        verdict, values = check_answer(request_id, state, user)
    show(values, json, explanation_lines)
    raise typer.Exit(_STATUS.get(verdict, 2))
