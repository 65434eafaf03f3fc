"""``recsys demo``: everything at once: data, all parts, a warm-up, simulated viewers, the feed.

``--check`` does the same unattended, measures it as a viewer would, prints one JSON object and ends.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from recsys.config.system_config import Config
from runtime.demo import demo_data
from runtime.demo.demo_system import NotReady, _check_lost, started
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.processes import alive
from runtime.supervision.system_status import server_status

VIEWERS: Final = 1.0  # lists a second
_LINE_S: Final = 10.0


def demo(
    check: Annotated[
        bool, typer.Option(help="Unattended: measure, print one JSON object, and end.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="The state folder. --check: a new one, if left out.")
    ] = None,
    log: Annotated[
        str, typer.Option(help="sqlite, kafka (a broker of our own), or kafka://host:port.")
    ] = "sqlite",
    viewers: Annotated[
        float, typer.Option(help="Lists a second that simulated viewers ask for.")
    ] = VIEWERS,
    limit: Annotated[
        int, typer.Option(help="Impressions of a data set to warm up with, the last ones.")
    ] = demo_data.LIMIT,
    json: Annotated[Path | None, typer.Option(help="Writes what --check prints here too.")] = None,
) -> None:
    """Starts everything, warms it up with data, and shows it; Ctrl-C ends what it started."""
    signal.signal(signal.SIGTERM, _interrupt)
    if check:
        raise typer.Exit(_check(state, log, limit, json))
    settings = _settings(state or Path("state"), log)
    console = Console()
    try:
        with started(settings, viewers, limit, console, control_room=True):
            config, _ = plans.read(settings.state)
            _say_where(config, console)
            _stay(config, console)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except (NotReady, ValueError) as error:
        console.print(f"[red]recsys:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _settings(state: Path, log: str) -> Config:
    from recsys.config.loader import load
    from runtime.cli.up import log_url

    settings = load("laptop")
    return replace(
        settings,
        state=str(state.resolve()),
        log=replace(settings.log, url=log_url(log)),
    )


def _say_where(config: Config, console: Console) -> None:
    url, room = plans.feed_url(config), plans.control_room_url(config)
    dashboard = (
        f"dashboard  http://127.0.0.1:{config.serve.dashboard_port}"
        f"  (Ray's; token in {config.state}/run/ray.token)\n"
    )
    console.print(
        f"\nfeed       {url}\nAPI docs   {url}/docs\n"
        + (f"control    {room}\n" if room else "")
        + f"{dashboard if config.serve.dashboard else ''}\n"
        "Swipe in the feed and watch it change. Ctrl-C ends everything.\n",
        highlight=False,
        soft_wrap=True,
    )


def _stay(config: Config, console: Console) -> None:
    """A line each ten seconds, until Ctrl-C or the system's end."""
    while True:
        time.sleep(_LINE_S)
        running = runs.read(config.state)
        if running is None or not alive(running.supervisor):
            raise NotReady("the system has ended; see `recsys status`")
        _check_lost(running.lost)
        said = server_status(config)
        if said:
            console.print(_line(said), highlight=False, soft_wrap=True)


def _line(said: dict[str, Any]) -> str:
    version = said.get("version") or {}

    def ms(name: str) -> str:
        value = said.get(name)
        return "–" if value is None else f"{value:,.0f} ms"

    return (
        f"{time.strftime('%H:%M:%S')}  model {version.get('line')}/{version.get('epoch')}/"
        f"{version.get('step')}  {said.get('events_per_s', 0):,.0f} events/s  click → session "
        f"{ms('click_to_session_p95_ms')}  click → model {ms('click_to_served_p95_ms')} (p95)"
    )


def _check(state: Path | None, log: str, limit: int, json: Path | None) -> int:
    """Prints the verdict; 0 where every bar is kept. Everything else goes to stderr."""
    import msgspec

    from runtime.demo.check_run import trial

    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="recsys-check-")) if state is None else state
    console = Console(stderr=True)
    settings = _settings(folder, log)
    # Unattended, so no port has to be known beforehand, and none that is in use stops it.
    settings = replace(settings, serve=replace(settings.serve, port=0, dashboard_port=0))
    with contextlib.redirect_stdout(sys.stderr):
        verdict = trial(settings, limit, console, began)
    text = msgspec.json.format(msgspec.json.encode(verdict), indent=2)
    print(text.decode(), flush=True)
    if json is not None:
        json.write_bytes(text + b"\n")
    if state is None and verdict.ok:
        shutil.rmtree(folder, ignore_errors=True)
    elif not verdict.ok:
        console.print(f"the state folder is kept: {folder}", highlight=False)
    return 0 if verdict.ok else 1
