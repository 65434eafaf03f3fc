"""A small offline job for tests: examples of the small feed as blocks in memory, and a trainer of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from parameter_server.table.dense import Dense
from recsys.config.system_config import ModelConfig, tables_of
from recsys.events.records import Example
from recsys.model.model import build_model
from tests.support.training.small_feed import FEATURES, example
from training.continual.learner import Learner
from training.offline.examples import Examples, examples_of
from training.offline.initial_state import count_vocabularies
from training.offline.sharding import Sharding
from training.offline.tables import OwnTable
from training.offline.trainer import OfflineTrainer

MODEL = ModelConfig(dim=4, vector_dim=4, hidden=(8,))
FOUR = Sharding(4)  # parts and lanes, of one worker


@dataclass
class MemoryBlocks:
    blocks: list[Examples]

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, number: int) -> Examples:
        return self.blocks[number]


@dataclass
class MemoryCheckpoints:
    """``fails_at``: calls of ``save`` (from 1 on) that die: even ones before they saved, odd ones after."""

    saved: dict[str, tuple[Iterable[Any], bytes]] = field(default_factory=dict)
    fails_at: tuple[int, ...] = ()
    calls: int = 0

    def save(self, kind: str, number: int, parts: Iterable[tuple[int, Any]], state: bytes) -> None:
        self.calls += 1
        dies = self.calls in self.fails_at
        if dies and self.calls % 2 == 0:
            raise KeyboardInterrupt
        copies = [{name: a.copy() for name, a in arrays.items()} for _, arrays in parts]
        self.saved[kind] = copies, state
        if dies:
            raise KeyboardInterrupt

    def newest(self, kind: str) -> tuple[Iterable[Any], bytes] | None:
        return self.saved.get(kind)


def columns(examples: list[Example]) -> Examples:
    time_ms = np.array([its.closed_ms for its in examples], np.int64)
    return examples_of(examples, time_ms, 2, np.ones(len(examples), np.bool_))


@cache
def toy_blocks(blocks: int = 4, size: int = 24, first: int = 0) -> MemoryBlocks:
    """``first``: the number of the first example."""
    return MemoryBlocks(
        [columns([example(first + block * size + n) for n in range(size)]) for block in range(blocks)]
    )


def toy_trainer(blocks: MemoryBlocks, made: Any = OwnTable, sharding: Sharding = FOUR) -> OfflineTrainer:
    model = build_model(FEATURES, MODEL)
    learner, tables = Learner(model), tables_of(MODEL)
    vocabularies = count_vocabularies(blocks, learner, tables, size=20, sharding=sharding)
    rows = {t.name: made(t, vocabularies[t.name], MODEL.seed) for t in tables}
    dense = Dense(model.read_dense(), MODEL.dense_rate, average=MODEL.dense_average, first=MODEL.dense_first)
    return OfflineTrainer(learner, rows, vocabularies, dense, sharding)
