"""``recsys up``: starts all parts, supervises them, and stops what it started."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from typer import Option

from experiments.assignment.policy import Policies
from parameter_server.rpc.shard_tls import LOOPBACK, open_tls
from recsys import plugins
from recsys.app.app_file import APP_FILE, read_app
from recsys.app.definition import App
from recsys.app.kept_definition import is_kept, keep_definition, with_definition
from recsys.config.checks import check
from recsys.config.loader import ConfigError
from recsys.config.policy_config import check_plugins, check_rules, check_weights
from recsys.config.system_config import Config, digest
from recsys.events.field_schema import CATEGORICAL
from recsys.features.feature_set_file import feature_set
from recsys.free_ports import PortTaken
from recsys.observability.catching_up import said
from recsys.observability.log_lines import log_to_file
from recsys.process.clock_file import start_clock
from recsys.process.part_process import read_beat, run_folder
from runtime.cli.common import ConfigOption, StateOverride, exit_on, fail
from runtime.parts.haproxy_config import check_doors
from runtime.reports.status_table import exposure_warning, parts_table
from runtime.supervision import launch_plan, run_file
from runtime.supervision.launch_plan import Plan, log_url
from runtime.supervision.part_table import table
from runtime.supervision.processes import alive
from runtime.supervision.ray_environment import haproxy
from runtime.supervision.run_file import Running
from runtime.supervision.supervisor import Change
from runtime.supervision.supervisor_loop import Runner
from runtime.supervision.system_status import CATCHING_UP, gather

_READY_S: Final = 240.0  # of --detach without any progress of a part that isn't ready
_SAID_EVERY_S: Final = 10.0
_RELEASED_S: Final = 5.0  # for the processes of a killed system to be gone


def up(
    config: ConfigOption = "laptop",
    state: StateOverride = None,
    log: Annotated[
        str, Option(help="Event log: kafka starts an embedded broker; or kafka://host:port.")
    ] = "",
    detach: Annotated[bool, Option(help="Return when all parts are ready.")] = False,
    viewers: Annotated[float, Option(help="Simulated viewers' requests per second.")] = 0.0,
    only: Annotated[str, Option(help="Only these parts (a,b) and dependencies.")] = "",
    app: Annotated[Path | None, Option(help="Definition of the app; kept in the state folder.")] = None,
) -> None:
    """Starts and supervises all parts. Ctrl-C or `recsys down` stops the system."""
    with exit_on(ValueError):
        settings, definition, file = with_definition(config, state, app)
    if log:
        settings = replace(settings, log=replace(settings.log, url=log_url(log)))
    names = [name for name in only.split(",") if name]
    status = start(settings, detach=detach, viewers=viewers, only=names, app=definition, file=file)
    raise typer.Exit(status)


def start(
    config: Config, *, detach: bool = False, viewers: float = 0.0, only: list[str] | None = None,
    control_room: bool = False, app: App | None = None, file: Path | None = None,
) -> int:  # fmt: skip
    """Starts a configuration; returns the exit status.

    0 also where this configuration already runs, 1 where another one does, 2 for wrong settings.
    ``control_room`` starts one even where the configuration has no port for it. ``app``: the definition in
    ``file``, kept in the state folder if it can start.
    """
    console = Console()
    os.umask(0o077)  # logs and output of parts may hold ids of users
    try:
        with run_file.lock(config.state):
            left = run_file.end_leftovers(config.state)
            if left:
                console.print(f"stopped {left} parts that a killed `recsys up` had left running")
            new = None if file is None or is_kept(config, file) else app
            try:
                resolved, plan = _plan_once_released(config, viewers, only or [], control_room, new)
            except (PortTaken, ValueError) as error:
                fail(error)
                return 2 if isinstance(error, ConfigError) else 1
            with exit_on(ValueError):
                start_clock(resolved)
                keep_definition(config, new, file)
            launch_plan.write(resolved, plan)
            if warning := exposure_warning(resolved):
                console.print(f"[yellow]recsys:[/yellow] {warning}", highlight=False, soft_wrap=True)
            if not detach:
                _run(resolved, plan, console)
                return 0
    except run_file.AlreadyRuns as error:
        return _report_running(config, file, console, str(error))
    except PermissionError as error:
        fail(error)
        return 1
    return _detach(resolved, console)


def _plan_once_released(
    config: Config, viewers: float, only: list[str], control_room: bool, new: App | None
) -> tuple[Config, Plan]:
    """As ``_plan``, but gives a killed system of this folder time to release its ports."""
    until_s = time.monotonic() + (_RELEASED_S if run_file.read(config.state) else 0.0)
    while True:
        try:
            return _plan(config, viewers, only, control_room, new)
        except PortTaken:
            if time.monotonic() >= until_s:
                raise
            time.sleep(0.1)


def _plan(
    config: Config, viewers: float, only: list[str], control_room: bool, new: App | None
) -> tuple[Config, Plan]:
    """Resolves addresses, and checks all settings before anything starts. ``new``: a definition that isn't
    kept yet."""
    from training.lines.line import spec_of  # not for --help

    address = os.environ.get("RAY_ADDRESS", "")
    resolved, plan = launch_plan.resolve(
        config, viewers=viewers, only=only, ray_address=address, control_room=control_room
    )
    if not plan.owns_ray:
        check(
            resolved.clock.is_machine,
            "clock.speed",
            resolved.clock.speed,
            "1, and no clock.start, in a Ray cluster that runs already: processes share another clock "
            "through the memory of one machine",
        )
        from runtime.supervision.cluster import check_cluster  # imports Ray

        own_nodes, address = check_cluster(resolved, typer.echo)
        plan = msgspec.structs.replace(plan, own_nodes=own_nodes, ray_address=address)
    check_doors(resolved, plan.hooked and bool(haproxy()))
    features = new.feature_set(resolved.model.features) if new else feature_set(resolved)
    for policy in Policies(resolved.policy, (), resolved.surfaces).bases.values():
        check_weights(policy, features.schema.labels)
        check_rules(policy, features.schema.names("item", CATEGORICAL))
        check_plugins(policy, resolved.serve.stages)
    own_file = Path(resolved.state) / APP_FILE  # it may have been taken up after the first
    app = new or (read_app(own_file) if own_file.exists() else None)
    resolved.safety.check_viewer_fields(app.schema if app else features.schema)
    if resolved.model.ranker:  # imports torch, which takes two seconds
        from recsys.model.model import build_model

        build_model(features, resolved.model)
    for name in resolved.route_plugins:
        plugins.load(plugins.ROUTES, name)
    try:
        spec_of(resolved)  # otherwise a part would fail with it, and never get ready
        if plan.owns_ray:  # each node of another cluster was asked
            open_tls(resolved.parameter_server, LOOPBACK)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    table(plan, config.workers)  # raises ValueError for an unknown part in ``only``
    return resolved, plan


def _run(config: Config, plan: Plan, console: Console) -> None:
    log_to_file("up", run_folder(config.state) / "up.log", config.logging.format)
    if not console.is_terminal:
        Runner(config, plan, _ChangeLines(config, console).show).run()
    else:
        with Live(console=console, refresh_per_second=4) as live:
            Runner(config, plan, lambda up, _: live.update(parts_table(up, config))).run()


class _ChangeLines:
    """Without a terminal: one line per state change, and the table once all parts are ready."""

    def __init__(self, config: Config, console: Console) -> None:
        self._config, self._console, self._was_ready = config, console, False

    def show(self, running: Running, changes: list[Change]) -> None:
        for change in changes:
            why = f" ({change.reason})" if change.reason else ""
            self._console.print(f"{change.part}: {change.state}{why}", highlight=False)
        if running.ready and not self._was_ready:
            self._console.print(parts_table(running, self._config))
        self._was_ready = running.ready


def _report_running(config: Config, file: Path | None, console: Console, holder: str) -> int:
    running = run_file.read(config.state)
    if running is None or not alive(running.supervisor):
        fail(f"no supervisor runs, but {holder}: wait for its end, or end it")
        return 1
    if running.stopping:
        fail(f"the system in {config.state} is stopping: start it again afterwards")
        return 1
    resolved, _ = launch_plan.read(config.state)
    console.print(parts_table(running, resolved))
    if running.config_digest != digest(config) or (file and not is_kept(config, file)):
        fail(
            f"{config.state} runs with another configuration: `recsys down --state {config.state}` first; "
            "other features of a definition are taken up while it runs, by `recsys app apply`"
        )
        return 1
    typer.echo(f"already running, supervised by process {running.supervisor.pid}")
    return 0


def _detach(config: Config, console: Console) -> int:
    """Starts the supervisor as a background process; returns when all parts are ready."""
    folder = run_folder(config.state)
    with (folder / "up.out").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.supervision.supervisor_loop", config.state],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline, said_at, before = time.monotonic() + _READY_S, time.monotonic() + _SAID_EVERY_S, ""
    running: Running | None = None
    while time.monotonic() < deadline and process.poll() is None:
        running = run_file.read(config.state)
        if running is not None and running.supervisor.pid == process.pid:
            late = _waited_for(running, config)
            if not late:
                console.print(parts_table(running, config))
                typer.echo(f"runs in the background; `recsys down --state {config.state}` stops it")
                return 0
            if running.lost:
                break
            if (progress := str(late)) != before:
                deadline, before = time.monotonic() + _READY_S, progress
            if time.monotonic() >= said_at:
                said_at = time.monotonic() + _SAID_EVERY_S
                parts = ", ".join(f"{name} ({text})" for name, (text, _) in late.items())
                console.print(f"not yet: {parts}", highlight=False)
        time.sleep(0.1)
    if running is not None:
        console.print(parts_table(running, config))
    outcome = f"is not ready, made no progress in {_READY_S:.0f} s, and keeps trying"
    if process.poll() is not None:
        outcome = "exited"
    elif running is not None and running.lost:
        outcome = "can't get ready, and waits for `recsys down`"
    fail(f"the supervisor {outcome}; see {folder}/up.log and {folder}/up.out")
    return 1


def _waited_for(running: Running, config: Config) -> dict[str, tuple[str, int]]:
    """Parts that aren't ready, or catch up: why, and a number that changes with their progress."""
    late, folder = dict[str, tuple[str, int]](), run_folder(config.state)
    for part in running.parts:
        if part.state not in ("ready", "done"):
            beat = read_beat(folder / f"{part.name}.json")
            late[part.name] = part.state, int(beat.worked_s) if beat else 0
    if late:
        return late
    return {
        part.name: (said(part.catching_up), sum(part.lag.values()))
        for part in gather(Path(config.state), with_change=False).parts
        if part.state == CATCHING_UP
    }
