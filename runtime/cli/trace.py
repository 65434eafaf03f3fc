"""``recsys trace REQUEST_ID``: the life of one swipe as a timeline, from the log of a running or a stopped
system. It changes nothing, and needs no tracing."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from replay.request_timeline import Moment, RequestTimeline, TimelineReader
from runtime.supervision import launch_plan as plans


def trace(
    request_id: Annotated[
        str, typer.Argument(help="The request's id, as in the answer; or --latest.")
    ] = "",
    latest: Annotated[
        bool, typer.Option("--latest", help="Of the newest request that was learned from.")
    ] = False,
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
    user: Annotated[
        str | None, typer.Option(help="Whose request: then one partition is looked through.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Tells what became of a list: engagements, examples, steps, deltas, and the first answer that
    knew them. Exit status 2: it isn't on the log."""
    from recsys.log.protocol import LogLost, LogUnavailable

    if bool(request_id) == latest:
        raise typer.BadParameter("give a request's id or --latest, and not both")
    try:
        life = life_of(request_id, state, user)
    except (FileNotFoundError, KeyError, LogLost, LogUnavailable) as error:
        said = error.args[0] if isinstance(error, KeyError) else error
        typer.secho(f"recsys: {said}", fg="red", err=True)
        raise typer.Exit(2) from error
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(as_values(life)), indent=2))
    else:
        for line in drawn(life):
            typer.echo(line)


def life_of(request_id: str, state: Path, user: str | None = None) -> RequestTimeline:
    """``request_id`` empty: of the newest that was learned from."""
    from recsys.process.open_log import open_log

    config, _ = plans.read(state)
    config = replace(config, state=str(state.resolve()))  # the folder may have been moved
    log = open_log(config)
    try:
        finder = TimelineReader(log, config.join)
        return finder.life(request_id or finder.latest(), user)
    finally:
        log.close()


def as_values(life: RequestTimeline) -> dict[str, Any]:
    """For programs. ``after_ms``: since the impression."""
    moments = [
        asdict(moment)
        | {"place": dict(zip(("topic", "partition", "offset"), moment.place, strict=True))}
        | {"after_ms": moment.at_ms - _began_ms(life)}
        for moment in life.moments
    ]
    from recsys.observability.spans import trace_number

    trace_id = f"{trace_number(life.request_id):032x}"
    return {
        "request_id": life.request_id,
        "trace_id": trace_id,
        "moments": moments,
        "missing": life.missing,
    }


def drawn(life: RequestTimeline) -> list[str]:
    """For people."""
    began = datetime.fromtimestamp(_began_ms(life) / 1000, UTC)
    rows = [("after", "what", "where", "")]
    rows += [
        (_after(moment.at_ms - _began_ms(life)), moment.what, _place(moment), _about(moment))
        for moment in life.moments
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"request {life.request_id}, answered {began:%Y-%m-%d %H:%M:%S.%f} UTC"]
    for after, what, where, about in rows:
        line = f"{after:>{widths[0]}}  {what:<{widths[1]}}  {where:<{widths[2]}}  {about}"
        lines.append(line.rstrip())
    return lines + [f"missing: {why}" for why in life.missing]


def _began_ms(life: RequestTimeline) -> int:
    return life.of("impression")[0].at_ms


def _after(ms: int) -> str:
    return f"{ms / 1000:+.3f} s" if abs(ms) < 600_000 else f"{ms / 60_000:+.1f} min"


def _place(moment: Moment) -> str:
    topic, partition, offset = moment.place
    return f"{topic}/{partition} @{offset}"


def _about(moment: Moment) -> str:
    its = moment.about
    version = f"{its['line']}/{its['epoch']} step {its['step']}" if "line" in its else ""
    if moment.what == "impression":
        degraded = f", without {', '.join(its['degraded'])}" if its["degraded"] else ""
        return f"{len(its['items'])} items by {version or 'nobody who says'}{degraded}"
    if moment.what == "engagement":
        watched = f", {its['watch_ms'] / 1000:g} s" if "watch_ms" in its else ""
        rank = "" if its["rank"] is None else f", rank {its['rank'] + 1}"
        return f"{its['kind']} of {its['item_id']}{rank}{watched}"
    if moment.what in ("example", "correction"):
        return f"{its['item_id']}, labels {its['labels']}"
    if moment.what == "step":
        return f"{version}: {its['own']} of its {its['examples']} examples"
    if moment.what == "delta":
        return f"{version}, part {its['part'] + 1} of {its['parts']}, {its['bytes']} bytes"
    return (
        f"first answer of step {its['of_step']} or later: request {its['request_id']} by {version}"
    )
