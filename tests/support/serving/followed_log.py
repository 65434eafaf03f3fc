"""A log and a folder of snapshots with a replica that follows them, turn by turn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parameter_server.publish.deltas import seal
from parameter_server.storage.snapshots import write_part
from recsys.config.system_config import Config
from recsys.events.event_types import Item, encode
from recsys.events.hashing import key_of
from recsys.events.records import DELTAS, ITEMS, Delta, TableRows, pack, topics
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.protocol import Append, MemoryLog
from serving.variants.model_variant import ModelVariant

FEATURES = FeatureSet(FEED_SCHEMA)
NOW_MS = 1_790_000_000_000
KEY = key_of("item", "v0")


class FollowedLog:
    """A log, a folder of snapshots, and a replica that follows them."""

    def __init__(self, folder: Path) -> None:
        self.config = replace(Config(), state=str(folder))
        self.folder = folder / "snapshots"
        self.log = MemoryLog()
        self.now_ms = NOW_MS
        for topic in topics(4):
            self.log.create(topic)
        self.live = self.another()

    def another(self) -> ModelVariant:
        return ModelVariant(self.config, self.log, FEATURES, lambda: self.now_ms)

    def put(self, topic: str, value: Any, partition: int = 0) -> int:
        data = value if isinstance(value, bytes) else pack(value)
        return self.log.append(topic, [Append(partition, b"", data)])[0]

    def item(self, i: int, removed: bool = False) -> None:
        fields = {"author": "a", "tags": ["t"], "duration_ms": 9_000}
        item = Item(time_ms=1, item_id=f"v{i}", fields=fields, removed=removed)
        self.put(ITEMS, encode(item))

    def step(self, step: int, value: float, parts: int = 2, **more: Any) -> None:
        """Both parts of a step that sets the row of item v0 to ``value``."""
        dim = self.config.model.dim + 1
        for part in range(parts):
            rows = TableRows(
                table="features",
                dim=dim,
                keys=np.array([KEY], np.int64).tobytes(),
                values=np.full(dim, value, np.float32).tobytes(),
            )
            about = {"line": "main", "epoch": 0, "base_step": step - 1, "time_ms": NOW_MS} | more
            tables = [rows] if part == 0 else []
            delta = Delta(step=step, part=part, parts=parts, tables=tables, **about)
            self.put(DELTAS, seal(delta))

    def snapshot(self, step: int, value: float, epoch: int = 0, line: str = "main") -> None:
        dim = self.config.model.dim + 1
        dense = self.another().replica.model.read_dense()
        arrays = {
            "table/features/keys": np.array([KEY], np.int64),
            "table/features/values": np.full((1, dim), value, np.float32),
            "dense/averaged": dense,
        }
        write_part(self.folder, line, epoch, step, 0, 1, arrays, {"step": step})

    def turn(self, variant: ModelVariant | None = None) -> None:
        """Reads and applies until nothing more comes; a second passes."""
        variant = variant or self.live
        self.now_ms += 1_001
        while True:
            batch = variant.followers.read()
            variant.followers.apply(batch)
            if not batch.full:
                return

    def row(self, variant: ModelVariant | None = None) -> float:
        rows = (variant or self.live).replica.rows["features"]
        return float(rows.lookup(np.array([KEY], np.int64))[0, 0])
