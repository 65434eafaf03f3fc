"""Work of ``recsys demo``: a system that runs until Ctrl-C, or its unattended check."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
from rich.console import Console

from examples.short_video.demo_system import NotReady, check_lost, running_system
from recsys.config.loader import load
from recsys.config.system_config import Config, override
from runtime.cli.common import fail, from_checkout
from runtime.supervision import launch_plan, run_file
from runtime.supervision.api_client import ApiConnection
from runtime.supervision.processes import alive
from runtime.supervision.ray_environment import dashboard_address

SETTINGS: Final = Path(__file__).with_name("demo.yaml")
_LINE_S: Final = 10.0


def run(state: Path | None, log: str, viewers: float, limit: int, promotion: bool) -> int:
    """Runs the demo until Ctrl-C, or until the system can't go on; returns the exit status."""
    console = Console()
    settings = _settings(state or Path("state-promotion" if promotion else "state"), log)
    if promotion:
        from examples.short_video import demo_data, promotion_demo

        os.environ.setdefault(demo_data.CHOICE, demo_data.WORLD)
        viewers = max(viewers, promotion_demo.VIEWERS)
        settings = override(settings, promotion_demo.SETTINGS)
    try:
        with running_system(settings, viewers, limit, console, control_room=True):
            config, _ = launch_plan.read(settings.state)
            _print_addresses(config, console)
            if promotion:
                promotion_demo.narrate(config, console)
            _monitor(config, console)
    except KeyboardInterrupt:
        return 0
    except (NotReady, ValueError) as error:
        fail(error)
        return 1


def _settings(state: Path, log: str) -> Config:
    settings = load(str(SETTINGS))
    return replace(
        settings, state=str(state.resolve()), log=replace(settings.log, url=launch_plan.log_url(log))
    )


def _print_addresses(config: Config, console: Console) -> None:
    url, room = launch_plan.public_url(config), launch_plan.control_room_url(config)
    lines = [f"\nfeed       {url}", f"API docs   {url}/docs"]
    lines += [f"control    {room}"] if room else []
    lines += [f"dashboard  {dashboard_address(config)}"] if config.serve.dashboard else []
    lines.append("\nSwipe in the feed and watch it change. Ctrl-C ends everything.\n")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _monitor(config: Config, console: Console) -> NoReturn:
    """Prints a line every ten seconds, until Ctrl-C or the system's end."""
    while True:
        time.sleep(_LINE_S)
        running = run_file.read(config.state)
        if running is None or not alive(running.supervisor):
            raise NotReady("the system has ended; see `recsys status`")
        check_lost(running.lost)
        if status := ApiConnection(config).json_object("/v1/status"):
            console.print(_status_line(status), highlight=False, soft_wrap=True)


def _status_line(status: dict[str, Any]) -> str:
    version = status.get("version") or {}

    def ms(name: str) -> str:
        value = status.get(name)
        return "–" if value is None else f"{value:,.0f} ms"

    return (
        f"{time.strftime('%H:%M:%S')}  model {version.get('line')}/{version.get('epoch')}/"
        f"{version.get('step')}  {status.get('events_per_s', 0):,.0f} events/s  click → session "
        f"{ms('click_to_session_p95_ms')}  click → model {ms('click_to_served_p95_ms')} (p95)"
    )


def check(state: Path | None, log: str, limit: int, json: Path | None) -> int:
    """Prints the verdict; returns 0 where every bar is met. All other output goes to stderr."""
    run_check = from_checkout("benchmarks.demo_check.check_run:run_check")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="recsys-check-")) if state is None else state
    console = Console(stderr=True)
    settings = _settings(folder, log)
    # Unattended, so any free port will do.
    settings = replace(settings, serve=replace(settings.serve, port=0, dashboard_port=0))
    with contextlib.redirect_stdout(sys.stderr):
        verdict = run_check(settings, limit, console, began)
    text = msgspec.json.format(msgspec.json.encode(verdict), indent=2)
    print(text.decode(), flush=True)
    if json is not None:
        json.write_bytes(text + b"\n")
    if state is None and verdict.ok:
        shutil.rmtree(folder, ignore_errors=True)
    elif not verdict.ok:
        console.print(f"the state folder is kept: {folder}", highlight=False)
    return 0 if verdict.ok else 1
