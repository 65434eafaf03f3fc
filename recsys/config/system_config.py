"""The configuration: small frozen dataclasses. A run is a function: ``laptop()``, ``cluster()``.

``recsys.config.loader`` applies a YAML file and the environment (``RECSYS__LOG__URL=kafka://...``) to one of
them. Unknown keys are errors; every value is checked on construction.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from recsys.config.checks import (
    REQUIRED,
    Section,
    bounded,
    check,
    check_finite,
    choice,
    fraction,
    limited,
    positive,
)
from recsys.config.clock_config import ClockConfig
from recsys.config.log_config import LogConfig
from recsys.config.part_configs import (
    CompatConfig,
    ControlRoomConfig,
    DriftConfig,
    LoggingConfig,
    MetricsConfig,
    TracingConfig,
    WorkersConfig,
)
from recsys.config.policy_config import PolicyConfig
from recsys.config.promotion_config import PromotionConfig
from recsys.config.safety_config import AccessConfig, BoundsConfig, DiskConfig, DoorsConfig, SafetyConfig
from recsys.events.hashing import digest_of

_VECTOR_RATE: Final = 0.05  # learning rate of item and user vectors


@dataclass(frozen=True)
class SessionConfig(Section):
    section = "sessions"
    # embedded: a Valkey of the system's own; sqlite: a file of the state folder; or redis://host:port/db, or
    # rediss://… with TLS.
    url: str = "embedded"
    cluster: bool = False  # url names a node of a Redis Cluster
    history: int = bounded(20, 1, 200)  # newest items of a viewer that the ranker reads
    seen: int = bounded(500, 0)  # newest items of a viewer that are remembered
    repeats: bool = False  # whether these may be shown again
    ttl_s: int = bounded(30 * 24 * 3600, 1)


@dataclass(frozen=True)
class JoinConfig(Section):
    section = "join"
    # Event time after which a shown item without an engagement is a negative.
    window_s: float = positive(120.0)
    # How long after that an engagement still emits a correction.
    horizon_s: float = bounded(3600.0, 0)
    # Sampling rate of examples without any engagement; predictions stay calibrated.
    negatives: float = fraction(1.0)
    memory_mb: float = positive(512.0)  # MiB of pending impressions before they spill to disk


@dataclass(frozen=True)
class StepConfig(Section):
    section = "step"
    examples: int = bounded(256, 1, 65536)  # a step is cut when so many examples wait ...
    # ... or the oldest has waited so long (wall time live, event time in replay).
    every_ms: int = bounded(250, 1)
    # ... or so long, live, while the trainer has published the step before.
    soonest_ms: int = bounded(60, 0)
    # Fixed: sums are in lane order, so the number of workers changes no bit.
    lanes: int = bounded(4, 1, 64)
    snapshot_every: int = bounded(500, 1)  # a snapshot is taken at a multiple of so many steps ...
    snapshot_s: int = bounded(60, 0)  # ... after so many seconds of event time since the last
    snapshots_kept: int = bounded(3, 1)


@dataclass(frozen=True)
class TableConfig(Section):
    """One table of the parameter server. Rows start uniform in ±``initial`` (0: zeros), by hash."""

    name: str
    dim: int = bounded(REQUIRED, 1, 1024)
    learning_rate: float = positive(REQUIRED)
    initial: float = 0.0
    admit_after: int = bounded(1, 1, 255)  # sightings after which an id gets its own row
    ttl_s: int = bounded(0, 0)  # a row unused for so long is removed; 0 keeps it
    # MiB of each shard for rows, optimizer state, map and counts of sightings; beyond it the least recently
    # used rows are evicted; 0 is no budget.
    budget_mb: float = bounded(0.0, 0)
    # MiB of all shards together for counts of sightings, if admit_after is above 1.
    sketch_mb: float = positive(1.0)

    def section_name(self) -> str:
        return f"table {self.name}"


@dataclass(frozen=True)
class RowsConfig(Section):
    """Settings of one of the model's tables; the model determines name and dimension."""

    section = "model.tables.*"
    # 0: model.row_rate for features, 0.05 for the others.
    learning_rate: float = bounded(0.0, 0)
    admit_after: int = bounded(1, 1, 255)  # sightings after which an id gets its own row
    ttl_s: int = bounded(-1, -1)  # a row unused for so long is removed; 0 keeps it; -1: model.ttl_s
    budget_mb: float = bounded(0.0, 0)  # as in TableConfig: MiB of each shard; 0 is no budget
    sketch_mb: float = positive(1.0)  # as in TableConfig: MiB of all shards together


@dataclass(frozen=True)
class TablesConfig:
    features: RowsConfig = field(default_factory=RowsConfig)
    items: RowsConfig = field(default_factory=RowsConfig)
    users: RowsConfig = field(default_factory=RowsConfig)


@dataclass(frozen=True)
class ModelConfig(Section):
    section = "model"
    features: str = choice("all", "ids", "ids+history", "all")  # ids | ids+history | all
    dim: int = bounded(16, 1, 1024)  # of a categorical row
    vector_dim: int = bounded(32, 1, 1024)  # of an item vector and the user side
    hidden: tuple[int, ...] = limited(
        (128, 64), lambda sizes: all(1 <= n <= 65_536 for n in sizes), "layers of 1 to 65536"
    )
    # Plug-in that replaces the built-in ranker (recsys/model/ranker.py). Unset, it isn't encoded: digests
    # of the built-in model are those from before there were plug-ins.
    ranker: str | UnsetType = limited(
        UNSET,
        lambda name: name is UNSET or re.fullmatch(r"[^@\s]+@[^@\s]+", name),
        "a plug-in of the group recsys.models and its version, as in sequence@1, or none",
    )
    row_rate: float = positive(0.005)  # row-wise Adagrad
    row_initial: float = 0.01
    vector_initial: float = 0.05  # above 0, or items and users without content never learn
    retrieval_weight: float = 0.2  # of the user side's loss relative to the ranker's
    side_weight: float = 0.3  # of the other labels' loss relative to the first one's
    dense_rate: float = positive(0.0005)  # Adam
    # Factor on dense_rate in the first step of a line; halved by the 50th, and so on.
    dense_first: float = bounded(10.0, 1)
    # Decay per step of the running average of the dense parameters that replicas get; 0 is the newest.
    dense_average: float = limited(0.99, lambda decay: 0 <= decay < 1, "0 (the newest) or more, below 1")
    ttl_s: int = bounded(30 * 24 * 3600, 0)
    seed: int = 0
    tables: TablesConfig = field(default_factory=TablesConfig)


@dataclass(frozen=True)
class ParameterServerConfig(Section):
    section = "parameter_server"
    shards: int = bounded(2, 1)
    # TLS on the shards' sockets. PEM files on each machine: the authority that signed the certificates of
    # shards (empty: the machine's), this machine's certificate, its private key (empty: in cert_file), and
    # the authority that signed those of workers (empty: they need none).
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    # Fp32 | fp16 | int8: rounding of rows for replicas.
    delta_format: str = choice("fp16", "fp32", "fp16", "int8")
    # KiB of rows that a shard publishes per step, the most important first and the rest later; 0 sends all.
    delta_kb: float = bounded(0.0, 0)
    dense_ms: int = bounded(250, 0)  # event time between two steps that send the dense parameters

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_needs("tls", self.tls, "ca_file", "cert_file", "client_ca_file")
        self.check_needs("cert_file", self.cert_file, "key_file")
        check(not self.tls or bool(self.cert_file), "parameter_server.cert_file", self.cert_file,
              "a file with parameter_server.tls")  # fmt: skip


@dataclass(frozen=True)
class TrainerConfig(Section):
    section = "trainer"
    workers: int = bounded(2, 1)
    cpus_per_worker: float = positive(0.3)
    # Or "cuda": holds the network and a lane's rows while it learns.
    device: str = choice("cpu", "cpu", "cuda")
    gpus_per_worker: float = positive(0.5)  # reserved in Ray if ``device`` is "cuda"


@dataclass(frozen=True)
class CovisitConfig(Section):
    section = "covisits"
    # Half-lives in hours: of pairs of items, and of the visits that show what is on the rise.
    pairs_h: float = positive(168.0)
    trend_h: float = positive(24.0)
    items: int = bounded(50_000, 1)  # rows of 3 KiB, in the counters part and in each replica
    users: int = bounded(200_000, 1)  # viewers whose newest items the counters part remembers


INDEXES: Final = ("auto", "flat", "ivf")


@dataclass(frozen=True)
class ServeConfig(Section):
    section = "serve"
    # Address that the API binds to; 0.0.0.0: all of the machine.
    host: str = limited(
        "127.0.0.1",
        re.compile(r"[A-Za-z0-9.:-]+").fullmatch,
        "an address or a name, without a port or brackets",
    )
    port: int = bounded(8000, 0, 65_535)
    replicas: int = bounded(1, 1)
    # With max_replicas above 0, autoscaling keeps target_ongoing requests per replica. A replica leaves
    # after so many seconds without load for it.
    min_replicas: int = bounded(1, 1)
    max_replicas: int = 0
    target_ongoing: float = positive(2.0)
    downscale_s: float = bounded(60.0, 0)
    candidates: int = bounded(300, 1)
    # Part of a source's number of candidates that policy.sources sets; the rest of all follows what viewers
    # engage with. At 1 all are set by hand.
    source_floor: float = bounded(0.5, 0, 1)
    # Ray's, with its API for jobs: some ten processes, and one more Train actor.
    dashboard: bool = True
    dashboard_port: int = bounded(8265, 0, 65_535)
    # Concurrent lists in a replica; fewer if they would wait too long.
    max_ongoing: int = bounded(100, 1)
    # Calls per second of one address; more get 429; 0 is no limit.
    client_rate: float = bounded(0.0, 0)
    # A list that would wait longer than deadline_ms is rejected. With a standing queue, which delays all
    # answers without serving more, the limit is queue_ms.
    deadline_ms: float = positive(250.0)
    queue_ms: float = positive(15.0)
    # With less time than this before the deadline, only short_candidates are ranked.
    rank_ms: float = bounded(20.0, 0)
    short_candidates: int = bounded(100, 1)
    # If examples wait this long without a newly served step, answers say ``stale``.
    stale_s: float = positive(120.0)
    # Vector index: flat scans all items, exactly; ivf scans lists of them, with measured recall; auto is flat
    # up to index_flat_items items, ivf beyond.
    index: str = choice("auto", *INDEXES)
    index_flat_items: int = bounded(50_000, 1)
    # Number of deployments that hold item vectors and index, instead of each replica; 0: each replica.
    retrieval_shards: int = bounded(0, 0, 64)
    # Whether lists that are asked for with an API key count as shown without a word of the viewer's side;
    # set by the app's definition.
    rendered: bool = False
    # Plug-ins that add routes: names of entry points of the group recsys.routes, or module:attribute.
    routes: tuple[str, ...] = ()
    # Plug-ins that change scores or remove candidates, in this order: name@version.
    stages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = self.max_replicas == 0 or self.max_replicas >= self.min_replicas
        check(valid, "serve.max_replicas", self.max_replicas,
              "0 (serve.replicas of them, always) or at least serve.min_replicas")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    name: str = "laptop"
    state: str = "state"  # the state folder
    nodes: int = 1
    clock: ClockConfig = field(default_factory=ClockConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sessions: SessionConfig = field(default_factory=SessionConfig)
    join: JoinConfig = field(default_factory=JoinConfig)
    step: StepConfig = field(default_factory=StepConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parameter_server: ParameterServerConfig = field(default_factory=ParameterServerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    surfaces: dict[str, dict[str, Any]] = field(default_factory=dict)  # overrides of the policy
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    control_room: ControlRoomConfig = field(default_factory=ControlRoomConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    doors: DoorsConfig = field(default_factory=DoorsConfig)
    disk: DiskConfig = field(default_factory=DiskConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    covisits: CovisitConfig = field(default_factory=CovisitConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        check_finite("surfaces", self.surfaces)
        for each in fields(self.workers):
            workers = getattr(self.workers, each.name)
            check(workers <= self.log.partitions, f"workers.{each.name}", workers,
                  f"at most log.partitions, which is {self.log.partitions}")  # fmt: skip
        if self.nodes > 1 and (self.log.url == "sqlite" or self.sessions.url in ("embedded", "sqlite")):
            raise ValueError(
                f"nodes is {self.nodes}, but log.url is {self.log.url!r} and sessions.url is "
                f"{self.sessions.url!r}: files and a loopback Valkey reach one node only; "
                "give kafka://... and redis://..."
            )
        check(self.sessions.url != "sqlite" or self.workers.session_fold == 1, "workers.session_fold",
              self.workers.session_fold, "1, since sessions.url is sqlite")  # fmt: skip
        if self.nodes > 1 and not self.clock.is_machine:
            raise ValueError(
                f"nodes is {self.nodes}, but clock is start {self.clock.start!r}, speed {self.clock.speed}: "
                "processes share that clock through the memory of one machine; set nodes to 1, or leave "
                "clock out"
            )

    @property
    def route_plugins(self) -> tuple[str, ...]:
        """Names of the plug-ins that add routes to the API."""
        compat = self.compat.gorse or self.compat.metarank
        return self.serve.routes + ("gorse_and_metarank",) * compat


def laptop() -> Config:
    """One machine with two cores and no external services. A second worker or shard would share these cores:
    they would take 0.3 and 0.1 GB more and save no time."""
    return replace(
        Config(), parameter_server=ParameterServerConfig(shards=1), trainer=TrainerConfig(workers=1)
    )


def cluster() -> Config:
    """A Ray cluster with Kafka and Redis; set their addresses in a file or the environment."""
    return replace(
        Config(), name="cluster", log=LogConfig(url="kafka://127.0.0.1:9092", partitions=32),
        sessions=SessionConfig(url="redis://127.0.0.1:6379/0"),
        parameter_server=ParameterServerConfig(shards=4),
        trainer=TrainerConfig(workers=4, cpus_per_worker=1.0), step=StepConfig(examples=1024, lanes=8),
        serve=ServeConfig(replicas=2),
    )  # fmt: skip


RUNS = {"laptop": laptop, "cluster": cluster}


def override(config: Any, changes: dict[str, Any]) -> Any:
    """A copy with values replaced by dotted paths: ``{"policy.weights.like": 2.0}``.

    Raises ValueError for an unknown path or a value of another type, naming both.
    """
    for path, value in changes.items():
        config = _set(config, path.split("."), value, path)
    return config


def _set(node: Any, parts: list[str], value: Any, path: str) -> Any:
    head, rest = parts[0], parts[1:]
    if isinstance(node, dict):
        names: list[str] = sorted(node)
        if head not in node and rest:
            raise ValueError(f"{path}: there is no {head!r}; there are {', '.join(names)}")
        return node | {head: _set(node[head], rest, value, path) if rest else value}
    names = [f.name for f in fields(node)] if is_dataclass(node) else []
    if head not in names:
        raise ValueError(f"{path}: there is no {head!r}; there are {', '.join(names)}")
    old = getattr(node, head)
    new = _set(old, rest, value, path) if rest else _as_type_of(old, value, path)
    return replace(node, **{head: new})


def _as_type_of(old: Any, value: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, type(old), strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} is {value!r}: {error}") from None


def named_ports(config: Config) -> dict[str, int]:
    """Ports that the configuration names, by key; all others are chosen among free ones."""
    ports = {
        "serve.port": config.serve.port,
        "serve.dashboard_port": config.serve.dashboard_port,
        "metrics.port": config.metrics.port,
        "control_room.port": config.control_room.port,
        "doors.local_port": config.doors.local_port if config.doors.certificate else 0,
    }
    return {key: port for key, port in ports.items() if port}


def digest(config: Any) -> str:
    """The digest of a configuration: equal values, equal digest. A policy that isn't relative keeps the
    digest that it had before policies could be."""
    parts = msgspec.to_builtins(config, str_keys=True)
    if isinstance(config, PolicyConfig) and not config.relative:
        parts.pop("relative", None)  # absent in one that an earlier version stored
    return digest_of(msgspec.json.encode(parts, order="deterministic"))


def tables_of(config: ModelConfig) -> tuple[TableConfig, ...]:
    """The model's tables: names, dimensions and defaults from the model, the rest from ``model.tables``."""
    dim, rate = config.vector_dim, _VECTOR_RATE
    shapes = (
        ("features", config.dim + 1, config.row_rate, config.row_initial),
        ("items", dim, rate, config.vector_initial),
        ("users", dim, rate, config.vector_initial),
    )
    return tuple(_table(config, *shape) for shape in shapes)


def _table(config: ModelConfig, name: str, dim: int, rate: float, initial: float) -> TableConfig:
    rows: RowsConfig = getattr(config.tables, name)
    return TableConfig(
        name, dim, rows.learning_rate or rate, initial, rows.admit_after,
        config.ttl_s if rows.ttl_s < 0 else rows.ttl_s, rows.budget_mb, rows.sketch_mb,
    )  # fmt: skip
