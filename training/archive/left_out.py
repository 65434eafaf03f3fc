"""Archived examples that nothing may learn: of users who were forgotten, and those that withdrawals name."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.events.records import Withdrawn, unpack
from recsys.events.withdrawal import withdraws_item
from training.archive.files import ArchiveFile

COLUMNS: Final = ("user_id", "request_id", "item_id", "time_ms")  # that ``LeftOut.learnable`` reads
_MARKS: Final = pa.array(["forget", "withdrawn"], pa.large_string())
ReadTable = Callable[[Path, list[str]], pa.Table]


@dataclass
class LeftOut:
    """By (partition, user): the offset before which nothing may be learned, and the offsets and contents of
    withdrawals' marks."""

    forgotten: dict[tuple[int, str], int] = field(default_factory=dict)
    withdrawn: dict[tuple[int, str], list[tuple[int, Withdrawn]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @staticmethod
    def read(files: Sequence[ArchiveFile], read_table: ReadTable) -> "LeftOut":
        """Reads the marks in all files of examples: they follow the examples that they are about."""
        left_out = LeftOut()
        for file in files:
            table = read_table(file.path, ["offset", "type", "user_id", "value"])
            for row in table.filter(pc.is_in(table["type"], _MARKS)).to_pylist():
                about, offset = (file.partition, str(row["user_id"])), int(row["offset"])
                if row["type"] == "forget":
                    left_out.forgotten[about] = offset
                else:
                    mark = unpack(row["value"], Withdrawn)
                    left_out.withdrawn[about].append((offset, mark))
        return left_out

    def marks(self) -> list[tuple[int, str, int]]:
        """All marks, in order."""
        marks = [(*about, offset) for about, offset in self.forgotten.items()]
        marks += [(*about, at) for about, marked in self.withdrawn.items() for at, _ in marked]
        return sorted(marks)

    def learnable(self, partition: int, offsets: NDArray[np.int64], table: pa.Table) -> NDArray[np.bool_]:
        """Whether examples of a partition may be learned. ``table``: ``COLUMNS`` of the same rows."""
        if not self.forgotten and not self.withdrawn:
            return np.ones(len(offsets), np.bool_)
        stays = np.empty(len(offsets), np.bool_)
        columns = (table.column(name).to_pylist() for name in COLUMNS)
        for row, (user, request_id, item_id, time_ms) in enumerate(zip(*columns, strict=True)):
            about, offset = (partition, str(user)), int(offsets[row])
            stays[row] = offset >= self.forgotten.get(about, -1) and not any(
                offset < end
                and time_ms >= mark.from_ms
                and withdraws_item(mark.requests, request_id, item_id)
                for end, mark in self.withdrawn.get(about, ())
            )
        return stays
