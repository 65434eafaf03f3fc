"""From tables to a personal list, each step timed: ``python -m examples.ratings.ten_minutes FOLDER``.

Runs `recsys init`, `recsys import` and `recsys up` as a person would, asks for the lists of a viewer and of
somebody new, prints the seconds of each step as JSON, and ends the system. FOLDER has ratings.csv,
movies.csv and users.csv; without them they are downloaded (``examples.ratings.make_tables``).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from examples.ratings.make_tables import fetch_wheel, make_tables
from recsys.client import Client
from recsys.free_ports import free_ports

VIEWER: Final = "13"
_TABLES: Final = ("ratings.csv", "movies.csv", "users.csv")
_LIST: Final = 10


def run(folder: Path, learn: int) -> dict[str, Any]:
    """The seconds of each step, the viewer's list, and that of somebody without a history."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds[step] = round(time.monotonic() - began, 1)

    if not all((folder / name).exists() for name in _TABLES):
        with timed("download"), tempfile.TemporaryDirectory() as scratch:
            make_tables(fetch_wheel(Path(scratch)), folder)
    if not (folder / "app.yaml").exists():
        with timed("init"):
            recsys(folder, "init", *_TABLES)
    with timed("import"):
        recsys(folder, "import", "--state", "state", "--learn", str(learn), "--report", "report.json")
    port = next(free_ports())
    try:
        with timed("up"):
            recsys(folder, "up", "--state", "state", "--detach", port=port)
        with timed("list"), Client(f"http://127.0.0.1:{port}") as client:
            viewer_list, stranger_list = (_titles(client, user) for user in (VIEWER, "somebody-new"))
            version = client.status()["version"]
    finally:
        recsys(folder, "down", "--state", "state")
    report = json.loads((folder / "report.json").read_text())
    return {"seconds": seconds, "all": round(sum(seconds.values()), 1), "list": viewer_list,
            "without history": stranger_list, "version": version, "report": report}  # fmt: skip


def recsys(folder: Path, *arguments: str, port: int = 0) -> None:
    """Runs a command in the folder; its output goes to stderr."""
    settings = {"RECSYS__SERVE__PORT": str(port), "RECSYS__SERVE__DASHBOARD_PORT": "0"}
    command = [str(Path(sys.executable).with_name("recsys")), *arguments]
    subprocess.run(command, cwd=folder, env=os.environ | settings, stdout=sys.stderr, check=True)


def _titles(client: Client, user_id: str) -> list[str]:
    answer = client.recommend(user_id, n=_LIST)
    return [item.fields["movie_title"] for item in answer.items]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learn", type=int, default=20_000, help="newest rows to train from")
    args = parser.parse_args()
    print(json.dumps(run(args.folder.resolve(), args.learn), indent=2))


if __name__ == "__main__":
    main()
