"""Parts to kill, and what must hold of a log after kills."""

import time

from recsys.events.event_types import Engagement, decode
from recsys.events.records import EVENTS, EXAMPLES, Example, non_example, unpack
from recsys.process.open_log import open_log
from tests.support.systems.live_system import LiveSystem, until
from training.archive.writer import archived_rows

# Between two kills: a part may or may not be back by then.
PAUSE_S, RAY_PAUSE_S = 1.5, 3.0
# Parts that restart within a second or two.
LIGHT = ("session-fold", "counters", "joiner", "archive", "sequencer", "director", "valkey")
# Processes that Ray runs: part and words of the command line.
WITHIN = (("ray", "ShardActor"), ("ray", "ServeReplica"), ("ray", "RayTrainWorker"), ("ray", "haproxy.cfg"))


def kill_light_parts(system: LiveSystem) -> None:
    for name in LIGHT:
        system.kill_part(name)
        time.sleep(PAUSE_S)


def kill_within_ray(system: LiveSystem) -> None:
    for part, words in WITHIN:
        system.kill_within(part, words)
        time.sleep(RAY_PAUSE_S)
    system.wait_ready()


def learned_all(system: LiveSystem) -> int:
    """Waits until every event is joined, learned and served; returns the served step."""
    log = open_log(system.config)
    try:

        def ends() -> list[int]:
            return [log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))]

        def settled() -> bool:
            before = ends()
            time.sleep(1.5)
            return before == ends()

        until(settled, 60, "examples settle")
    finally:
        log.close()
    time.sleep(1.5)
    return system.version()["step"]


def check_archive(system: LiveSystem, acknowledged: set[str]) -> None:
    def missing() -> set[str]:
        rows = archived_rows(system.state / "archive", EVENTS, ["value"])
        events = (decode(value) for (value,) in rows)
        archived = {str(e.event_id) for e in events if isinstance(e, Engagement)}
        return acknowledged - archived

    until(lambda: not missing(), 30, "the archive has all that was acknowledged")
    assert len(acknowledged) > 100


def check_examples_once(system: LiveSystem) -> None:
    log = open_log(system.config)
    try:
        for partition in range(log.partitions(EXAMPLES)):
            examples, sequences, offset = (list[Example](), list[int](), log.begin(EXAMPLES, partition))
            while records := log.read(EXAMPLES, partition, offset):
                for record in records:
                    tombstone = non_example(record.value)
                    example = unpack(record.value, Example) if tombstone is None else None
                    examples += [example] if example else []
                    sequences.append((tombstone or example).sequence)
                offset = records[-1].offset + 1
            assert sequences == list(range(1, len(sequences) + 1)), "each once, in order"
            first = [(e.offset, e.index) for e in examples if not e.correction]
            assert len(first) == len(set(first)), "no shown item twice"
    finally:
        log.close()
