"""``recsys bench NAME``: a figure beside what one would pick instead, doing the same work in the same run."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

NAMES: Final = ("table", "train", "join", "freshness", "sync", "recovery", "int8")
_PACKAGES: Final = (
    "torch",
    "fbgemm-gpu-cpu",
    "torchrec",
    "numpy",
    "vowpalwabbit",
    "river",
    "polars",
)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="table: rows of the parameter server; train: examples through two shards; join: events "
            "through the joiner; freshness: from the end of a view to the answer that has learned it; "
            "sync: rows from a shard to a replica; recovery: a killed shard, until it answers again; "
            "int8: a replica's rows as int8."
        ),
    ] = "table",
    rows: Annotated[int, typer.Option(help="table, recovery, int8: rows in it.")] = 1_000_000,
    batches: Annotated[
        int, typer.Option(help="table, train, sync, int8: batches that are timed.")
    ] = 50,
    ids: Annotated[int, typer.Option(help="train, sync: ids of each of the 24 fields.")] = 100_000,
    batch: Annotated[int, typer.Option(help="train: examples of a worker in a step.")] = 1_024,
    events: Annotated[int, typer.Option(help="join: events.")] = 200_000,
    seconds: Annotated[int, typer.Option(help="freshness: seconds that are measured.")] = 20,
    rate: Annotated[int, typer.Option(help="freshness: events offered in a second.")] = 1_000,
    every_ms: Annotated[int, typer.Option(help="freshness: step.every_ms.")] = 250,
    shards: Annotated[int, typer.Option(help="freshness: shards.")] = 1,
    budget_kb: Annotated[int, typer.Option(help="sync: KiB of rows in a step.")] = 64,
    steps: Annotated[int, typer.Option(help="recovery: steps in the write-ahead file.")] = 400,
    kills: Annotated[int, typer.Option(help="recovery: how often the shard is killed.")] = 3,
    seed: Annotated[int, typer.Option(help="Of keys, examples, events.")] = 0,
    apart: Annotated[
        bool,
        typer.Option(
            "--apart/--together", help="train: shards and workers as processes, or threads."
        ),
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measures speed beside what one would pick instead."""
    if name == "table":
        from recsys.cli.bench_table import BATCH, measure_table

        _check("rows", rows, BATCH)
        _check("batches", batches, 1)
        options, measured = {"rows": rows, "batches": batches}, measure_table(rows, batches, seed)
    elif name == "train":
        from recsys.cli.bench_train import measure_train

        for option, value in (("ids", ids), ("batches", batches)):
            _check(option, value, 1)
        _check("batch", batch, 4)
        options = {"ids": ids, "batches": batches, "batch": batch}
        measured = measure_train(ids, batches, seed, batch, apart)
    elif name == "join":
        from recsys.cli.bench_join import measure_join

        _check("events", events, 1)
        options, measured = {"events": events}, measure_join(events, seed)
    elif name == "freshness":
        from recsys.cli.bench_freshness import measure_freshness

        options = {"seconds": seconds, "rate": rate, "every-ms": every_ms, "shards": shards}
        for option, value in options.items():
            _check(option, value, 1)
        measured = measure_freshness(seconds, rate, every_ms, shards, seed)
    elif name == "sync":
        from recsys.cli.bench_sync import measure_sync

        options = {"ids": ids, "batches": batches, "budget-kb": budget_kb}
        for option, value in options.items():
            _check(option, value, 1)
        measured = measure_sync(ids, batches, seed, budget_kb)
    elif name == "recovery":
        from recsys.cli.bench_recovery import measure_recovery

        options = {"rows": rows, "steps": steps, "kills": kills}
        for option, value in options.items():
            _check(option, value, 1)
        measured = measure_recovery(rows, steps, kills, seed)
    elif name == "int8":
        from recsys.cli.bench_int8 import measure_int8

        options = {"rows": rows, "batches": batches}
        for option, value in options.items():
            _check(option, value, 1)
        measured = measure_int8(rows, batches, seed)
    else:
        raise typer.BadParameter(f"there is no bench {name!r}, expected {', '.join(NAMES)}")
    words = [f"--{option} {value}" for option, value in (options | {"seed": seed}).items()]
    words += ["--together"] if name == "train" and not apart else []
    found = {
        "bench": name,
        "command": f"recsys bench {name} {' '.join(words)}",
        "seed": seed,
        "machine": _machine(),
        "versions": _versions(),
        **measured,
    }
    typer.echo(json.dumps(found, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _check(option: str, value: int, least: int) -> None:
    if value < least:
        raise typer.BadParameter(f"--{option} is {value}, expected {least} or more")


def _machine() -> dict[str, Any]:
    """The load tells whether others were at work: figures taken beside them are ratios and no more."""
    cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 2)}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
