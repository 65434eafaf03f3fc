"""Folds what an import wrote into sessions and counters, in a process beside the training.

The folds are the live parts'. They leave their snapshots in the state folder, so the live parts begin at the
log's end instead of folding all of it again.
"""

import multiprocessing
from contextlib import ExitStack
from dataclasses import replace

from recsys.config.system_config import Config
from runtime.parts.folds import with_archive
from serving.sessions import counter_loop, session_loop


def fold_history(config: Config) -> int:
    """Folds up to the log's end; returns the number of records. The system mustn't run."""
    config, whole, moved = of_files(config), with_archive(config), 0
    with ExitStack() as stack:
        opened = (session_loop.opened, counter_loop.opened)
        for fold in [stack.enter_context(each(config, whole=whole)) for each in opened]:
            while records := fold.turn():
                moved += records
    return moved


def of_files(config: Config) -> Config:
    """The configuration with sessions in a file of the state folder, from where any store takes them over."""
    return replace(config, sessions=replace(config.sessions, url="sqlite", cluster=False))


class HistoryFolds:
    """``fold_history`` in a process of its own. ``finish`` waits for it; without it the process ends with the
    caller, and the live parts fold what is left."""

    def __init__(self, config: Config) -> None:
        self._process = multiprocessing.get_context("spawn").Process(
            target=fold_history, args=(config,), daemon=True
        )
        self._process.start()

    def finish(self) -> bool:
        """Waits; returns whether all is folded."""
        self._process.join()
        return self._process.exitcode == 0
