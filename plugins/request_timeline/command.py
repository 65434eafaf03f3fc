"""``recsys trace``: the plug-in command."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from plugins.request_timeline.timeline import Moment, RequestTimeline, TimelineReader
from recsys.observability.spans import trace_number
from runtime.cli.common import JsonOption, RequestUserOption, StateOption, exit_on, show
from runtime.supervision.launch_plan import open_system


def read_timeline(request_id: str, state: Path, user: str | None = None) -> RequestTimeline:
    """Reads a request's timeline; an empty ``request_id`` means the newest one that was learned."""
    with open_system(state) as (config, log):
        reader = TimelineReader(log, config.join)
        return reader.life(request_id or reader.latest(), user)


def timeline_values(timeline: RequestTimeline) -> dict[str, Any]:
    """Converts a timeline to plain values. ``after_ms``: since the impression."""
    moments = [
        asdict(moment)
        | {"place": dict(zip(("topic", "partition", "offset"), moment.place, strict=True))}
        | {"after_ms": moment.at_ms - _began_ms(timeline)}
        for moment in timeline.moments
    ]
    trace_id = f"{trace_number(timeline.request_id):032x}"
    return {
        "request_id": timeline.request_id,
        "trace_id": trace_id,
        "moments": moments,
        "missing": timeline.missing,
    }


def timeline_lines(timeline: RequestTimeline) -> list[str]:
    """Formats a timeline as aligned lines."""
    began = datetime.fromtimestamp(_began_ms(timeline) / 1000, UTC)
    rows = [("after", "what", "where", "")]
    for moment in timeline.moments:
        after = _after(moment.at_ms - _began_ms(timeline))
        rows.append((after, moment.what, _place(moment), _about(moment)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"request {timeline.request_id}, answered {began:%Y-%m-%d %H:%M:%S.%f} UTC"]
    for after, what, where, about in rows:
        line = f"{after:>{widths[0]}}  {what:<{widths[1]}}  {where:<{widths[2]}}  {about}"
        lines.append(line.rstrip())
    return lines + [f"missing: {why}" for why in timeline.missing]


def _began_ms(timeline: RequestTimeline) -> int:
    return timeline.of("impression")[0].at_ms


def _after(ms: int) -> str:
    return f"{ms / 1000:+.3f} s" if abs(ms) < 600_000 else f"{ms / 60_000:+.1f} min"


def _place(moment: Moment) -> str:
    topic, partition, offset = moment.place
    return f"{topic}/{partition} @{offset}"


def _about(moment: Moment) -> str:
    about = moment.about
    version = f"{about['line']}/{about['epoch']} step {about['step']}" if "line" in about else ""
    if moment.what == "impression":
        degraded = f", without {', '.join(about['degraded'])}" if about["degraded"] else ""
        return f"{len(about['items'])} items by {version or 'an unknown version'}{degraded}"
    if moment.what == "engagement":
        watched = f", {about['watch_ms'] / 1000:g} s" if "watch_ms" in about else ""
        rank = "" if about["rank"] is None else f", rank {about['rank'] + 1}"
        return f"{about['kind']} of {about['item_id']}{rank}{watched}"
    if moment.what in ("example", "correction"):
        return f"{about['item_id']}, labels {about['labels']}"
    if moment.what == "step":
        return f"{version}: {about['own']} of {about['examples']} examples are of this request"
    if moment.what == "delta":
        return f"{version}, part {about['part'] + 1} of {about['parts']}, {about['bytes']} bytes"
    return f"first answer of step {about['of_step']} or later: request {about['request_id']} by {version}"


def trace(
    request_id: Annotated[str, Argument(help="The request's id; or --latest.")] = "",
    latest: Annotated[bool, Option("--latest", help="Newest request that was learned.")] = False,
    state: StateOption = Path("state"),
    user: RequestUserOption = None,
    json: JsonOption = None,
) -> None:
    """Traces a list: its engagements, examples, steps, deltas, and the first answer by the new model.

    Works on a running or a stopped system, and needs no tracing. Exit status 2: it isn't on the log.
    """
    if bool(request_id) == latest:
        raise typer.BadParameter("give a request's id or --latest, and not both")
    with exit_on():
        timeline = read_timeline(request_id, state, user)
    show(timeline_values(timeline), json, lambda _: timeline_lines(timeline))
