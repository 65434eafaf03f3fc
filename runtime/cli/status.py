"""``recsys status``: how each part is, how far behind, and how fresh what it serves."""

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from recsys.config.system_config import Config
from runtime.parts.serve import AWAY
from runtime.reports.status_table import duration, parts_table
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.system_status import Status, gather


def status(
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
    json: Annotated[bool, typer.Option(help="As JSON, for programs.")] = False,
) -> None:
    """Says how each part is, and how far behind. Exit status 1 where not everything is ready."""
    found = gather(state)
    console = Console()
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    elif (running := runs.read(state)) is None:
        console.print(f"nothing was started in {state.resolve()}", highlight=False)
    else:
        console.print(_drawn(found, running, plans.read(state)[0]))
    raise typer.Exit(0 if found.running and found.ready else 1)


def _drawn(found: Status, running: runs.Running, config: Config) -> Group:
    flow = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "per second", "behind"):
        flow.add_column(column)
    for part in found.parts:
        rates = " ".join(f"{name} {rate:,.1f}" for name, rate in sorted(part.rates.items()))
        lag = " ".join(f"{topic} {count:,}" for topic, count in sorted(part.lag.items()))
        if rates or lag or part.state == "stalled":
            flow.add_row(part.name, rates, lag + (" STALLED" if part.state == "stalled" else ""))
    facts = [
        ("model", f"cut {found.cut or '–'}, served {found.served or '–'}"),
        ("events/s", _number(found.events_per_s)),
        ("examples/s", _number(found.examples_per_s)),
        ("click → session", _milliseconds(found.click_to_session_p95_ms)),
        ("click → served", _milliseconds(found.click_to_served_p95_ms)),
        ("dead letters", _number(found.dead_letters)),
    ]
    facts += [("drift", said) for part in found.parts if (said := _drift(part.gauges))]
    lines = [Text(f"{name:<16} {value}") for name, value in facts]
    for name, why in found.lost.items():
        lines.insert(0, Text(f"LOST: {name}: {why}", style="red"))
    if away := sum(part.gauges.get(AWAY, 0) for part in found.parts):
        said = f"retrieval: {away:.0f} shards don't run, lists go without their items"
        lines.insert(0, Text(said, style="red"))
    if not found.running:
        ago = duration(int(time.time() * 1000) - running.time_ms)
        lines.insert(0, Text(f"not running (last seen {ago} ago)", style="yellow"))
        orphaned = [part.name for part in found.parts if part.state == "orphaned"]
        if orphaned:
            said = (
                f"left without a supervisor: {', '.join(orphaned)}; `recsys up` or `down` ends them"
            )
            lines.insert(1, Text(said, style="red"))
        return Group(*lines)
    return Group(parts_table(running, config), Text(""), flow, Text(""), *lines)


def _drift(gauges: dict[str, float]) -> str:
    """What the director says of drift; empty where a part says nothing of it."""
    if "publish_every" not in gauges:
        return ""
    text = (
        f"{gauges.get('alarms', 0):.0f} alarms, learning rates × {gauges.get('rate', 1):g}, "
        f"rows go out each {gauges['publish_every']:.0f} steps"
    )
    return text + ", the offline command runs" * bool(gauges.get("offline_runs"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}".removesuffix(".0")


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms (p95)"
