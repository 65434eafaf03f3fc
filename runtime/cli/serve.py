"""``recsys serve``: the whole system in this process, on the state folder of ``recsys up``."""

import os
import signal
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from typer import Argument

from recsys.app.kept_definition import with_definition
from recsys.free_ports import PortTaken
from recsys.log.protocol import LogLost
from recsys.observability.log_lines import log_to_file
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.part_process import run_folder
from runtime.cli.common import ConfigOption, StateOverride, exit_on
from runtime.reports.status_table import exposure_warning
from runtime.supervision import launch_plan
from runtime.supervision.run_file import AlreadyRuns

_UP_ADDS = (
    "`recsys up` on this folder adds replicas, shadow and canary on other cores, and restarts without a pause"
)


def serve(
    app: Annotated[Path | None, Argument(help="Definition of the app; kept in the state folder.")] = None,
    config: ConfigOption = "laptop",
    state: StateOverride = None,
) -> None:
    """Runs the whole system in this process until Ctrl-C: the API, the feed page, the control room."""
    os.umask(0o077)  # files may hold ids of users
    with exit_on(ValueError, AlreadyRuns, PermissionError, PortTaken, LogLost):
        from runtime.one_process.http_server import HttpServer
        from runtime.one_process.one_process import OneProcess, in_one_process

        settings, definition, file = with_definition(config, state, app)
        settings, plan = launch_plan.resolve(in_one_process(settings), control_room=True)
        plan = msgspec.structs.replace(plan, embedded=[])
        log_to_file("serve", run_folder(settings.state) / "serve.log", settings.logging.format)
        system = OneProcess(settings, definition, file, plan=plan)
    if warning := exposure_warning(settings):
        typer.echo(f"recsys: {warning}", err=True)
    server = HttpServer(system)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    tune_for_latency()
    typer.echo(f"feed          {launch_plan.public_url(settings)}")
    typer.echo(f"control room  {launch_plan.control_room_url(settings)}")
    typer.echo(_UP_ADDS)
    try:
        server.run()
    finally:
        system.close()
