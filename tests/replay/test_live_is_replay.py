"""A log of clicks gives equal examples and equal weights by import, by replay, and through the API."""

import asyncio
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.harness.local_system import LocalSystem, small_config
from parameter_server.shard.shard import digest_of_shards
from recsys.app.app_file import read_app
from recsys.app.data_files import read_data_files
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Item, User
from recsys.events.hashing import uniform
from recsys.events.records import EXAMPLES, Example, unpack
from recsys.features.feature_set_file import write_feature_set
from recsys.features.session import Session
from recsys.log.protocol import Log
from recsys.process.open_log import create_topics, open_log
from replay.datasets.mapped_files import MappedFiles
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.replay_run import ReplayOptions, on_event_clock
from runtime.jobs.import_job import Importer
from serving.access.caller import SERVER
from serving.request import Request
from training.joining.joiner import Joined

APP = """
events: {click: positive, purchase: {label: positive, weight: 5}}
fields: {item: {category: category}, user: {region: category}}
shown: clicks
window: 5s
features: {rates: [all, user, item, category, user×category], near: true, list: [item]}
files:
  interactions: {files: [clicks.csv], user: u, item: i, time: t, unit: ms, kind: k}
  items: {files: [items.csv], id: i, fields: {category: category}}
  users: {files: [users.csv], id: n, fields: {region: region}}
"""
START_MS, ITEMS = 1_790_000_000_000, 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Definition and tables: a click a second, some with a purchase a while later, since the counters are
    published ten times a second."""
    rows = ["u,i,k,t"]
    for n in range(180):
        at_ms, user = START_MS + 1_000 * (n + 1), f"u{n % 9}"
        item_id = f"v{5 * int(ITEMS // 5 * uniform(3, n)) + n % 5}"
        rows += [f"{user},{item_id},click,{at_ms}"]
        rows += [f"{user},{item_id},purchase,{at_ms + 200}"] * (n % 7 == 0)
    (tmp_path / "app.yaml").write_text(APP)
    (tmp_path / "clicks.csv").write_text("\n".join(rows))
    items = "".join(f"v{n},c{n % 5}\n" for n in range(ITEMS))
    (tmp_path / "items.csv").write_text("i,category\n" + items)
    (tmp_path / "users.csv").write_text("n,region\n" + "".join(f"u{n},r{n % 3}\n" for n in range(7)))
    return tmp_path


class Tables:
    """Tables of a folder, and a system's configuration for them with steps on the event clock."""

    def __init__(self, folder: Path, state: str, step_examples: int = 64) -> None:
        file = folder / "app.yaml"
        self.app, tables = read_app(file), read_data_files(file)
        paths = [folder / name for name in tables.names]
        self.dataset = MappedFiles(self.app, tables, paths)
        config = self.app.config(small_config(folder / state))
        # Shares of sources follow clicks in served lists, and with them the candidates that are drawn.
        config = replace(config, serve=replace(config.serve, source_floor=1.0))
        self.config: Config = on_event_clock(self.dataset, ReplayOptions(step_examples=step_examples), config)
        self.features = self.app.feature_set()

    def events(self) -> list[Event]:
        return list(self.dataset.events())


class ExampleLoop(DirectLoop):
    """A loop that remembers its examples."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.examples = list[bytes]()

    def _arrive(self, examples: Iterable[Joined], now_ms: int) -> None:
        joined = list(examples)
        self.examples += (comparable(e) for e in joined if isinstance(e, Example))
        super()._arrive(joined, now_ms)


def comparable(example: Example) -> bytes:
    """An example without its place on the log, and without the id of its list, which a running system
    digests."""
    names = (
        "partition", "index", "user_id", "item_id", "shown_ms", "closed_ms", "labels", "correction",
        "features",
    )  # fmt: skip
    return msgspec.json.encode([getattr(example, name) for name in names])


def examples_on(log: Log) -> list[bytes]:
    records = (
        record for p in range(log.partitions(EXAMPLES)) for record in log.read(EXAMPLES, p, 0, 100_000)
    )
    examples = (unpack(record.value, Example) for record in records)
    return [comparable(example) for example in examples if not example.measured]


def replayed(tables: Tables) -> tuple[list[bytes], str]:
    loop = ExampleLoop(tables.features, tables.config)
    player = Player(tables.features, tables.config, loop)
    for event in tables.events():
        for played in player.as_lists(event):
            player.play(played)
    player.advance(player.now_ms)
    return sorted(loop.examples), loop.digest()


def imported(tables: Tables) -> Player:
    """The player that has trained."""
    players = list[Player]()
    with closing(open_log(tables.config)) as log:
        create_topics(log, tables.config)
        importer = Importer(
            tables.app, tables.config, log, lambda: START_MS + 10_000_000, 10_000, iter, players.append
        )
        importer.run(tables.dataset, keep_times=True)
    (player,) = players
    player.loop.advance(player.now_ms)
    return player


async def sent(tables: Tables, reads: int, in_lists: bool = False) -> tuple[list[bytes], str]:
    """The log through the API of a running system. ``reads``: lists before each row. ``in_lists``: whether
    the row is sent in the last of them that holds its item; else nobody engages with them."""
    write_feature_set(tables.config, tables.features)
    system = LocalSystem(tables.config)
    events = tables.events()
    system.publish([event for event in events if isinstance(event, Item)])
    for event in events:
        if isinstance(event, User):
            system.profile(event)
    await system.start()
    system.turn()
    for event in events:
        if not isinstance(event, Engagement):
            continue
        system.now_ms = event.time_ms
        names = ("time_ms", "user_id", "item_id", "kind")
        row = {"type": "engagement"} | {name: getattr(event, name) for name in names}
        for n in range(reads):
            answer = await system.ask(Request(event.user_id if n else "crawler", n=5))
            if in_lists and n and str(event.item_id) in [str(i.item_id) for i in answer.items]:
                row["request_id"] = answer.request_id
        batch = await system.service.write_api.append_events([row], SERVER)
        assert batch.count("accepted") == 1, batch.results
        system.turn()
    shards = [durable.shard for durable in system.shards.durable]
    result = sorted(examples_on(system.log)), digest_of_shards(shards)
    await system.stop()
    return result


@pytest.mark.slow
def test_clicks_are_learned_alike_by_import_by_replay_and_through_the_api(folder: Path) -> None:
    examples, digest = replayed(Tables(folder, "replayed"))
    for reads in (0, 2):
        live = asyncio.run(sent(Tables(folder, f"live {reads}"), reads))
        assert live == (examples, digest)
    trained: Any = imported(Tables(folder, "imported")).loop
    assert len(examples) > 1_000 and trained.digest() == digest


@pytest.mark.slow
def test_a_click_in_a_served_list_is_learned_as_one_without_a_list(folder: Path) -> None:
    # No step is cut: those of a running system also count what is measured alone.
    examples, _ = replayed(Tables(folder, "replayed", 65_536))
    in_lists, _ = asyncio.run(sent(Tables(folder, "in lists", 65_536), 2, in_lists=True))
    assert in_lists == examples


def test_sessions_and_counters_of_imported_rows_are_those_that_the_model_was_trained_with(
    folder: Path,
) -> None:
    tables = Tables(folder, "imported")
    player = imported(tables)
    write_feature_set(tables.config, tables.features)
    system = LocalSystem(tables.config)
    system.now_ms = START_MS + 10_000_000
    system.fold.turn()
    system.counters.turn()
    own, other = system.counters.oldest.fold.counters, player.item_counters.counters
    keys = sorted(set(own.export()[0].tolist()) | set(other.export()[0].tolist()))
    read = [each.read(np.array(keys), system.now_ms) for each in (own, other)]
    np.testing.assert_allclose(*read, rtol=1e-5)  # sums depend on the order of partitions
    assert len(keys) > 150
    seen = tables.config.sessions.seen
    for n in range(9):
        blob = asyncio.run(system.sessions.get(f"u{n}"))
        assert blob is not None
        session, trained = Session.unpack(blob, tables.features, seen), player.session(f"u{n}")
        for a, b in zip(
            session.read_history(system.now_ms), trained.read_history(system.now_ms), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        assert session.seen == trained.seen and len(session.history) == 20
        assert [*map(list, map(np.ndarray.tolist, session.counters.export()))] == [
            *map(list, map(np.ndarray.tolist, trained.counters.export()))
        ]
    system.close()
