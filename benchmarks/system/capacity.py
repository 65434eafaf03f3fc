"""A plan of machines for a load, from unit costs that ``recsys bench units`` measured. Pure.

Costs grow in proportion to the load. A part that is one process ends at one core, a fold with workers at one
core for each partition, shadow scoring at one for each candidate, since a candidate learns all examples in
their order; replicas end at the memory of a machine. The first part to break is that whose limit is the
smallest share of what the load needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Any, Final

_ACTIVE: Final = 0.1  # share of the users who have a session in the store
_RETENTION_S: Final = 72 * 3_600
_LANES: Final = 64  # most workers of a training step
_READING: Final = 0.5  # share of a replica's time that it may read what others learned and counted
_MEMORY: Final = 0.8  # share of a machine's memory that may be used
Costs = Mapping[str, float]


@dataclass(frozen=True)
class Load:
    """Rates a second at the peak, and totals. ``events``: with a list's impression as one of them.
    ``candidates``: lines that learn beside live."""

    events: float
    requests: float
    users: float
    items: float
    candidates: int = 1


@dataclass(frozen=True)
class Machine:
    """A machine of the plan. ``busy``: share of a core that may be used at the peak."""

    cores: int = 32
    memory_gb: float = 128.0
    busy: float = 0.7


@dataclass(frozen=True)
class PartNeed:
    """Needs of a part. ``most_cores``: that it can use, however many machines there are."""

    part: str
    cores: float
    most_cores: float = inf
    processes: int = 1
    memory_gb: float = 0.0
    most_memory_gb: float = inf  # of one process
    disk_gb: float = 0.0
    network_mb_s: float = 0.0
    machines: int = 1  # that it needs at least

    @property
    def share(self) -> float:
        """The part's limit as a share of its need: below 1 it breaks."""
        by_cores = self.most_cores / self.cores if self.cores else inf
        by_memory = self.most_memory_gb * self.processes / self.memory_gb if self.memory_gb else inf
        return min(by_cores, by_memory)


@dataclass(frozen=True)
class Demand:
    """A load in the units of the costs: records and bytes a second, and bytes of a row of each kind."""

    load: Load
    costs: Costs
    machine: Machine

    @property
    def examples(self) -> float:
        return self.engagements / self.costs["engagements_an_example"]

    @property
    def engagements(self) -> float:
        return max(0.0, self.load.events - self.load.requests)

    @property
    def event_bytes(self) -> float:
        lists = self.load.requests * self.costs["impression_bytes"]
        return lists + self.engagements * self.costs["engagement_bytes"]

    @property
    def example_bytes(self) -> float:
        return self.examples * self.costs["example_bytes"]

    @property
    def published_bytes(self) -> float:
        """Deltas and item counters."""
        states = self.load.events * self.costs["item_state_bytes_an_event"]
        return self.examples * self.costs["delta_bytes_an_example"] + states

    def seconds(self, part: str, rate: float) -> float:
        """Cores that a part needs for so many units a second."""
        return rate * self.costs[f"{part}_us"] / 1e6

    def row_gb(self, where: str) -> float:
        users = self.load.users * self.costs[f"{where}_users_row_bytes"]
        return (users + self.load.items * self.costs[f"{where}_items_row_bytes"]) / 1e9

    @property
    def shared_gb(self) -> float:
        """Mapped files that the replicas of a machine share: rows and catalogue. Users' rows lie at random,
        so that those of a tenth of the users lie in nearly all pages."""
        catalogue = self.load.items * self.costs["catalogue_shared_bytes_an_item"]
        return self.row_gb("replica") + catalogue / 1e9

    @property
    def own_gb(self) -> float:
        """Memory that each replica has of its own."""
        catalogue = self.load.items * self.costs["catalogue_own_bytes_an_item"]
        return (self.costs["replica_process_bytes"] + catalogue) / 1e9


def needs(demand: Demand, partitions: int, copies: int) -> list[PartNeed]:
    """Needs of each part under the load."""
    return [*_replicas(demand), *_folds(demand, partitions), _learning(demand), *_stores(demand, copies)]


def _replicas(demand: Demand) -> list[PartNeed]:
    """Answers, and what each replica reads of all that others counted and learned."""
    load, machine = demand.load, demand.machine
    serving = demand.seconds("answer", load.requests) + demand.seconds("write", demand.engagements)
    following = demand.seconds("follow", demand.examples)
    answering = machine.busy - min(following, machine.busy * _READING)
    replicas = max(1, ceil(serving / answering))
    read_mb_s = demand.published_bytes / 1e6
    by_cores = ceil((serving + replicas * following) / machine.busy / machine.cores)
    usable_gb = machine.memory_gb * _MEMORY
    fitting = max(1, floor((usable_gb - demand.shared_gb) / demand.own_gb))  # replicas of a machine
    hosts = max(1, by_cores, ceil(replicas / fitting))
    return [
        PartNeed("replicas", serving, processes=replicas),
        PartNeed("replicas' memory", 0.0, processes=hosts,
                 memory_gb=hosts * demand.shared_gb + replicas * demand.own_gb,
                 most_memory_gb=usable_gb, machines=hosts),
        PartNeed("replicas' reading", replicas * following, replicas * machine.busy * _READING,
                 network_mb_s=replicas * read_mb_s),
    ]  # fmt: skip


def _folds(demand: Demand, partitions: int) -> list[PartNeed]:
    """Folds of events and examples, each with the most processes that it can have."""
    events, learned = demand.event_bytes, demand.example_bytes
    rate, busy, lines = demand.load.events, demand.machine.busy, demand.load.candidates
    sessions = rate * demand.costs["session_bytes"]  # each event writes its user's session
    rows = [
        ("session_fold", rate, partitions, events + sessions),
        ("joiner", rate, partitions, events + learned),
        ("counters", rate, partitions, events + demand.published_bytes),
        ("counter_sums", rate, 1, 2 * demand.published_bytes),
        ("sequencer", demand.examples, 1, learned),
        ("archive", rate + demand.examples, partitions, events + learned),
        ("shadow", lines * demand.examples, lines, lines * learned),
    ]
    parts = []
    for part, units, most, moved in rows:
        cores = demand.seconds(part, units)
        processes = max(1, min(ceil(cores / busy), most))
        parts.append(PartNeed(part, cores, most * busy, processes, network_mb_s=moved / 1e6))
    return parts


def _learning(demand: Demand) -> PartNeed:
    """Workers and shards."""
    cores, busy = demand.seconds("learn", demand.examples), demand.machine.busy
    return PartNeed(
        "learning", cores, _LANES * busy, max(1, ceil(cores / busy)), demand.row_gb("shard"),
        network_mb_s=(demand.example_bytes + demand.published_bytes) / 1e6,
    )  # fmt: skip


def _stores(demand: Demand, copies: int) -> list[PartNeed]:
    """Memory and disk of sessions and log; the processor time of their servers isn't measured."""
    sessions_gb = demand.load.users * _ACTIVE * demand.costs["session_bytes"] / 1e9
    logged = demand.event_bytes + demand.example_bytes
    written = logged + demand.published_bytes
    return [
        PartNeed("session store", 0.0, memory_gb=sessions_gb),
        PartNeed(
            "log", 0.0, disk_gb=copies * _RETENTION_S * logged / 1e9, network_mb_s=copies * written / 1e6
        ),
    ]


def plan(demand: Demand, partitions: int, copies: int, price: float) -> dict[str, Any]:
    """Machines, cost and the first part to break. ``copies``: of the log; ``price``: of a core-hour."""
    parts, machine = needs(demand, partitions, copies), demand.machine
    cores, memory_gb = sum(p.cores for p in parts), sum(p.memory_gb for p in parts)
    machines = ceil(
        max(
            cores / machine.busy / machine.cores,
            memory_gb / _MEMORY / machine.memory_gb,
            *(part.machines for part in parts),
        )
    )
    first = min(parts, key=lambda part: part.share)
    return {
        "parts": {part.part: _row(part) for part in parts},
        "cores": round(cores, 1),
        "memory_gb": round(memory_gb, 1),
        "disk_tb": round(sum(part.disk_gb for part in parts) / 1e3, 1),
        "network_mb_s": round(sum(part.network_mb_s for part in parts), 1),
        "machines": machines,
        "cost_an_hour": round(machines * machine.cores * price, 2),
        "first_to_break": first.part,
        "holds_up_to_share": round(first.share, 3),
        "breaking": [part.part for part in parts if part.share < 1],
    }


def _row(part: PartNeed) -> dict[str, float]:
    return {
        "cores": round(part.cores, 2), "processes": part.processes,
        "memory_gb": round(part.memory_gb, 2), "disk_gb": round(part.disk_gb, 1),
        "network_mb_s": round(part.network_mb_s, 1), "limit_share": round(min(part.share, 1e6), 3),
    }  # fmt: skip
