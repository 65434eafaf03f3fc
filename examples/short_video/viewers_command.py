"""``recsys viewers``: sends simulated viewers to a running server."""

import time
from typing import Annotated

import typer
from typer import Option

from examples.short_video.crowd import Crowd
from examples.short_video.viewers import TICK_S, drive
from examples.short_video.world import World
from recsys.client import Client
from recsys.clock import machine_ms


def viewers(
    url: Annotated[str, Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    rate: Annotated[float, Option(help="Maximum events per second, lists included.")] = 20.0,
    seconds: Annotated[float, Option(help="Duration; 0: until stopped.")] = 0.0,
    seed: Annotated[int, Option(help="Seed of the world: who likes what.")] = 0,
    users: Annotated[int, Option(help="Number of simulated users.")] = 1000,
    items: Annotated[int, Option(help="Number of the world's items, with --publish.")] = 2000,
    publish: Annotated[bool, Option(help="Publish old and new items of the world; needs a key.")] = False,
    key: Annotated[
        str, Option(envvar="RECSYS_KEY", help="API key, or the admin key of STATE/run/admin.key.")
    ] = "",
) -> None:
    """Sends simulated viewers to a running server."""
    if rate <= 0 or seconds < 0:
        raise typer.BadParameter(f"rate is {rate}, seconds {seconds}: expected a positive rate")
    if publish and not key:
        raise typer.BadParameter("--publish needs a key with the scope catalogue: give --key")
    start_s, start_ms = time.monotonic(), machine_ms()
    world = World(seed, users, items, start_ms=start_ms)
    crowd = Crowd(world, rate, start_ms, publish=publish)

    def until() -> bool:
        time.sleep(TICK_S)
        return 0 < seconds <= time.monotonic() - start_s

    client = Client(url, key=key or None)
    try:
        drive(crowd, client, until, lambda line: print(line, flush=True), machine_ms)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
