"""Plug-ins for recsys-swipe. Each is a function with a version: change the version with the results."""

import re
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.features.request_features import RequestFeatures
from replay.datasets.log_files import open_file
from replay.datasets.table_rows import ROWS, BadRow, Block
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates

SHORT_FIRST: Final = "short_first@1"


class Likeness:
    """Operator: how near two numbers are, 1 where they are equal, 0 far away."""

    version = "1"
    columns = 2

    def __call__(self, *columns_N: NDArray[np.float32]) -> NDArray[np.float32]:
        first_N, second_N = columns_N
        near_N: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.abs(first_N - second_N))
        return near_N


class AccessLog:
    """Reader of a web server's log, with the user whom the server authenticated::

    127.0.0.1 - ana [10/Oct/2026:13:55:36 +0000] "GET /items/v7 HTTP/1.1" 200 2326

    Columns: ``user``, ``item`` (the last part of the path) and ``time`` (ISO 8601). Of failed requests and
    requests for other pages there are no rows.
    """

    sample = (
        b'127.0.0.1 - ana [10/Oct/2026:13:55:36 +0000] "GET /items/v7 HTTP/1.1" 200 2326\n'
        b'127.0.0.1 - ana [10/Oct/2026:13:55:37 +0000] "GET /style.css HTTP/1.1" 200 90\n'
        b"nothing that a server writes\n"
        b'127.0.0.1 - bo [10/Oct/2026:13:56:01 +0200] "GET /items/v8?from=home HTTP/1.1" 200 12\n'
    )
    _LINE: Final = re.compile(
        r'\S+ \S+ (?P<user>\S+) \[(?P<time>[^]]+)\] "\w+ (?P<path>[^ ?"]*)[^"]*" (?P<status>\d+) '
    )

    def __call__(self, file: Path) -> Iterator[Block]:
        with open_file(file) as stream:
            numbered = enumerate(stream, 1)
            while some := list(islice(numbered, ROWS)):
                block = Block([], {"user": [], "item": [], "time": []}, [])
                for line, raw in some:
                    self._add(block, line, raw.decode("utf-8", "replace").strip())
                yield block

    def _add(self, block: Block, line: int, text: str) -> None:
        match = self._LINE.match(text)
        try:
            if match is None:
                raise ValueError("it isn't in the common log format")
            time = datetime.strptime(match["time"], "%d/%b/%Y:%H:%M:%S %z")
        except ValueError as error:
            block.bad.append(BadRow(line, "expected a request", str(error), text[:200]))
            return
        folder, _, item = match["path"].rpartition("/")
        if folder.endswith("/items") and item and match["status"] == "200":
            block.lines.append(line)
            row = {"user": match["user"], "item": item, "time": time.isoformat()}
            for name, value in row.items():
                block.columns[name].append(value)


class SameAuthor:
    """Source: items of the authors of the three items that the viewer saw last, the newest first. The first
    of the app's ``groups`` counts as the author."""

    version = "1"

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> NDArray[np.int64]:
        parts = [np.empty(0, np.int64)]
        newest = list(query.session.history)[-3:]
        authors = [key for entry in reversed(newest) for key in entry.keys[1:2]]
        for author in dict.fromkeys(authors):
            items = replica.groups.members(author)
            parts.append(items[allowed[items]][::-1])
        return np.concatenate(parts)[:k]


class ShortFirst:
    """Stage: lowers the score by 0.05 for each minute that an item lasts, by its field ``duration_ms``."""

    version = "1"

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        fields = (replica.catalogue.fields[index] for index in candidates.indices_N)
        minutes_N = np.array([_minutes(one.get("duration_ms")) for one in fields])
        return candidates.add_scores(SHORT_FIRST, -0.05 * minutes_N)


def _minutes(duration_ms: Any) -> float:
    return duration_ms / 60_000 if isinstance(duration_ms, int | float) else 0.0


likeness, access_log, same_author, short_first = Likeness(), AccessLog(), SameAuthor(), ShortFirst()
