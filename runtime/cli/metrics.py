"""``recsys metrics``: prints or serves the Prometheus metrics of the parts."""

import threading
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from runtime.cli.common import StateOption
from runtime.parts.metrics import Server, text


def metrics(
    state: StateOption = Path("state"),
    port: Annotated[int, Option(help="Port to serve on until Ctrl-C; 0: print once.")] = 0,
    host: Annotated[str, Option(help="Address to bind to.")] = "127.0.0.1",
) -> None:
    """Prints or serves the parts' Prometheus metrics."""
    if not port:
        typer.echo(text(state).decode(), nl=False)
        return
    with Server(host, port, lambda: text(state)) as server:
        typer.echo(f"http://{host}:{server.port}/metrics, until Ctrl-C")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return
