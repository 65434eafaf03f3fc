"""Runs an example as an app: writes its tables, imports them, and serves it until Ctrl-C.

Each step is the command that a person would type, in the folder of the app.
"""

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from recsys.client import Client

STATE: Final = "state"
REPORT: Final = "report.json"  # written once the import is complete
Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class ExampleApp:
    """An app to run.

    ``tables``: rows by file, made when the folder has none. ``files``: the section of the definition that
    reads them. ``learn``: newest rows to train from. ``prepare``: called with a client and the folder once
    the system answers.
    """

    name: str
    definition: Path
    tables: Callable[[], Mapping[str, Rows]]
    files: Mapping[str, Any]
    learn: int
    prepare: Callable[[Client, Path], None] = lambda client, folder: None


def write_folder(app: ExampleApp, folder: Path) -> None:
    """Writes the tables, and the definition with the section that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in app.tables().items():
        first, *others = rows
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(first))
            writer.writeheader()
            writer.writerows([first, *others])
    section = msgspec.yaml.encode({"files": app.files}).decode()
    definition = app.definition.read_text("utf-8")
    (folder / "app.yaml").write_text(f"{definition}\n{section}", "utf-8")


def run(app: ExampleApp, folder: Path, port: int) -> None:
    """Serves the app until Ctrl-C; the first time it makes the data and imports them."""
    command = _Commands(folder, port)
    try:
        if not (folder / REPORT).exists():
            shutil.rmtree(folder / STATE, ignore_errors=True)
            print(f"{app.name}: makes the data in {folder}", flush=True)
            write_folder(app, folder)
            command("import", "--state", STATE, "--learn", str(app.learn), "--report", REPORT)
        command("up", "--state", STATE, "--detach")
        key = (folder / STATE / "run" / "admin.key").read_text().strip()
        with Client(f"http://127.0.0.1:{port}", admin_key=key) as client:
            app.prepare(client, folder)
        print(f"{app.name}: http://127.0.0.1:{port}/ (Ctrl-C ends it)", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    except subprocess.CalledProcessError as error:  # the command has given the reason
        sys.exit(error.returncode)
    finally:
        command("down", "--state", STATE)


class _Commands:
    """Runs commands of ``recsys`` in the folder, with the settings of the app."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._environment = os.environ | {"RECSYS__SERVE__PORT": str(port)}

    def __call__(self, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("recsys")), *arguments]
        subprocess.run(command, cwd=self._folder, env=self._environment, check=True)


def main(app: ExampleApp) -> None:
    """Reads the options and runs the app."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{app.name}")
    default = Path("data") / "examples" / app.name
    parser.add_argument("folder", type=Path, nargs="?", default=default, help=f"default: {default}")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    run(app, options.folder.resolve(), options.port)
