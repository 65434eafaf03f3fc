"""``recsys bench NAME``: a figure beside what one would pick instead, doing the same work in the same run."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

_PACKAGES: Final = (
    "torch",
    "fbgemm-gpu-cpu",
    "torchrec",
    "numpy",
    "faiss-cpu",
    "vowpalwabbit",
    "river",
    "polars",
    "ray",
    "uvicorn",
    "fastapi",
    "redis",
)

Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Rows = Annotated[int, typer.Option(min=10_000, help="Rows in the table.")]
Batches = Annotated[int, typer.Option(min=1, help="Batches that are timed.")]
Ids = Annotated[int, typer.Option(min=1, help="Ids of each of the 24 fields.")]
Items = Annotated[int, typer.Option(min=1_000, help="Items in the catalogue.")]
Seconds = Annotated[int, typer.Option(min=1, help="Seconds that each thing is measured.")]

bench = typer.Typer(add_completion=False)


@bench.callback(invoke_without_command=True)
def _bench(context: typer.Context) -> None:
    """Measures speed beside what one would pick instead; without a name: table."""
    if context.invoked_subcommand is None:
        table()


@bench.command()
def table(
    rows: Rows = 1_000_000, batches: Batches = 50, seed: Seed = 0, json_file: Json = None
) -> None:
    """Rows of the parameter server: lookups and updates a second."""
    from benchmarks.learning.bench_table import measure_table

    measured = measure_table(rows, batches, seed)
    _tell("table", {"rows": rows, "batches": batches, "seed": seed}, measured, json_file)


@bench.command()
def shadow(
    lists: Annotated[int, typer.Option(min=400, help="Lists that are looked at.")] = 4_000,
    share: Annotated[float, typer.Option(help="Of the stream that candidates score.")] = 0.25,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of the snapshot that is mapped.")
    ] = 1_000_000,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """What judging a candidate costs, beside training."""
    from benchmarks.learning.bench_shadow import measure_shadow

    measured = measure_shadow(lists, share, rows, seed)
    options = {"lists": lists, "share": share, "rows": rows, "seed": seed}
    _tell("shadow", options, measured, json_file)


@bench.command("control-room")
def control_room(
    state: Annotated[Path, typer.Option(help="The state folder of a running system.")] = Path(
        "state"
    ),
    seconds: Seconds = 60,
    pages: Annotated[int, typer.Option(min=1, help="How many look at once, beside one alone.")] = 8,
    json_file: Json = None,
) -> None:
    """What the control room of a running system takes of the processor."""
    from benchmarks.system.bench_control_room import measure_control_room

    measured = measure_control_room(state, seconds, pages)
    options = {"state": state, "seconds": seconds, "pages": pages}
    _tell("control-room", options, measured, json_file)


@bench.command()
def tracing(
    requests: Annotated[int, typer.Option(min=40, help="Requests of each kind.")] = 4_000,
    items: Items = 5_000,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """What tracing costs a request."""
    from benchmarks.answers.bench_tracing import measure_tracing

    measured = measure_tracing(requests, items, seed)
    _tell("tracing", {"requests": requests, "items": items, "seed": seed}, measured, json_file)


@bench.command()
def train(
    ids: Ids = 100_000,
    batches: Batches = 50,
    batch: Annotated[int, typer.Option(min=4, help="Examples of a worker in a step.")] = 1_024,
    apart: Annotated[
        bool,
        typer.Option("--apart/--together", help="Shards and workers as processes, or threads."),
    ] = True,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Examples through two workers and two shards."""
    from benchmarks.learning.bench_train import measure_train

    measured = measure_train(ids, batches, seed, batch, apart)
    options = {"ids": ids, "batches": batches, "batch": batch, "seed": seed}
    _tell("train", options | ({} if apart else {"together": True}), measured, json_file)


@bench.command()
def join(
    events: Annotated[int, typer.Option(min=1, help="Events.")] = 200_000,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Events through the joiner."""
    from benchmarks.learning.bench_join import measure_join

    _tell("join", {"events": events, "seed": seed}, measure_join(events, seed), json_file)


@bench.command()
def freshness(
    seconds: Seconds = 20,
    rate: Annotated[int, typer.Option(min=1, help="Events offered in a second.")] = 1_000,
    every_ms: Annotated[int, typer.Option(min=1, help="step.every_ms.")] = 250,
    shards: Annotated[int, typer.Option(min=1, help="Shards.")] = 1,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """From the end of a view to the first answer that has learned it."""
    from benchmarks.system.bench_freshness import measure_freshness

    measured = measure_freshness(seconds, rate, every_ms, shards, seed)
    options = {"seconds": seconds, "rate": rate, "every-ms": every_ms, "shards": shards}
    _tell("freshness", options | {"seed": seed}, measured, json_file)


@bench.command()
def sync(
    ids: Ids = 100_000,
    batches: Batches = 50,
    budget_kb: Annotated[int, typer.Option(min=1, help="KiB of rows in a step.")] = 64,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Rows from a shard to a replica, by format and budget."""
    from benchmarks.learning.bench_sync import measure_sync

    measured = measure_sync(ids, batches, seed, budget_kb)
    options = {"ids": ids, "batches": batches, "budget-kb": budget_kb, "seed": seed}
    _tell("sync", options, measured, json_file)


@bench.command()
def recovery(
    rows: Annotated[int, typer.Option(min=1, help="Rows in the table.")] = 1_000_000,
    steps: Annotated[int, typer.Option(min=1, help="Steps in the write-ahead file.")] = 400,
    kills: Annotated[int, typer.Option(min=1, help="How often the shard is killed.")] = 3,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """A killed shard, until it answers again."""
    from benchmarks.system.bench_recovery import measure_recovery

    measured = measure_recovery(rows, steps, kills, seed)
    options = {"rows": rows, "steps": steps, "kills": kills, "seed": seed}
    _tell("recovery", options, measured, json_file)


@bench.command()
def serve(
    items: Items = 100_000,
    candidates: Annotated[int, typer.Option(min=1, help="Items that a request ranks.")] = 300,
    seconds: Seconds = 20,
    rate: Annotated[
        int, typer.Option(min=0, help="Requests in a second; 0: half of the peak.")
    ] = 0,
    training: Annotated[
        bool, typer.Option(help="Also what training beside it costs an answer.")
    ] = False,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Also what a candidate in shadow costs an answer.")
    ] = False,
    overload: Annotated[
        float, typer.Option(min=0, help="Also what comes of so many times the peak.")
    ] = 0.0,
    retrieval_shards: Annotated[
        int, typer.Option(min=0, help="serve.retrieval_shards; the bare app has none.")
    ] = 0,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Whole answers over HTTP: requests a second, latency, where the time goes."""
    from benchmarks.answers.bench_serve import measure_serve
    from benchmarks.answers.serve_load import Ask

    ask = Ask(
        items, candidates, seconds, rate, overload, training, shadow, seed=seed,
        shards=retrieval_shards,
    )  # fmt: skip
    measured = measure_serve(ask, lambda text: typer.echo(text, err=True))
    options = {"items": items, "candidates": candidates, "seconds": seconds, "rate": rate}
    options |= {"overload": overload} if overload else {}
    options |= {"training": True} if training else {}
    options |= {"shadow": True} if shadow else {}
    options |= {"retrieval-shards": retrieval_shards} if retrieval_shards else {}
    _tell("serve", options | {"seed": seed}, measured, json_file)


@bench.command()
def index(
    items: Items = 100_000, seconds: Seconds = 20, seed: Seed = 0, json_file: Json = None
) -> None:
    """Searches for items while their vectors move."""
    from benchmarks.index.bench_index import measure_index

    measured = measure_index(items, seconds, seed)
    _tell("index", {"items": items, "seconds": seconds, "seed": seed}, measured, json_file)


@bench.command()
def retrieval(
    items: Items = 200_000,
    shards: Annotated[int, typer.Option(min=1, help="Shards of retrieval.")] = 2,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Retrieval in shards of its own: what leaves a replica, and what a search there takes."""
    from benchmarks.index.bench_retrieval import measure_retrieval

    measured = measure_retrieval(items, shards, seed)
    _tell("retrieval", {"items": items, "shards": shards, "seed": seed}, measured, json_file)


@bench.command()
def stamp(
    requests: Annotated[int, typer.Option(min=0, help="Requests in process.")] = 20_000,
    http: Annotated[int, typer.Option(min=0, help="Requests over HTTP.")] = 2_000,
    explained: Annotated[int, typer.Option(min=0, help="Answers that are made again.")] = 200,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Answers while everything changes: none of two versions, and made again from the log."""
    from benchmarks.answers.bench_stamp import measure_stamp

    measured = measure_stamp(requests, http, explained, seed)
    options = {"requests": requests, "http": http, "explained": explained, "seed": seed}
    _tell("stamp", options, measured, json_file)


@bench.command()
def int8(
    rows: Annotated[int, typer.Option(min=1, help="Rows in the store.")] = 1_000_000,
    batches: Batches = 50,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """A replica's rows as int8: bytes of a row, lookups a second."""
    from benchmarks.index.bench_int8 import measure_int8

    measured = measure_int8(rows, batches, seed)
    _tell("int8", {"rows": rows, "batches": batches, "seed": seed}, measured, json_file)


@bench.command()
def faults(
    rate: Annotated[int, typer.Option(min=1, help="Requests in a second.")] = 100,
    seconds: Annotated[int, typer.Option(min=5, help="Seconds of load for each fault.")] = 32,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas that serve.")] = 2,
    kafka: Annotated[bool, typer.Option("--kafka", help="Over an embedded broker.")] = False,
    only: Annotated[str, typer.Option(help="Only these faults (a,b).")] = "",
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Requests answered while one thing after the other is killed, stopped or made unwritable."""
    from benchmarks.system.bench_faults import Ask, chosen, measure_faults

    names = tuple(name for name in only.split(",") if name)
    try:
        chosen(names, kafka)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    ask = Ask(rate, seconds, replicas, kafka, names, seed)
    measured = measure_faults(ask, lambda text: typer.echo(text, err=True))
    options: dict[str, Any] = {"rate": rate, "seconds": seconds, "replicas": replicas}
    options |= ({"kafka": True} if kafka else {}) | ({"only": only} if only else {})
    _tell("faults", options | {"seed": seed}, measured, json_file)


@bench.command()
def drift(
    runs: Annotated[int, typer.Option(min=1, help="Seeded runs of each planted shift.")] = 60,
    stationary: Annotated[
        int, typer.Option(min=1, help="Runs of 500,000 examples for each length of a day.")
    ] = 10,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """How soon planted shifts are found, and how often something is found where nothing is."""
    from benchmarks.learning.bench_drift import measure_drift

    measured = measure_drift(runs, stationary, seed, lambda text: typer.echo(text, err=True))
    options = {"runs": runs, "stationary": stationary, "seed": seed}
    _tell("drift", options, measured, json_file)


@bench.command()
def gathering(
    hours: Annotated[float, typer.Option(help="Of the simulated world.")] = 12.0,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Bytes of deltas where rows are published each step, and each second, fourth and eighth one."""
    from benchmarks.learning.delta_bytes import measure_gathering

    measured = measure_gathering(hours, seed)
    _tell("gathering", {"hours": hours, "seed": seed}, {"published": measured}, json_file)


@bench.command()
def replicas(
    replicas: Annotated[int, typer.Option(min=1, help="That are replaced by a restart.")] = 2,
    low: Annotated[int, typer.Option(min=1, help="Requests in a second for one replica.")] = 20,
    high: Annotated[int, typer.Option(min=1, help="Requests in a second that want two.")] = 100,
    target: Annotated[float, typer.Option(min=0.01, help="serve.target_ongoing.")] = 0.3,
    down_s: Annotated[float, typer.Option(min=0, help="serve.downscale_s.")] = 10.0,
    only: Annotated[str, typer.Option(help="restart, or scaling; empty: both.")] = "",
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Requests answered while replicas come and go: a rolling restart, and scaling."""
    from benchmarks.system.bench_replicas import PARTS, Ask, measure_replicas

    if only and only not in PARTS:
        raise typer.BadParameter(f"--only is {only!r}, expected one of {', '.join(PARTS)}")
    ask = Ask(replicas, low, high, target, down_s, (only,) if only else PARTS, seed)
    measured = measure_replicas(ask, lambda text: typer.echo(text, err=True))
    options: dict[str, Any] = {"replicas": replicas, "low": low, "high": high, "target": target}
    options |= {"down-s": down_s} | ({"only": only} if only else {})
    _tell("replicas", options | {"seed": seed}, measured, json_file)


def _tell(
    name: str, options: Mapping[str, Any], measured: Mapping[str, Any], json_file: Path | None
) -> None:
    words = [f"--{key}" if value is True else f"--{key} {value}" for key, value in options.items()]
    found = {
        "bench": name,
        "command": f"recsys bench {name} {' '.join(words)}",
        **({"seed": options["seed"]} if "seed" in options else {}),
        "machine": _machine(),
        "versions": _versions(),
        **measured,
    }
    typer.echo(json.dumps(found, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


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
