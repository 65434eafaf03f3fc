"""The configuration: small frozen dataclasses. A run is a function: ``laptop()``, ``cluster()``.

``recsys.config.loader`` lays a YAML file and the environment (``RECSYS__LOG__URL=kafka://...``) over one of them.
Unknown keys are errors; every value is checked where it is made.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

import msgspec

from recsys.config.checks import check as _check
from recsys.config.part_configs import (
    CompatConfig,
    ControlRoomConfig,
    DriftConfig,
    LoggingConfig,
    MetricsConfig,
    TracingConfig,
)
from recsys.config.policy_config import PolicyConfig
from recsys.config.promotion_config import PromotionConfig
from recsys.events.hashing import digest_of


@dataclass(frozen=True)
class LogConfig:
    url: str = "sqlite"  # sqlite (under the state folder) or kafka://host:port[,host:port]
    partitions: int = 4  # of events and examples: the most workers that can share the folds
    retention_hours: int = 72
    # "process": an acknowledged event outlives kill -9 of any process (SQLite synchronous=normal).
    # "power": it outlives a power cut too (synchronous=full): about 1 ms more a batch on an SSD.
    durability: str = "process"

    def __post_init__(self) -> None:
        _check(self.retention_hours >= 1, "log.retention_hours", self.retention_hours, "at least 1")
        known = self.url == "sqlite" or self.url.startswith("kafka://")
        _check(known, "log.url", self.url, "'sqlite' or 'kafka://host:port'")
        _check(1 <= self.partitions <= 1024, "log.partitions", self.partitions, "1 to 1024")
        _check(self.durability in ("process", "power"), "log.durability", self.durability,
               "'process' or 'power'")  # fmt: skip


@dataclass(frozen=True)
class SessionConfig:
    url: str = "embedded"  # embedded Valkey, or redis://host:port/db
    history: int = 20  # the newest engagements that the ranker reads
    seen: int = 500  # items not shown again
    ttl_s: int = 30 * 24 * 3600

    def __post_init__(self) -> None:
        _check(1 <= self.history <= 200, "sessions.history", self.history, "1 to 200")
        _check(self.seen >= 1, "sessions.seen", self.seen, "at least 1")
        _check(self.ttl_s >= 1, "sessions.ttl_s", self.ttl_s, "at least 1 second")


@dataclass(frozen=True)
class JoinConfig:
    # Event time after which an impression without an engagement is a negative.
    window_s: float = 120.0
    horizon_s: float = 3600.0  # how long after that an engagement still emits a correction
    all_shown: bool = False  # True where a data set says that what was served was all shown
    # The share of examples without any engagement that is learned from; predictions stay calibrated.
    negatives: float = 1.0
    memory_mb: float = 512.0  # MiB that impressions may take before they go to disk

    def __post_init__(self) -> None:
        _check(self.window_s > 0, "join.window_s", self.window_s, "a positive number of seconds")
        _check(0 < self.negatives <= 1, "join.negatives", self.negatives, "above 0, at most 1")
        _check(self.memory_mb > 0, "join.memory_mb", self.memory_mb, "more than 0 MiB")
        _check(self.horizon_s >= 0, "join.horizon_s", self.horizon_s, "0 or more seconds")


@dataclass(frozen=True)
class StepConfig:
    examples: int = 256  # a step is cut when so many examples wait ...
    # ... or the oldest has waited so long (wall time live, event time in replay).
    every_ms: int = 250
    lanes: int = 4  # fixed: sums are in lane order, so the number of workers changes no bit
    snapshot_every: int = 500  # steps
    snapshots_kept: int = 3

    def __post_init__(self) -> None:
        _check(1 <= self.examples <= 65536, "step.examples", self.examples, "1 to 65536")
        _check(self.every_ms >= 1, "step.every_ms", self.every_ms, "1 or more milliseconds")
        _check(1 <= self.lanes <= 64, "step.lanes", self.lanes, "1 to 64")
        _check(self.snapshot_every >= 1, "step.snapshot_every", self.snapshot_every, "at least 1")
        _check(self.snapshots_kept >= 1, "step.snapshots_kept", self.snapshots_kept, "at least 1")


@dataclass(frozen=True)
class TableConfig:
    """One table of the parameter server. Rows start uniform in ±``initial`` (0: zeros), by hash."""

    name: str
    dim: int
    learning_rate: float
    initial: float = 0.0
    admit_after: int = 1  # an id gets its own row when it has been seen so often
    ttl_s: int = 0  # a row not used for so long leaves; 0 keeps it
    # MiB of each shard for rows, optimizer state, map and counts of sightings: at it, the least recently
    # used rows leave; 0 is no budget.
    budget_mb: float = 0.0
    # MiB of all shards together for counts of sightings, where admit_after is above 1.
    sketch_mb: float = 1.0

    def __post_init__(self) -> None:
        name = f"table {self.name}"
        _check(1 <= self.dim <= 1024, f"{name}.dim", self.dim, "1 to 1024")
        _check(1 <= self.admit_after <= 255, f"{name}.admit_after", self.admit_after, "1 to 255")
        _check(self.ttl_s >= 0, f"{name}.ttl_s", self.ttl_s, "0 (for ever) or more seconds")
        _check(self.budget_mb >= 0, f"{name}.budget_mb", self.budget_mb, "0 (none) or more MiB")
        _check(self.sketch_mb > 0, f"{name}.sketch_mb", self.sketch_mb, "more than 0 MiB")
        _check(self.learning_rate > 0, f"table {self.name}.learning_rate", self.learning_rate,
               "a positive number")  # fmt: skip


@dataclass(frozen=True)
class RowsConfig:
    """What may be set of one of the model's tables; name and dimension are the model's matter."""

    learning_rate: float = 0.0  # 0: model.row_rate for features, model.vector_rate for the others
    admit_after: int = 1  # an id gets its own row when it has been seen so often
    ttl_s: int = -1  # a row not used for so long leaves; 0 keeps it; -1: model.ttl_s
    budget_mb: float = 0.0  # as in TableConfig: MiB of each shard; 0 is no budget
    sketch_mb: float = 1.0  # as in TableConfig: MiB of all shards together

    def __post_init__(self) -> None:
        rate, after, name = self.learning_rate, self.admit_after, "model.tables"
        _check(rate >= 0, f"{name}.*.learning_rate", rate, "0 (the model's) or a positive number")
        _check(1 <= after <= 255, f"{name}.*.admit_after", after, "1 to 255")
        _check(self.ttl_s >= -1, f"{name}.*.ttl_s", self.ttl_s,
               "-1 (model.ttl_s), 0 (for ever) or more seconds")  # fmt: skip
        _check(self.budget_mb >= 0, f"{name}.*.budget_mb", self.budget_mb, "0 (none) or more MiB")
        _check(self.sketch_mb > 0, f"{name}.*.sketch_mb", self.sketch_mb, "more than 0 MiB")


@dataclass(frozen=True)
class TablesConfig:
    features: RowsConfig = field(default_factory=RowsConfig)
    items: RowsConfig = field(default_factory=RowsConfig)
    users: RowsConfig = field(default_factory=RowsConfig)


@dataclass(frozen=True)
class ModelConfig:
    features: str = "all"  # ids | ids+history | all
    dim: int = 16  # of a categorical row
    vector_dim: int = 32  # of an item vector and the user side
    hidden: tuple[int, ...] = (128, 64)
    row_rate: float = 0.005  # row-wise Adagrad
    row_initial: float = 0.01
    vector_rate: float = 0.05
    retrieval_weight: float = 0.2  # of the user side's loss beside the ranker's
    side_weight: float = 0.3  # of the other labels' loss beside the first one's
    dense_rate: float = 0.0005  # Adam
    dense_first: float = (
        10.0  # times dense_rate in the first step of a line; halved by the 50th, and so on
    )
    # What replicas are given of the dense parameters is their running average over steps, of which so much is
    # kept at each; 0 is the newest.
    dense_average: float = 0.99
    ttl_s: int = 30 * 24 * 3600
    seed: int = 0
    tables: TablesConfig = field(default_factory=TablesConfig)

    def __post_init__(self) -> None:
        kinds = ("ids", "ids+history", "all")
        _check(self.features in kinds, "model.features", self.features, f"one of {kinds}")
        _check(1 <= self.dim <= 1024, "model.dim", self.dim, "1 to 1024")
        _check(1 <= self.vector_dim <= 1024, "model.vector_dim", self.vector_dim, "1 to 1024")
        _check(all(1 <= n <= 65_536 for n in self.hidden), "model.hidden", self.hidden,
               "layers of 1 to 65536")  # fmt: skip
        _check(0 <= self.dense_average < 1, "model.dense_average", self.dense_average,
               "0 (the newest) or more, below 1")  # fmt: skip
        _check(self.ttl_s >= 0, "model.ttl_s", self.ttl_s, "0 (for ever) or more seconds")
        _check(self.dense_first >= 1, "model.dense_first", self.dense_first, "1 (no more) or more")
        for name in ("row_rate", "dense_rate", "vector_rate"):
            rate = getattr(self, name)
            _check(rate > 0, f"model.{name}", rate, "a positive number")


@dataclass(frozen=True)
class ParameterServerConfig:
    shards: int = 2
    transport: str = "socket"  # socket | ray (the fallback and oracle)
    delta_format: str = "fp16"  # fp32 | fp16 | int8: what rows are rounded to for replicas
    # KiB of rows that a shard sends in a step, what matters most first and the rest later; 0 sends all.
    delta_kb: float = 0.0

    def __post_init__(self) -> None:
        formats = ("fp32", "fp16", "int8")
        _check(self.delta_format in formats, "parameter_server.delta_format", self.delta_format,
               f"one of {formats}")  # fmt: skip
        _check(self.delta_kb >= 0, "parameter_server.delta_kb", self.delta_kb, "0 or more KiB")
        _check(self.shards >= 1, "parameter_server.shards", self.shards, "at least 1")
        known = ("socket", "ray")
        _check(self.transport in known, "parameter_server.transport", self.transport,
               f"one of {known}")  # fmt: skip


@dataclass(frozen=True)
class TrainerConfig:
    workers: int = 2
    cpus_per_worker: float = 0.3
    device: str = "cpu"  # or "cuda": where the network and a lane's rows are while it learns
    gpus_per_worker: float = 0.5  # what Ray books, where ``device`` is "cuda"

    def __post_init__(self) -> None:
        _check(self.workers >= 1, "trainer.workers", self.workers, "at least 1")
        share = self.cpus_per_worker
        _check(share > 0, "trainer.cpus_per_worker", share, "a positive number")
        _check(self.device in ("cpu", "cuda"), "trainer.device", self.device, "cpu or cuda")
        share = self.gpus_per_worker
        _check(share > 0, "trainer.gpus_per_worker", share, "a positive number")


INDEXES: Final = ("auto", "flat", "ivf")


@dataclass(frozen=True)
class ServeConfig:
    host: str = "127.0.0.1"  # what the API binds to; 0.0.0.0: every address of the machine
    port: int = 8000
    replicas: int = 1
    # With max_replicas above 0 there are as many as keep target_ongoing requests at work in each. A change is
    # made once it was called for during so many seconds, up and down.
    min_replicas: int = 1
    max_replicas: int = 0
    target_ongoing: float = 2.0
    upscale_s: float = 5.0
    downscale_s: float = 60.0
    candidates: int = 300
    # Ray's, with its API for jobs: some ten processes, and a Train actor more. False: none of it.
    dashboard: bool = True
    dashboard_port: int = 8265
    max_ongoing: int = 100  # lists at work in a replica; fewer where they would wait for too long
    max_events: int = 100  # calls with events at work in a replica, beside those
    client_rate: float = 0.0  # calls a second of one address; more get 429; 0 is no limit
    # A list that would wait for longer than deadline_ms isn't begun. Behind a queue that stands, queue_ms is
    # the most: it makes all answers late, and not one more of them.
    deadline_ms: float = 250.0
    queue_ms: float = 15.0
    # Below so many ms left until the deadline, candidates are the popular alone; fewer are ranked; none is.
    retrieval_ms: float = 10.0
    rank_ms: float = 20.0
    short_rank_ms: float = 8.0
    short_candidates: int = 100
    # Examples that wait for so long without a step that is served: answers say ``stale``.
    stale_s: float = 120.0
    # Of impressions while the log is away, in each replica: MiB in memory, then MiB on disk.
    kept_mb: float = 64.0
    kept_disk_mb: float = 1024.0
    # How a replica keeps its rows: float32, or int8 as they are published (needs delta_format int8, and what
    # `recsys accept int8` writes down).
    rows: str = "float32"
    # How items near a vector are found: flat looks at all, exactly; ivf at lists of them, by measured recall;
    # auto: flat up to so many items, ivf beyond.
    index: str = "auto"
    index_flat_items: int = 50_000
    # Vectors and index of items in so many deployments of their own, instead of in each replica; 0: in each.
    retrieval_shards: int = 0

    def __post_init__(self) -> None:
        _check(self.index in INDEXES, "serve.index", self.index, f"one of {', '.join(INDEXES)}")
        plain = re.fullmatch(r"[A-Za-z0-9.:-]+", self.host) is not None
        _check(plain, "serve.host", self.host, "an address or a name, without a port or brackets")
        for name in ("port", "dashboard_port"):
            port = getattr(self, name)
            _check(0 <= port <= 65_535, f"serve.{name}", port, "0 (any free one) to 65535")
        _check(self.rows in ("float32", "int8"), "serve.rows", self.rows, "float32 or int8")
        counts = ("replicas", "candidates", "max_ongoing", "max_events", "short_candidates")
        for name in (*counts, "index_flat_items"):
            number = getattr(self, name)
            _check(number >= 1, f"serve.{name}", number, "at least 1")
        most = self.max_replicas
        _check(self.min_replicas >= 1, "serve.min_replicas", self.min_replicas, "at least 1")
        _check(most == 0 or most >= self.min_replicas, "serve.max_replicas", most,
               "0 (serve.replicas of them, always) or at least serve.min_replicas")  # fmt: skip
        for name in ("target_ongoing", "deadline_ms", "queue_ms", "stale_s", "kept_mb"):
            number = getattr(self, name)
            _check(number > 0, f"serve.{name}", number, "a positive number")
        shards = self.retrieval_shards
        _check(0 <= shards <= 64, "serve.retrieval_shards", shards,
               "0 (retrieval in each replica) to 64 shards")  # fmt: skip
        waits = ("upscale_s", "downscale_s", "retrieval_ms", "rank_ms", "short_rank_ms")
        for name in (*waits, "client_rate", "kept_disk_mb"):
            number = getattr(self, name)
            _check(number >= 0, f"serve.{name}", number, "0 or more")


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    name: str = "laptop"
    state: str = "state"  # the folder that everything lives in
    nodes: int = 1
    log: LogConfig = field(default_factory=LogConfig)
    sessions: SessionConfig = field(default_factory=SessionConfig)
    join: JoinConfig = field(default_factory=JoinConfig)
    step: StepConfig = field(default_factory=StepConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parameter_server: ParameterServerConfig = field(default_factory=ParameterServerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    control_room: ControlRoomConfig = field(default_factory=ControlRoomConfig)

    def __post_init__(self) -> None:
        if self.nodes > 1 and (self.log.url == "sqlite" or self.sessions.url == "embedded"):
            raise ValueError(
                f"nodes is {self.nodes}, but log.url is {self.log.url!r} and sessions.url is "
                f"{self.sessions.url!r}: a file log and a loopback Valkey reach one node only; "
                "give kafka://... and redis://..."
            )
        published = self.parameter_server.delta_format
        if self.serve.rows == "int8" and published != "int8":
            raise ValueError(
                f"serve.rows is 'int8', but rows are published as {published!r} "
                "(parameter_server.delta_format), which int8 doesn't hold: set that to int8 too, or "
                "serve.rows to float32"
            )


def laptop() -> Config:
    """One machine, two cores, no services of one's own."""
    return Config()


def cluster() -> Config:
    """A Ray cluster with Kafka and Redis: give their addresses in a file or in the environment."""
    return replace(
        Config(),
        name="cluster",
        log=LogConfig(url="kafka://127.0.0.1:9092", partitions=32),
        sessions=SessionConfig(url="redis://127.0.0.1:6379/0"),
        parameter_server=ParameterServerConfig(shards=4),
        trainer=TrainerConfig(workers=4, cpus_per_worker=1.0),
        step=StepConfig(examples=1024, lanes=8),
        serve=ServeConfig(replicas=2),
    )


RUNS = {"laptop": laptop, "cluster": cluster}


def override(config: Any, changes: dict[str, Any]) -> Any:
    """A copy with values replaced by dotted paths: ``{"policy.weights.like": 2.0}``.

    Raises ValueError for a path that isn't there or a value of another type, naming both.
    """
    for path, value in changes.items():
        config = _set(config, path.split("."), value, path)
    return config


def _set(node: Any, parts: list[str], value: Any, path: str) -> Any:
    head, rest = parts[0], parts[1:]
    if isinstance(node, dict):
        known: list[str] = sorted(node)
        if head not in node and rest:
            raise ValueError(f"{path}: there is no {head!r}; there are {', '.join(known)}")
        return node | {head: _set(node[head], rest, value, path) if rest else value}
    known = [f.name for f in fields(node)] if is_dataclass(node) else []
    if head not in known:
        raise ValueError(f"{path}: there is no {head!r}; there are {', '.join(known)}")
    old = getattr(node, head)
    new = _set(old, rest, value, path) if rest else _as_type_of(old, value, path)
    return replace(node, **{head: new})


def _as_type_of(old: Any, value: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, type(old), strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} is {value!r}: {error}") from None


def digest(config: Any) -> str:
    """The digest of a configuration: equal values, equal digest."""
    return digest_of(
        msgspec.json.encode(msgspec.to_builtins(config, str_keys=True), order="deterministic")
    )


def tables_of(config: ModelConfig) -> tuple[TableConfig, ...]:
    """The tables that this model's rows live in. Their names and dimensions follow from the model; the rest
    is set by ``model.tables``, or for all of them where it says nothing."""
    model, its = config, config.tables
    return (
        _table("features", model.dim + 1, model.row_rate, model.row_initial, its.features, model),
        _table("items", model.vector_dim, model.vector_rate, 0.0, its.items, model),
        _table("users", model.vector_dim, model.vector_rate, 0.0, its.users, model),
    )


def _table(
    name: str, dim: int, rate: float, initial: float, its: RowsConfig, model: ModelConfig
) -> TableConfig:
    return TableConfig(
        name,
        dim,
        its.learning_rate or rate,
        initial,
        its.admit_after,
        model.ttl_s if its.ttl_s < 0 else its.ttl_s,
        its.budget_mb,
        its.sketch_mb,
    )
