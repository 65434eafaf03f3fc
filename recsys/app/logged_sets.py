"""Feature sets that a system's log was written with: that of the state folder's file, and those taken up
since, by the ``control`` topic."""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from recsys.events.control_records import Control, Definition
from recsys.events.event_types import FeatureBlock
from recsys.events.records import CONTROL
from recsys.features.feature_set import FeatureSet, read_set
from recsys.log.protocol import Log
from recsys.model.wider_set import Narrowing, covers
from recsys.process.log_consumer import readable


def taken_up(log: Log) -> dict[str, FeatureSet]:
    """Sets that ``control`` names, by digest: those logged since, and the first."""
    records = _definitions(log)
    return _by_digest(text for record in records for text in (record.before, record.logged))


def defined(log: Log) -> dict[str, FeatureSet]:
    """Sets that models may read, by digest: those that ``control`` defines, and the first."""
    records = _definitions(log)
    return _by_digest(text for record in records for text in (record.before, record.reads))


def _definitions(log: Log) -> list[Definition]:
    return [r for r in readable(log, CONTROL, Control) if isinstance(r, Definition)]


def _by_digest(texts: Iterable[str]) -> dict[str, FeatureSet]:
    return {features.digest: features for features in map(read_set, texts)}


class BlockReader:
    """Reads logged blocks of any set as those of ``features``."""

    def __init__(self, log: Log | None, features: FeatureSet) -> None:
        """``log``: whose ``control`` names the other sets; None: there are none."""
        self._log, self._features = log, features
        self._narrowings: dict[str, Narrowing | None] = {features.digest: None}

    def choice(self, digest: str, rows: bytes) -> bytes:
        """Rows of a choice (recsys/model/choice_model.py) of the set ``digest``, as of ``features``."""
        narrowing = self._narrowings.get(digest)
        if narrowing is None or not rows:
            return rows
        columns = np.concatenate([[0], 1 + narrowing.columns])
        with suppress(ValueError, IndexError):
            all_R = np.frombuffer(rows, np.float32).reshape(-1, 1 + narrowing.width)
            return all_R[:, columns].tobytes()
        return b""

    def read(self, block: FeatureBlock) -> FeatureBlock:
        """The block of one item as of ``features``; unchanged if its set lacks something or is unknown, or if
        its arrays aren't those of its set."""
        digest = block.feature_set
        if digest not in self._narrowings:  # the record that introduces a set precedes its blocks
            wide = None if self._log is None else taken_up(self._log).get(digest)
            reads = wide is not None and covers(wide, self._features)
            self._narrowings[digest] = Narrowing(wide, self._features) if wide and reads else None
        narrowing = self._narrowings[digest]
        with suppress(ValueError, IndexError):
            return block if narrowing is None else narrowing.block(block)
        return block
