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
_STATE: Final = Path("state")
UNIT_COSTS: Final = Path(__file__).parent / "system" / "unit_costs.json"
_DEFINITIONS: Final = [
    *(Path("examples", name, "app.yaml") for name in ("short_video", "news", "shop")),
    Path("plugins", "kuairand", "app.yaml"),
]

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
def kafka(
    records: Annotated[int, typer.Option(min=1_000, help="Records on the log.")] = 40_000,
    size: Annotated[int, typer.Option(min=8, help="Bytes of a record.")] = 400,
    seed: Seed = 0,
) -> Figures:
    """Cost of records on Kafka: appended, read in order, and at single offsets."""
    from benchmarks.system.bench_kafka import measure_kafka

    return measure_kafka(records, size, seed)


@bench_command(bench)
def shadow(
    lists: Annotated[int, typer.Option(min=400, help="Watched lists.")] = 4_000,
    share: Annotated[
        float, typer.Option(help="Fraction of the stream that candidates score.")
    ] = 0.25,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the mapped snapshot.")] = 1_000_000,
    seed: Seed = 0,
) -> Figures:
    """Cost of scoring a candidate, beside training."""
    from benchmarks.learning.bench_shadow import measure_shadow

    return measure_shadow(lists, share, rows, seed)


@bench_command(bench, "control-room")
def control_room(
    state: Annotated[Path, typer.Option(help="The state folder of a running system.")] = _STATE,
    seconds: Seconds = 60,
    pages: Annotated[int, typer.Option(min=1, help="Open pages, beside one alone.")] = 8,
) -> Figures:
    """Processor time of the control room of a running system."""
    from benchmarks.system.bench_control_room import measure_control_room

    return measure_control_room(state, seconds, pages)


@bench_command(bench)
def tracing(
    requests: Annotated[int, typer.Option(min=40, help="Requests of each kind.")] = 4_000,
    items: Items = 5_000,
    seed: Seed = 0,
) -> Figures:
    """Cost of tracing for a request."""
    from benchmarks.answers.bench_tracing import measure_tracing

    return measure_tracing(requests, items, seed)


@bench_command(bench)
def train(
    ids: Ids = 100_000,
    batches: Batches = 50,
    batch: Annotated[int, typer.Option(min=4, help="Examples of a worker in a step.")] = 1_024,
    apart: Annotated[
        bool,
        typer.Option("--apart/--together", help="Shards and workers as processes, or threads."),
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
def join(
    events: Annotated[int, typer.Option(min=1, help="Events.")] = 200_000, seed: Seed = 0
) -> Figures:
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

    return measure_freshness(
        seconds, rate, every_ms, shards, seed, soonest_ms=soonest_ms, kafka=kafka
    )


@bench_command(bench)
def idle(
    seconds: Seconds = 60,
    demo: Annotated[bool, typer.Option(help="Also with one list a second and a candidate.")] = True,
    floor: Annotated[bool, typer.Option(help="Also Ray and Serve alone.")] = True,
) -> Figures:
    """Cores and wake-ups of a running system at rest, and with one list a second."""
    from benchmarks.system.bench_idle import IdleOptions, measure_idle

    return measure_idle(IdleOptions(seconds, demo, floor), log_progress)


@bench_command(bench)
def sync(
    ids: Ids = 100_000,
    batches: Batches = 50,
    budget_kb: Annotated[int, typer.Option(min=1, help="KiB of rows in a step.")] = 64,
    seed: Seed = 0,
) -> Figures:
    """Rows from a shard to a replica, by format and budget."""
    from benchmarks.learning.bench_sync import measure_sync

    return measure_sync(ids, batches, seed, budget_kb)


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
    up: Annotated[bool, typer.Option(help="Also a whole system, by `recsys up`.")] = True,
    seed: Seed = 0,
) -> Figures:
    """Time until a ranker's or a whole system's first answer; memory that rankers share."""
    from benchmarks.index.bench_start import measure_start

    return measure_start(items, rankers, seed, log_progress, up)


@bench_command(bench)
def serve(
    items: Items = 100_000,
    candidates: Annotated[int, typer.Option(min=1, help="Ranked items of a request.")] = 300,
    seconds: Seconds = 20,
    rate: Annotated[int, typer.Option(min=0, help="Requests a second; 0: half of the peak.")] = 0,
    training: Annotated[bool, typer.Option(help="Also the cost of training beside it.")] = False,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Also the cost of a candidate in shadow.")
    ] = False,
    overload: Annotated[
        float, typer.Option(min=0, help="Also an overload of so many times the peak.")
    ] = 0.0,
    retrieval_shards: Annotated[
        int, typer.Option(min=0, help="serve.retrieval_shards: 0 is within the replica.")
    ] = 0,
    seed: Seed = 0,
) -> Figures:
    """Whole answers over HTTP: requests a second, latency, time by stage."""
    from benchmarks.answers.bench_serve import measure_serve
    from benchmarks.answers.serve_load import ServeOptions

    options = ServeOptions(
        items, candidates, seconds, rate, overload, training, shadow, seed=seed, shards=retrieval_shards
    )  # fmt: skip
    return measure_serve(options, log_progress)


@bench_command(bench)
def audit(
    app: Annotated[list[Path], typer.Option(help="Definitions of apps.")] = _DEFINITIONS,
    numbers: Annotated[int, typer.Option(min=1, help="Recomputed numbers of each app.")] = 100_000,
    seed: Seed = 0,
) -> Figures:
    """Numbers that the real parts logged, recomputed from raw events; of several apps."""
    from benchmarks.answers.bench_audit import measure_audit

    return measure_audit(app, numbers, seed)


@bench_command(bench)
def features(
    events: Annotated[int, typer.Option(min=100, help="Events through each fold.")] = 40_000,
    candidates: Annotated[int, typer.Option(min=1, help="Items of a request.")] = 300,
    length: Annotated[int, typer.Option(min=1, help="Items of a list.")] = 10,
    seed: Seed = 0,
) -> Figures:
    """Thirty declared features over five entities: events through each fold, features of a request."""
    from benchmarks.answers.bench_features import measure_features

    return measure_features(events, candidates, length, seed)


@bench_command(bench)
def doors(
    lists: Annotated[int, typer.Option(min=1, help="Lists beside slow uploads.")] = 1_000,
    slow: Annotated[int, typer.Option(min=2, help="Uploads that never end.")] = 200,
) -> Figures:
    """Hostile bodies, slow uploads and repeats at one replica, in this process."""
    from benchmarks.answers.bench_doors import measure_doors

    return measure_doors(lists, slow)


@bench_command(bench)
def access(
    answers: Annotated[int, typer.Option(min=100, help="Answers of each kind.")] = 20_000,
) -> Figures:
    """Cost of keys, tokens and quotas for an answer and for events."""
    from benchmarks.answers.bench_access import measure_access

    return measure_access(answers)


@bench_command(bench)
def index(items: Items = 100_000, seconds: Seconds = 20, seed: Seed = 0) -> Figures:
    """Searches for items while their vectors move."""
    from benchmarks.index.bench_index import measure_index

    return measure_index(items, seconds, seed)


@bench_command(bench)
def retrieval(
    items: Items = 200_000,
    shards: Annotated[int, typer.Option(min=1, help="Retrieval shards.")] = 2,
    seed: Seed = 0,
) -> Figures:
    """Retrieval shards: memory that leaves a replica, and time of a search."""
    from benchmarks.index.bench_retrieval import measure_retrieval

    return measure_retrieval(items, shards, seed)


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
def rows(
    users: Annotated[str, typer.Option(help="Numbers of users (a,b).")] = "1e5,1e6",
    processes: Annotated[int, typer.Option(min=2, help="Processes that share rows.")] = 4,
    answers: Annotated[int, typer.Option(min=0, help="Answers of each way.")] = 2_000,
    seed: Seed = 0,
) -> Figures:
    """Memory of a replica's rows by number of users, in mapped snapshots and whole; lookups, answers."""
    from benchmarks.index.bench_rows import measure_rows

    counts = [int(float(count)) for count in users.split(",")]
    return measure_rows(counts, processes, answers, seed, log_progress)


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
    minutes: Annotated[
        float, typer.Option(min=0, help="Time for kills; the rest is left out.")
    ] = 22,
    only: Annotated[str, typer.Option(help="Only these targets (a,b).")] = "",
    seed: Seed = 0,
) -> Figures:
    """Events lost or counted twice while every part of a live system is killed."""
    from benchmarks.system.bench_kills import KillOptions, measure_kills

    names = tuple(name for name in only.split(",") if name)
    return measure_kills(KillOptions(kills, minutes, names, seed), log_progress)


@bench_command(bench)
def disk(
    seconds: Annotated[int, typer.Option(min=1, help="Seconds for which the disk is full.")] = 60,
    kill: Annotated[
        str, typer.Option(help="Part that is killed meanwhile; empty: none.")
    ] = "joiner",
) -> Figures:
    """Return of a live system from a full disk; needs root."""
    from benchmarks.system.bench_disk import DiskOptions, measure_disk

    return measure_disk(DiskOptions(seconds, kill), log_progress)


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
def workers(
    events: Annotated[int, typer.Option(min=1_000, help="Events on the log.")] = 60_000,
    seed: Seed = 0,
) -> Figures:
    """Processor time of an event, and the state, by number of workers of each fold."""
    from benchmarks.learning.bench_workers import measure_workers

    return measure_workers(events, seed)


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
    costs: Annotated[
        Path, typer.Option(help="Output of `recsys bench units --json FILE`.")
    ] = UNIT_COSTS,
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


@bench_command(bench)
def replicas(
    replicas: Annotated[int, typer.Option(min=1, help="Replicas that a restart replaces.")] = 2,
    low: Annotated[int, typer.Option(min=1, help="Requests a second for one replica.")] = 20,
    high: Annotated[int, typer.Option(min=1, help="Requests a second that need two.")] = 100,
    target: Annotated[float, typer.Option(min=0.01, help="serve.target_ongoing.")] = 0.3,
    down_s: Annotated[float, typer.Option(min=0, help="serve.downscale_s.")] = 10.0,
    only: Annotated[str, typer.Option(help="restart or scaling; empty: both.")] = "",
    seed: Seed = 0,
) -> Figures:
    """Answered requests while replicas come and go: a rolling restart, and scaling."""
    from benchmarks.system.bench_replicas import PARTS, ReplicaOptions, measure_replicas

    if only and only not in PARTS:
        raise ValueError(f"--only is {only!r}, expected one of {', '.join(PARTS)}")
    parts = (only,) if only else PARTS
    options = ReplicaOptions(replicas, low, high, target, down_s, parts, seed)
    return measure_replicas(options, log_progress)
