"""The table of parts: the function each runs, and its dependencies. Dependencies come first."""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from recsys import plugins
from recsys.config.part_configs import ONE_WORKER, WorkersConfig
from recsys.config.system_config import Config
from recsys.log.protocol import LogLost
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Stop, write_atomically
from recsys.process.worker_share import Share, part_of
from runtime.supervision.launch_plan import Plan
from runtime.supervision.supervisor import Part

# Each part's function is imported by name in its own process, so that reading this table is cheap. A name
# without a module is a plug-in.
# A part with a connection to a Ray cluster is bound to it: it ends with that cluster.
# Parts that learn run at a lower priority than parts that answer requests.
_NICE: Final = 5
# Parts that share a process: the path from an event to its step, and parts that mostly wait.
_LEARNING: Final[dict[str, Any]] = {"nice": _NICE, "shares": "learning"}
_WAITING: Final[dict[str, Any]] = {"nice": _NICE, "shares": "waiting"}
# Parts that read all of ``items`` first take about a minute for a million. A replica may read for ten minutes
# (serving/retrieval/ray_retrieval.py) before it answers.
_READ_S: Final = 720.0
_PARTS: Final = (
    Part("broker", "runtime.parts.broker:run", in_memory=True),
    Part("log", "runtime.supervision.part_table:create_log", ("broker",), ("broker",), once=True),
    Part("valkey", "runtime.parts.valkey:run"),
    Part("ray", "runtime.parts.ray_head:run", grace_s=15),
    Part("shards", "runtime.parts.shards:run", ("log", "ray"), ("ray",), grace_s=20),
    Part("session-fold", "runtime.parts.folds:sessions", ("log", "valkey"), ready_s=_READ_S),
    Part("counters", "runtime.parts.folds:counters", ("log",), ready_s=_READ_S, **_LEARNING),
    Part("joiner", "training.joining.joiner_loop:run", ("log",), **_LEARNING),
    Part("sentinel", "sentinel", ("log",), **_WAITING),
    Part("archive", "training.archive_part:run", ("log",), **_WAITING),
    Part("sequencer", "training.steps.sequencer_loop:run", ("log",), **_LEARNING),
    Part("director", "training.candidates.director:run", ("log",), **_WAITING),
    Part("shadow", "training.candidates.shadow_part:run", ("log",), **_WAITING),
    # Ray Train takes about twenty seconds to start, so only the viewers wait for these two.
    Part("trainer", "training.continual.driver:run", ("log", "shards"), ("ray",), False, 180, 20, nice=_NICE),
    Part("serve", "runtime.parts.serve:run", ("log", "valkey", "ray"), ("ray",), False, _READ_S, 20),
    Part("viewers", "viewers", ("serve",)),
    Part("metrics", "runtime.parts.metrics:run", ("log",), **_WAITING),
    Part("control-room", "runtime.control_room.part:run", ("log",), **_WAITING),
)
_OPTIONAL: Final = {"broker", "valkey", "ray", "viewers", "metrics", "control-room", "sentinel"}
NAMES: Final = tuple(part.name for part in _PARTS)


def table(plan: Plan, workers: WorkersConfig = ONE_WORKER) -> list[Part]:
    """Parts of a plan; the optional ones only where it names them. A part with several workers is listed once
    for each, as ``joiner.0``. Raises ValueError for a plug-in that isn't installed."""
    wanted = set(plan.embedded) | ({"viewers"} if plan.viewers > 0 else set())
    wanted |= {"metrics"} if plan.metrics else set()
    wanted |= {"control-room"} if plan.control_room else set()
    wanted |= {"sentinel"} if plan.sentinel else set()
    absent = _OPTIONAL - wanted
    named = [_without(part, absent) for part in _PARTS if part.name not in absent]
    parts = [
        replace(part, name=name, shares=part.shares if name == part.name else "")
        for part in named
        for name in workers.names(part.name)
    ]
    for part in parts:
        plugins.find(plugins.PARTS, part.target)
    if not plan.only:
        return parts
    needed = _with_needs(parts, plan.only)
    return [part for part in parts if part.name in needed]


def _without(part: Part, absent: set[str]) -> Part:
    needs = tuple(name for name in part.needs if name not in absent)
    bound = tuple(name for name in part.bound if name not in absent)
    return replace(part, needs=needs, bound=bound)


def _with_needs(parts: Iterable[Part], names: Iterable[str]) -> set[str]:
    by_name = {part.name: part for part in parts}
    needed: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        processes = [part for part in by_name.values() if name in (part.name, part_of(part.name))]
        if not processes:
            raise ValueError(f"there is no part {name!r}, expected one of {', '.join(by_name)}")
        for part in processes:
            if part.name not in needed:
                needed.add(part.name)
                queue.extend((*part.needs, *part.bound))
    return needed


def niceness(name: str) -> int:
    """Nice value of a part's process. Raises ValueError for a name that isn't in the table."""
    return _named(name).nice


def body(name: str, workers: WorkersConfig = ONE_WORKER) -> Callable[[Config, Stop], None]:
    """Imports and returns a part's function, bound to its share if it is a worker. Raises ValueError for a
    name that isn't in the table."""
    loop: Callable[..., None] = plugins.load(plugins.PARTS, _named(name).target)
    part, dot, index = name.partition(".")
    if name not in (names := workers.names(part)):
        raise ValueError(f"there is no part {name!r}, expected {' or '.join(names)}")
    return partial(loop, share=Share(int(index), len(names))) if dot else loop


def _named(name: str) -> Part:
    for part in _PARTS:
        if part.name == part_of(name):
            return part
    raise ValueError(f"there is no part {name!r}, expected one of {', '.join(NAMES)}")


def create_log(config: Config, stop: Stop) -> None:
    """Creates missing topics; this part runs once.

    Raises LogLost where the state folder belongs to another log: its sessions, counters and model came from
    that one.
    """
    with closing(open_log(config)) as log:
        _check_same_log(Path(config.state) / "log.id", log.id, config.log.url)
        create_topics(log, config)


def _check_same_log(file: Path, log_id: str, url: str) -> None:
    recorded = file.read_text().strip() if file.exists() else ""  # a power cut may have emptied it
    if recorded and recorded != log_id:
        raise LogLost(
            f"{file.parent} holds the state of log {recorded}, and the log at {url} is {log_id}: it was "
            "removed or replaced, or an in-memory broker ended. Restore it, or use a new state folder"
        )
    if not recorded:
        write_atomically(file, log_id.encode(), sync=True)
