"""``recsys explain REQUEST_ID``: why a past answer was what it was, and whether it can be made again.

It reads what stands in the state folder, of a running or a stopped system, and changes nothing.
"""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from experiments.assignment.policy import Policy
from recsys.events.event_types import ServedItem
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session
from replay.answer_check import DIFFERENT, EQUAL, GONE, AnswerCheck, AnswerChecker
from runtime.supervision import launch_plan as plans
from serving.request import AnswerItem

_STATUS: Final = {EQUAL: 0, DIFFERENT: 1}
_VERDICTS: Final = {
    EQUAL: "made again, equal to the last bit",
    DIFFERENT: "made again, and DIFFERENT",
    GONE: "can't be made again",
}
_FEW: Final = 5  # topics and items of the session


def explain(
    request_id: Annotated[str, typer.Argument(help="The request's id, as in the answer.")],
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
    user: Annotated[
        str | None, typer.Option(help="Whose request: then one partition is looked through.")
    ] = None,
    json: Annotated[bool, typer.Option(help="As JSON, for programs.")] = False,
) -> None:
    """Makes an answer again from log and snapshots. Exit status 0: equal to the last bit; 1: something
    differs; 2: it can't be made again, and why."""
    from recsys.log.protocol import LogLost, LogUnavailable

    try:
        found, shown = explained(request_id, state, user)
    except (FileNotFoundError, LogLost, LogUnavailable) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))
    else:
        for line in drawn(shown):
            typer.echo(line)
    raise typer.Exit(_STATUS.get(found.verdict, 2))


def explained(request_id: str, state: Path, user: str | None) -> tuple[AnswerCheck, dict[str, Any]]:
    """What was found, and as plain values."""
    import torch

    from recsys.features.feature_set_file import feature_set
    from recsys.process.open_log import open_log

    config, _ = plans.read(state)
    config = replace(config, state=str(state.resolve()))  # the folder may have been moved
    torch.set_num_threads(1)  # as a replica has it: sums must not depend on the number of cores
    log = open_log(config)
    try:
        explainer = AnswerChecker(log, config, feature_set(config))
        found = explainer.explain(request_id, user)
        return found, as_values(found, explainer.catalogue)
    finally:
        log.close()


def as_values(found: AnswerCheck, catalogue: Catalogue) -> dict[str, Any]:
    """What was found as plain values, for JSON and for people."""
    shown: dict[str, Any] = {"request_id": found.request_id, "verdict": found.verdict}
    shown |= {"why": found.why} if found.why else {}
    impression, answer = found.impression, found.answer
    if impression is None:
        return shown
    shown |= {
        "user_id": impression.user_id,
        "time_ms": impression.time_ms,
        "place": found.place and dict(zip(("partition", "offset"), found.place, strict=True)),
        "stamp": impression.stamp,
        "asked": impression.asked,
        "degraded": impression.degraded,
        "differences": [vars(its) for its in found.differences],
    }
    if found.policy is not None:
        shown["policy"] = found.policy.config
    if found.session is not None and found.policy is not None:
        shown["session"] = _brief(found.session, catalogue, found.policy)
    if answer is not None and answer.ranked is not None:
        sources = Counter(name for names in answer.ranked.sources for name in names)
        shown["candidates"] = {"ranked": len(answer.ranked.indices), "by_source": dict(sources)}
        shown["removed"] = answer.removed
    if found.scores is not None:
        shown["scores_from_logged_features"] = dict(zip(("equal", "of"), found.scores, strict=True))
    again = {str(item.item_id): item for item in answer.items} if answer else {}
    shown["items"] = [_item(its, again.get(str(its.item_id))) for its in impression.items]
    return shown


def _brief(session: Session, catalogue: Catalogue, policy: Policy) -> dict[str, Any]:
    from serving.sessions.session_view import view_of

    view = view_of(session, catalogue, policy.config.weights)
    view["topics"], view["recent"] = view["topics"][:_FEW], view["recent"][:_FEW]
    return view | {"seen": len(session.seen), "hidden": len(session.hidden)}


def _item(served: ServedItem, again: AnswerItem | None) -> dict[str, Any]:
    """As it was logged; predictions and reasons as they were found again."""
    shown: dict[str, Any] = msgspec.to_builtins(served)
    if again is not None:
        shown |= {"predictions": again.predictions, "reasons": again.reasons}
    return shown


def drawn(shown: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"request {shown['request_id']}: {_VERDICTS[shown['verdict']]}"]
    lines += [f"  {shown['why']}"] if "why" in shown else []
    if "stamp" not in shown:
        return lines
    for its in shown["differences"]:
        lines.append(f"  {its['field']}: logged {its['logged']!r}, now {its['again']!r}")
    if "scores_from_logged_features" in shown:
        its = shown["scores_from_logged_features"]
        lines.append(
            f"  {its['equal']} of {its['of']} scores follow from the logged features and the version's rows"
        )
    moment = datetime.fromtimestamp(shown["time_ms"] / 1000, UTC)
    lines.append(f"for {shown['user_id']} at {moment:%Y-%m-%d %H:%M:%S.%f} UTC")
    lines.append("stamp       " + _pairs(msgspec.to_builtins(shown["stamp"])))
    for name in ("asked", "policy", "removed", "candidates"):
        if shown.get(name):
            lines.append(f"{name:<12}" + _pairs(msgspec.to_builtins(shown[name])))
    if shown["degraded"]:
        lines.append("degraded    " + ", ".join(shown["degraded"]))
    if "session" in shown:
        lines.append("session     " + _session(shown["session"]))
    return lines + [line for rank, its in enumerate(shown["items"]) for line in _lines(rank, its)]


def _session(its: dict[str, Any]) -> str:
    liked = ", ".join(f"{topic['tag']} {topic['weight']:+.2f}" for topic in its["topics"])
    said = f"{its['events']} engagements, {its['seen']} items seen, {its['hidden']} hidden"
    return f"{said}; topics: {liked or 'none yet'}"


def _lines(rank: int, its: dict[str, Any]) -> list[str]:
    score = "no score" if its["score"] is None else f"score {its['score']:.6f}"
    sources = ", ".join(its["sources"])
    lines = [
        f"{rank + 1:>3} {its['item_id']}  {score}, propensity {its['propensity']:.6f}, by {sources}"
    ]
    if its.get("predictions"):
        lines.append("      " + " ".join(f"{k} {v:.4f}" for k, v in its["predictions"].items()))
    for why in its.get("reasons") or ():
        share = f"liked {why['liked']:.0%} of {why['met']:g}"
        lines.append(f"      {why['feature']} {why['value']}: {share}")
    return lines


def _pairs(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"({_pairs(value)})" if isinstance(value, dict) else str(value)

    return " ".join(
        f"{name}={text(value)}" for name, value in values.items() if value not in ({}, [])
    )
