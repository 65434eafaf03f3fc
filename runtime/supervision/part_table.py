"""The table of parts: what each runs, needs and is bound to. In order: what is needed stands first."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from recsys.log.protocol import LogLost
from recsys.process.part_process import Stop, write_atomically
from runtime.supervision.launch_plan import Plan
from runtime.supervision.supervisor import Part

# The parts' bodies are imported by name in their own process, so that this table costs nothing to read.
# What holds a connection to a Ray cluster ends with that cluster: it is bound to it.
# What learns steps back for what answers.
_LATER: Final = 5
_PARTS: Final = (
    Part("broker", "runtime.parts.broker:run", in_memory=True),
    Part("log", "runtime.supervision.part_table:create_log", ("broker",), ("broker",), once=True),
    Part("valkey", "runtime.parts.valkey:run"),
    Part("ray", "runtime.parts.ray_head:run", grace_s=15),
    Part("shards", "runtime.parts.shards:run", ("log", "ray"), ("ray",), grace_s=20),
    Part("session-fold", "serving.sessions.session_loop:run", ("log", "valkey")),
    Part("counters", "serving.sessions.counter_loop:run", ("log",), nice=_LATER),
    Part("joiner", "training.joining.joiner_loop:run", ("log",), nice=_LATER),
    Part("archive", "training.archive_part:run", ("log",), nice=_LATER),
    Part("sequencer", "training.steps.sequencer_loop:run", ("log",), nice=_LATER),
    Part("director", "training.candidates.director:run", ("log",), nice=_LATER),
    Part("shadow", "training.candidates.shadow_loop:run", ("log",), nice=_LATER),
    # Ray Train alone takes some twenty seconds, so nothing but viewers waits for these two.
    Part(
        "trainer", "training.continual.driver:run", ("log", "shards"), ("ray",), False, 180, 20,
        nice=_LATER,
    ),
    Part("serve", "runtime.parts.serve:run", ("log", "valkey", "shards"), ("ray",), False, 180, 20),
    Part("viewers", "runtime.parts.viewers:run_part", ("serve",)),
    Part("metrics", "runtime.parts.metrics:run", ("log",), nice=_LATER),
    Part("control-room", "runtime.control_room.part:run", ("log",), nice=_LATER),
)  # fmt: skip
_OPTIONAL: Final = {"broker", "valkey", "ray", "viewers", "metrics", "control-room"}
NAMES: Final = tuple(part.name for part in _PARTS)


def table(plan: Plan) -> list[Part]:
    """The parts of a plan: embedded services only where they are ours, viewers, metrics and control
    room only where asked for."""
    wanted = set(plan.embedded) | ({"viewers"} if plan.viewers > 0 else set())
    wanted |= {"metrics"} if plan.metrics else set()
    wanted |= {"control-room"} if plan.control_room else set()
    absent = _OPTIONAL - wanted
    parts = [_without(part, absent) for part in _PARTS if part.name not in absent]
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
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise ValueError(f"there is no part {name!r}, expected one of {', '.join(by_name)}")
        if name not in found:
            found.add(name)
            waiting.extend((*by_name[name].needs, *by_name[name].bound))
    return found


def niceness(name: str) -> int:
    """How far a part steps back. Raises ValueError for a name that isn't in the table."""
    return _named(name).nice


def body(name: str) -> Callable[[Config, Stop], None]:
    """A part's function, imported now. Raises ValueError for a name that isn't in the table."""
    module, _, function = _named(name).target.partition(":")
    found: Callable[[Config, Stop], None] = getattr(importlib.import_module(module), function)
    return found


def _named(name: str) -> Part:
    for part in _PARTS:
        if part.name == name:
            return part
    raise ValueError(f"there is no part {name!r}, expected one of {', '.join(NAMES)}")


def create_log(config: Config, stop: Stop) -> None:
    """The part that runs once: creates the topics, where they aren't there. Raises LogLost where the state
    folder was used with another log: sessions, counters and the model came from that one."""
    from recsys.process.open_log import create_topics, open_log

    log = open_log(config)
    try:
        _same_log(Path(config.state) / "log.id", log.id, config.log.url)
        create_topics(log, config)
    finally:
        log.close()


def _same_log(file: Path, log_id: str, url: str) -> None:
    known = file.read_text().strip() if file.exists() else ""  # a power cut may have emptied it
    if known and known != log_id:
        raise LogLost(
            f"{file.parent} holds the state of log {known}, and the log at {url} is {log_id}: it was removed "
            "or replaced, or a broker in memory ended. Bring it back, or start with a new state folder"
        )
    if not known:
        write_atomically(file, log_id.encode())
