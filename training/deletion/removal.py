"""Removes what a replay without some examples has replaced: snapshots, write-ahead files, lines beside the
live one, and at last the examples."""

from collections.abc import Sequence
from pathlib import Path

from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from recsys.events.control_records import Unlearning
from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from training.deletion.erasure import changes_records
from training.deletion.log_without import LogWithout, keys_by_partition
from training.deletion.tombstones import UnlearnedPlaces
from training.lines.line import MAIN


def remove_replaced(state: Path, lifecycle: Lifecycle, replaced: Sequence[tuple[int, int]] = ()) -> None:
    """Removes files of the live line with influence of unlearned users: the snapshots of earlier epochs from
    their first example on, and write-ahead files; and the snapshots of epochs that never were live, nor may
    become. ``replaced``: (epoch, first step) beside those of requests that are done."""
    used = {0, *(live.epoch for live in lifecycle.lives)}
    used |= {standing.epoch for standing in lifecycle.active}
    used |= lifecycle.unlearnings.epochs
    over = [request for request in lifecycle.unlearnings.done if request.first]
    bounds = [*replaced, *((u.epoch, u.first) for u in over)]
    if not bounds:
        return

    def is_replaced(epoch: int, step: int) -> bool:
        return epoch not in used or any(epoch < e and step >= first for e, first in bounds)

    snapshots.remove_where(state / "snapshots", MAIN, is_replaced)
    for file in (state / "parts" / "shards").glob(f"{MAIN}-[0-9]*-*"):
        if int(file.name.removeprefix(f"{MAIN}-").partition("-")[0]) < max(e for e, _ in bounds):
            file.unlink(missing_ok=True)


def remove_ended_lines(state: Path, lifecycle: Lifecycle) -> None:
    """Removes the snapshots of lines that ended: candidates and arms learned from the users, too."""
    for standing in lifecycle.candidates.values():
        if not standing.active:
            snapshots.remove(state / "snapshots", standing.line)


def erase_examples(log: Log, state: str, request: Unlearning) -> bool:
    """Erases the examples that a request leaves out, once no line learns them again; False if the log can't
    be changed."""
    if not changes_records(log):
        return False
    view, unlearned = LogWithout(log, [request]), UnlearnedPlaces(log, state)
    for partition in keys_by_partition(log, request.users):
        tombstones = view.tombstones(partition, request.users)
        unlearned.note(partition, [record.offset for record in tombstones])
        log.replace(EXAMPLES, partition, tombstones)
    return True
