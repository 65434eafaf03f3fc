"""The partitions of a fold that one of its workers has, and the locks that keep each to one worker."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recsys.process.part_process import run_folder


@dataclass(frozen=True)
class Share:
    """Worker ``index`` of ``workers``."""

    index: int = 0
    workers: int = 1

    @property
    def whole(self) -> bool:
        return self.workers == 1

    @property
    def first(self) -> bool:
        return self.index == 0

    def partitions(self, count: int) -> list[int]:
        """Partitions, of ``count``, that are equal to the index modulo the number of workers."""
        return list(range(self.index, count, self.workers))

    def has(self, partition: int) -> bool:
        return partition % self.workers == self.index


WHOLE: Final = Share()


def part_of(name: str) -> str:
    """The part of a process: ``joiner`` of ``joiner.1``."""
    return name.partition(".")[0]


@contextmanager
def leased(state: str | Path, part: str, partitions: Sequence[int]) -> Iterator[None]:
    """Locks partitions of a part for this process, until it ends in whatever way. Raises RuntimeError where
    another process has one."""
    with ExitStack() as stack:
        for partition in partitions:
            path = run_folder(state) / f"{part}-{partition}.lease"
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"partition {partition} of {part} belongs to another process, which has locked {path}: "
                    "end that one, or this"
                ) from None
        yield
