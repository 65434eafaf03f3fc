"""Names of the folds that keep retention from dropping records of a topic, and the end of a backup's hold."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from recsys.events.records import topics
from recsys.log.protocol import Log
from recsys.process.part_process import run_folder

BACKUP: Final = "backup"  # name of the hold of `recsys backup`
TOPICS: Final = [topic.name for topic in reversed(topics(1))]  # derived ones before their sources
_HOUR_MS: Final = 3_600_000


@contextmanager
def backup_lock(state: Path | str, wait: bool = True) -> Iterator[bool]:
    """Locks a state folder against backups, and waits for one that runs; without ``wait`` yields whether
    there was none. The lock ends with the process, however that ends."""
    with (run_folder(state) / "backup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def end_dead_backup(log: Log, state: Path | str) -> None:
    """Releases the hold of a backup that was killed."""
    held = [t for t in TOPICS if any(BACKUP in log.holds(t, p) for p in range(log.partitions(t)))]
    if held:
        with backup_lock(state, wait=False) as is_dead:
            for topic in held if is_dead else ():
                log.release(BACKUP, topic)


def holders(log: Log, topic: str, now_ms: int) -> list[str]:
    """The lowest hold of each partition that begins where retention has come to, with its age if the log
    knows append times. A hold named after the topic is its writer's, for readers that start."""
    texts = []
    for partition in range(log.partitions(topic)):
        begin, all_holds = log.begin(topic, partition), log.holds(topic, partition)
        holds = {name: at for name, at in all_holds.items() if not name.startswith(topic)}
        name = min(holds, key=holds.__getitem__, default="")
        if not name or holds[name] > begin or begin == log.end(topic, partition):
            continue
        text = f"{name} holds {topic}/{partition}"
        appended_ms = getattr(log, "appended_ms", lambda *_: None)(topic, partition, begin)
        if appended_ms is not None:
            text += f" since {(now_ms - appended_ms) / _HOUR_MS:.0f} h"
        texts.append(text)
    return texts
