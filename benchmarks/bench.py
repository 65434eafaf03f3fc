"""``recsys bench NAME``: measures one part beside alternatives that do the same work in the same run."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.harness.commands import Figures, Seed, bench_command, log_progress

Rows = Annotated[int, typer.Option(min=10_000, help="Rows in the table.")]
Batches = Annotated[int, typer.Option(min=1, help="Timed batches.")]
Ids = Annotated[int, typer.Option(min=1, help="Ids of each of the 24 fields.")]
Items = Annotated[int, typer.Option(min=1_000, help="Items in the catalogue.")]
Seconds = Annotated[int, typer.Option(min=1, help="Seconds of each measurement.")]
UNIT_COSTS: Final = Path(__file__).parent / "system" / "unit_costs.json"

bench = typer.Typer(add_completion=False)


@bench.callback(invoke_without_command=True)
def _bench(context: typer.Context) -> None:
    """Measures speed beside alternatives; without a name: table."""
    if context.invoked_subcommand is None:
        table(rows=1_000_000, batches=50, seed=0, json_file=None)


@bench_command(bench)
def table(rows: Rows = 1_000_000, batches: Batches = 50, seed: Seed = 0) -> Figures:
    """Rows of the parameter server: lookups and updates a second."""
    from benchmarks.learning.bench_table import measure_table

    return measure_table(rows, batches, seed)


@bench_command(bench)
def train(
    ids: Ids = 100_000,
    batches: Batches = 50,
    batch: Annotated[int, typer.Option(min=4, help="Examples of a worker in a step.")] = 1_024,
    apart: Annotated[
        bool, typer.Option("--apart/--together", help="Shards and workers as processes, or threads.")
    ] = True,
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved rounds; the median of each variant counts.")
    ] = 5,
    seed: Seed = 0,
) -> Figures:
    """Examples through two workers and two shards."""
    from benchmarks.learning.bench_train import measure_train

    return measure_train(ids, batches, seed, batch, apart, rounds)


@bench_command(bench)
def join(events: Annotated[int, typer.Option(min=1, help="Events.")] = 200_000, seed: Seed = 0) -> Figures:
    """Events through the joiner."""
    from benchmarks.learning.bench_join import measure_join

    return measure_join(events, seed)


@bench_command(bench)
def replay(
    data: Annotated[Path, typer.Option(help="Folder with a data set.")] = Path("data/kuairand"),
    until: Annotated[str, typer.Option(help="Event time to stop before.")] = "",
) -> Figures:
    """Examples of a data set a CPU second, and peak memory."""
    from benchmarks.learning.bench_replay import measure_replay

    return measure_replay(data, until)


@bench_command(bench)
def freshness(
    seconds: Seconds = 20,
    rate: Annotated[int, typer.Option(min=1, help="Events offered in a second.")] = 1_000,
    every_ms: Annotated[int, typer.Option(min=1, help="step.every_ms.")] = 250,
    soonest_ms: Annotated[int, typer.Option(min=0, help="step.soonest_ms.")] = 60,
    kafka: Annotated[bool, typer.Option("--kafka", help="Over an embedded broker.")] = False,
    shards: Annotated[int, typer.Option(min=1, help="Shards.")] = 1,
    seed: Seed = 0,
) -> Figures:
    """Time from the end of a view to the first answer that has learned it."""
    from benchmarks.system.bench_freshness import measure_freshness

    return measure_freshness(seconds, rate, every_ms, shards, seed, soonest_ms=soonest_ms, kafka=kafka)


@bench_command(bench)
def one_process(
    learned: Annotated[int, typer.Option(min=1, help="Lists that are learned before.")] = 300,
    lists: Annotated[float, typer.Option(min=1.0, help="Lists a second.")] = 100.0,
    events: Annotated[float, typer.Option(min=1.0, help="Events a second.")] = 500.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of lists and events.")] = 20.0,
    seed: Seed = 0,
) -> Figures:
    """A Recommender and `recsys serve` beside `recsys up`: first answer, memory, lists and events."""
    from benchmarks.system.bench_one_process import OneProcessOptions, measure_one_process

    return measure_one_process(OneProcessOptions(learned, lists, events, seconds, seed), log_progress)


@bench_command(bench)
def recovery(
    rows: Annotated[int, typer.Option(min=1, help="Rows in the table.")] = 1_000_000,
    steps: Annotated[int, typer.Option(min=1, help="Steps in the write-ahead file.")] = 400,
    kills: Annotated[int, typer.Option(min=1, help="Kills of the shard.")] = 3,
    seed: Seed = 0,
) -> Figures:
    """Time until a killed shard answers again."""
    from benchmarks.system.bench_recovery import measure_recovery

    return measure_recovery(rows, steps, kills, seed)


@bench_command(bench)
def start(
    items: Items = 100_000,
    rankers: Annotated[int, typer.Option(min=1, help="Rankers on the machine.")] = 4,
    seed: Seed = 0,
) -> Figures:
    """Time until a ranker's first answer; memory that rankers share."""
    from benchmarks.index.bench_start import measure_start

    return measure_start(items, rankers, seed, log_progress)


@bench_command(bench)
def serve(
    items: Items = 100_000,
    candidates: Annotated[int, typer.Option(min=1, help="Ranked items of a request.")] = 300,
    seconds: Seconds = 20,
    rate: Annotated[int, typer.Option(min=0, help="Requests a second; 0: half of the peak.")] = 0,
    overload: Annotated[float, typer.Option(min=0, help="Also an overload of so many times the peak.")] = 0.0,
    seed: Seed = 0,
) -> Figures:
    """Whole answers over HTTP: requests a second, latency, time by stage."""
    from benchmarks.answers.bench_serve import measure_serve
    from benchmarks.answers.serve_load import ServeOptions

    options = ServeOptions(items, candidates, seconds, rate, overload, seed)
    return measure_serve(options, log_progress)


@bench_command(bench)
def index(items: Items = 100_000, seconds: Seconds = 20, seed: Seed = 0) -> Figures:
    """Searches for items while their vectors move."""
    from benchmarks.index.bench_index import measure_index

    return measure_index(items, seconds, seed)


@bench_command(bench)
def stamp(
    requests: Annotated[int, typer.Option(min=0, help="Requests in process.")] = 20_000,
    http: Annotated[int, typer.Option(min=0, help="Requests over HTTP.")] = 2_000,
    explained: Annotated[int, typer.Option(min=0, help="Recomputed answers.")] = 200,
    seed: Seed = 0,
) -> Figures:
    """Answers while everything changes: none mixes two versions, and all are recomputed from the log."""
    from benchmarks.answers.bench_stamp import measure_stamp

    return measure_stamp(requests, http, explained, seed)


@bench_command(bench)
def faults(
    rate: Annotated[int, typer.Option(min=1, help="Requests a second.")] = 100,
    seconds: Annotated[int, typer.Option(min=5, help="Seconds of load for each fault.")] = 32,
    replicas: Annotated[int, typer.Option(min=1, help="Serving replicas.")] = 2,
    kafka: Annotated[bool, typer.Option("--kafka", help="Over an embedded broker.")] = False,
    only: Annotated[str, typer.Option(help="Only these faults (a,b).")] = "",
    seed: Seed = 0,
) -> Figures:
    """Answered requests while one part after the other is killed, stopped or made unwritable."""
    from benchmarks.system.bench_faults import FaultOptions, measure_faults

    names = tuple(name for name in only.split(",") if name)
    return measure_faults(FaultOptions(rate, seconds, replicas, kafka, names, seed), log_progress)


@bench_command(bench)
def kills(
    kills: Annotated[int, typer.Option(min=1, help="Kills, in pairs too.")] = 60,
    minutes: Annotated[float, typer.Option(min=0, help="Time for kills; the rest is left out.")] = 22,
    only: Annotated[str, typer.Option(help="Only these targets (a,b).")] = "",
    seed: Seed = 0,
) -> Figures:
    """Events lost or counted twice while every part of a live system is killed."""
    from benchmarks.system.bench_kills import KillOptions, measure_kills

    names = tuple(name for name in only.split(",") if name)
    return measure_kills(KillOptions(kills, minutes, names, seed), log_progress)


@bench_command(bench)
def drift(
    runs: Annotated[int, typer.Option(min=1, help="Seeded runs of each planted shift.")] = 60,
    stationary: Annotated[
        int, typer.Option(min=1, help="Runs of 500,000 examples for each length of a day.")
    ] = 10,
    seed: Seed = 0,
) -> Figures:
    """Detection delay of planted shifts, and false alarms on stationary streams."""
    from benchmarks.learning.bench_drift import measure_drift

    return measure_drift(runs, stationary, seed, log_progress)


@bench_command(bench)
def units(
    requests: Annotated[int, typer.Option(min=100, help="Lists that are asked for.")] = 1_500,
    items: Annotated[int, typer.Option(min=100, help="Items in the catalogue.")] = 10_000,
    users: Annotated[int, typer.Option(min=1, help="Viewers.")] = 300,
) -> Figures:
    """Unit costs of each part, which `recsys bench capacity` reads."""
    from benchmarks.system.bench_units import measure_units

    return measure_units(requests, items, users)


@bench_command(bench)
def capacity(
    events: Annotated[float, typer.Option(min=1, help="Events a second at the peak.")] = 1e5,
    requests: Annotated[float, typer.Option(min=1, help="Lists a second at the peak.")] = 1e4,
    users: Annotated[float, typer.Option(min=1, help="Known users.")] = 1e8,
    items: Annotated[float, typer.Option(min=1, help="Items in the catalogue.")] = 1e7,
    costs: Annotated[Path, typer.Option(help="Output of `recsys bench units --json FILE`.")] = UNIT_COSTS,
    candidates: Annotated[int, typer.Option(min=0, help="Lines that learn beside live.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, help="log.partitions.")] = 64,
    copies: Annotated[int, typer.Option(min=1, help="Copies of the log.")] = 3,
    cores: Annotated[int, typer.Option(min=1, help="Cores of a machine.")] = 32,
    memory_gb: Annotated[float, typer.Option(min=1, help="Memory of a machine.")] = 128,
    price: Annotated[float, typer.Option(min=0, help="Price of a core-hour.")] = 0.04,
) -> Figures:
    """Machines and cost for a load, and the first part to break, from measured unit costs."""
    from benchmarks.system.capacity import Demand, Load, Machine, plan

    measured = json.loads(costs.read_text())
    load = Load(events, requests, users, items, candidates)
    machine = Machine(cores, memory_gb)
    demand = Demand(load, measured["figures"], machine)
    figures = plan(demand, partitions, copies, price)
    return {"what": f"costs of {costs.name}: {measured['what']}", "figures": figures}
