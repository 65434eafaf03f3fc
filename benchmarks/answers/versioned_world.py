"""A small world whose every part reveals its version: rows, dense parameters, vectors, fields, counters,
sessions, policies. So an answer shows the version of each part it was made from, and a mix is detected.

A formula gives the content of each version. ``VersionPublisher`` publishes the next one as the
live parts would; ``benchmarks.answers.versioned_oracle`` computes the expected answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.promotion.epoch_model import with_size
from parameter_server.publish.deltas import seal
from parameter_server.publish.rounding import round_dense
from parameter_server.storage.snapshots import write_part
from recsys.config.log_config import LogConfig
from recsys.config.policy_config import PolicyConfig
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, ServeConfig, tables_of
from recsys.events.control_records import Experiments, Live, ModelSize
from recsys.events.event_types import Engagement, Item, encode
from recsys.events.hashing import cross, key_of
from recsys.events.records import (
    CONTROL,
    DELTAS,
    EVENTS,
    ITEM_STATE,
    ITEMS,
    Delta,
    ItemState,
    TableRows,
    pack,
)
from recsys.features.columns import GLOBAL
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.protocol import Append, MemoryLog
from recsys.model.model import build_model

Rows = NDArray[np.float32]
Keys = NDArray[np.int64]
NOW_MS: Final = 1_790_000_000_000
ITEMS_N: Final = 8
USERS: Final = 2
CYCLE: Final = 16  # of fields and weights: a version's neighbours differ
_FAR: Final = 8.0  # length of the distinguishing part of a vector, against 0.8 of content
_KEPT: Final = 1_000  # records kept in each topic


def versioned_config(state: Path) -> Config:
    """Configuration in which every candidate is ranked and listed, and nothing is rounded."""
    sources = {"vector": 1, "popular": 1, "fresh": ITEMS_N}
    return replace(
        Config(),
        state=str(state),
        log=LogConfig(partitions=1),
        model=ModelConfig(
            dim=2, vector_dim=8, hidden=(16,)
        ),  # if narrower, results depend on the place in a batch
        parameter_server=ParameterServerConfig(shards=1, delta_format="fp32"),
        policy=PolicyConfig(sources=sources, per_author=0),
        # No stage is skipped and no request refused for lack of time on a busy machine.
        serve=ServeConfig(deadline_ms=6e5, queue_ms=6e5),
        access=AccessConfig(user_lists=0),
    )


class ImpressionlessLog(MemoryLog):
    """Drops impressions: a long run makes many, and nobody reads them."""

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        if topic == EVENTS:
            return [0] * len(records)
        return super().append(topic, records)


def item_of(n: int, version: int) -> Item:
    """Item ``n`` in its ``version``-th publication, from 1 on."""
    turn = version % CYCLE
    fields = {"author": f"c{turn}", "tags": [f"t{n % 3}"], "topic": "x", "duration_ms": 1_000 * (1 + turn)}
    return Item(time_ms=NOW_MS, item_id=f"v{n}", fields=fields)


def version_of_item(n: int, offset: int) -> int:
    """Version of item ``n`` before an offset of ``items``; all items are published in turn."""
    return (offset - 1 - n) // ITEMS_N + 1


def experiment_of(revision: int) -> str:
    weight = 1.0 + (revision % CYCLE) / CYCLE
    return f"name: canary\narms: {{r{revision}: {{share: 1.0, overrides: {{weights.like: {weight}}}}}}}"


@dataclass(frozen=True)
class Formula:
    """Rows and dense parameters of a version, as a store for lookups."""

    table: str
    width: int
    epoch: int
    step: int
    items: Mapping[int, int]  # an item's number by its key

    def lookup(self, keys: Keys) -> Rows:
        rows = np.full((len(keys), self.width), small(self.epoch, self.step), np.float32)
        if (
            self.table == "users"
        ):  # users turn three directions a step, items one, so that a lag of either shows
            rows[:, (3 * self.step + self.epoch) % self.width] += _FAR
        if self.table == "items":
            for row, key in zip(rows, keys.tolist(), strict=True):
                row[(self.items.get(key, 0) + self.step) % self.width] += _FAR
        return rows


def config_in(config: Config, epoch: int) -> Config:
    """Configuration of an epoch: every other epoch has a model of another size."""
    return with_size(config, size_in(epoch))


def size_in(epoch: int) -> ModelSize | None:
    return ModelSize(dim=3, hidden=(8, 8)) if epoch % 2 else None


def small(epoch: int, step: int) -> np.float32:
    """A number that identifies the version, so small that no prediction saturates."""
    return np.float32(0.004 * (1 + ((7 * step + 29 * epoch) % 101) / 101))


def counted(features: FeatureSet, version: int) -> tuple[Keys, Rows, Keys]:
    """Counters of a version: all equal, except those of the most popular item. Only keys common to all
    versions of the fields are counted; each version has its own second of event time."""
    items = [features.item_keys(f"v{n}", item_of(n, 1).fields) for n in range(ITEMS_N)]
    context = features.context_keys("feed", {})[0]
    own = np.array([key_of("item", f"v{n}") for n in range(ITEMS_N)], np.int64)
    tags = {int(key) for keys in items for key in keys[features.slot("item.tags").start :][:1]}
    keys = np.array([GLOBAL, context, *tags, *own, *cross(context, own)], np.int64)
    values = np.full((len(keys), 2 * len(features.kinds)), 1 + version % 997, np.float32)
    values[keys == own[version % ITEMS_N]] += 50.0
    return keys, values, np.full(len(keys), NOW_MS + 1_000 * version, np.int64)


def session_of(features: FeatureSet, user: str, version: int) -> Session:
    """A user's session: offset, profile, history and counters all reveal its version."""
    session = Session(user, features)
    session.profile = [key_of("user.country", f"c{version % CYCLE}")]
    for back in (2, 1, 0):
        n = (version - back) % ITEMS_N
        liked = Engagement(time_ms=NOW_MS - 1_000 * back, request_id=f"s{version - back}", user_id=user,
                           item_id=f"v{n}", kind="like")  # fmt: skip
        session.fold_engagement(liked, features.item_keys(f"v{n}", item_of(n, 1).fields))
    session.offset = version
    return session


class VersionPublisher:
    """Publishes versions: to the log, and to ``sessions`` for parts that a request reads there."""

    def __init__(self, config: Config, log: MemoryLog, sessions: dict[str, bytes]) -> None:
        self.config, self.log, self.sessions = config, log, sessions
        self.features = feature_set(config)
        self.epoch = self.step = self.items = self.states = self.policies = 0
        self.steps = 0  # of all epochs
        self.users = {f"u{n}": 0 for n in range(USERS)}
        self._numbers = {key_of("item", f"v{n}"): n for n in range(ITEMS_N)}
        models = (build_model(self.features, config_in(config, n).model) for n in (0, 1))
        self._sizes = [model.dense_size() for model in models]
        self._keys = self._keys_of_rows()

    def _keys_of_rows(self) -> dict[str, Keys]:
        """Keys of every value that any version has."""
        features, keys = self.features, set[int]()
        for turn in range(CYCLE):
            keys |= {k for n in range(ITEMS_N) for k in features.item_keys(f"v{n}", item_of(n, turn).fields)}
            keys.add(key_of("user.country", f"c{turn}"))
        users = [key_of("user", user) for user in self.users]
        keys |= {*users, *features.context_keys("feed", {})}
        keys |= {key_of("hour", hour) for hour in range(24)}
        return {
            "features": np.array(sorted(keys - {0}), np.int64),
            "items": np.array(list(self._numbers), np.int64),
            "users": np.array(users, np.int64),
        }

    def _rows(self) -> dict[str, tuple[Keys, Rows]]:
        out = {}
        for table in tables_of(config_in(self.config, self.epoch).model):
            formula = Formula(table.name, table.dim, self.epoch, self.step, self._numbers)
            out[table.name] = self._keys[table.name], formula.lookup(self._keys[table.name])
        return out

    def _dense(self) -> Rows:
        size = self._sizes[self.epoch % 2]
        return np.full(size, small(self.epoch, self.step), np.float32)

    def publish_all(self) -> None:
        self.publish_items()
        self.publish_states()
        self.publish_policy()
        for user in self.users:
            self.publish_session(user)
        self.publish_step()

    def publish_step(self) -> None:
        self.step, self.steps = self.step + 1, self.steps + 1
        tables = [
            TableRows(table=name, dim=rows.shape[1], keys=keys.tobytes(), values=rows.tobytes())
            for name, (keys, rows) in self._rows().items()
        ]
        delta = Delta(
            line="main", epoch=self.epoch, step=self.step, base_step=self.step - 1, part=0, parts=1,
            tables=tables, dense=round_dense(self._dense(), "fp32")[0], time_ms=NOW_MS,
        )  # fmt: skip
        self._put(DELTAS, pack(seal(delta)))

    def publish_epoch(self) -> None:
        """Goes live with a snapshot some steps back, of a model of another size."""
        self.epoch, self.step = self.epoch + 1, max(1, self.step - 3)
        arrays: dict[str, NDArray[Any]] = {"dense/averaged": self._dense()}
        for name, (keys, rows) in self._rows().items():
            arrays |= {f"table/{name}/keys": keys, f"table/{name}/values": rows}
        folder, meta = Path(self.config.state) / "snapshots", {"delta_format": "fp32"}
        write_part(folder, "main", self.epoch, self.step, 0, 1, arrays, meta)
        self._put(CONTROL, pack(Live(line="main", epoch=self.epoch, size=size_in(self.epoch))))

    def publish_items(self) -> None:
        self.items += 1
        items = [item_of(n, self.items) for n in range(ITEMS_N)]
        self.log.append(ITEMS, [Append(0, b"", encode(item)) for item in items])
        self._trim(ITEMS)

    def publish_states(self) -> None:
        self.states += 1
        keys, values, last_ms = (c.tobytes() for c in counted(self.features, self.states))
        state = ItemState(offsets=[0], keys=keys, values=values, last_ms=last_ms)
        self._put(ITEM_STATE, pack(state))

    def publish_policy(self) -> None:
        self.policies += 1
        texts = {"canary": experiment_of(self.policies)}
        self._put(CONTROL, pack(Experiments(revision=self.policies, configs=texts)))

    def publish_session(self, user: str) -> None:
        self.users[user] += 1
        self.sessions[user] = session_of(self.features, user, self.users[user]).pack()

    def _put(self, topic: str, value: bytes) -> None:
        self.log.append(topic, [Append(0, b"", value)])
        self._trim(topic)

    def _trim(self, topic: str) -> None:
        """Trims a topic: a replica is never so far behind, and a new one reads the rest."""
        end = self.log.end(topic, 0)
        if end % _KEPT == 0:
            self.log.trim(topic, 0, end - _KEPT)
