"""Operators are computed again from events, live and by backfill: an honest past has no difference, and skew
that is planted in any of them is found."""

from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from plugins.backfill.fill import Backfill
from plugins.feature_audit.audit import Audit, AuditReport
from plugins.feature_audit.recompute import CountersAsOf, Recomputer, split_by_counter_offsets
from recsys.events.event_types import Engagement, Event, Impression, User, Verdict, encode
from recsys.events.hashing import key_of, partition_of
from recsys.events.records import EVENTS, ITEM_STATE, ITEMS, ItemState, topics, unpack
from recsys.features.families.declared import Declared
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.item_counters import ItemCounters
from recsys.features.request_features import read_block
from recsys.features.session import Session
from recsys.log.protocol import Append, MemoryLog
from recsys.process.part_snapshot import PartState
from serving.sessions.counter_loop import NAME, CounterLoop
from serving.sessions.event_reader import EventReader
from serving.sessions.session_fold import fold_event
from tests.support.operator_app import FEATURES, START_MS, past
from tests.support.past_events import ToyPast

AUDITED = np.array(["near" not in name for name in FEATURES.dense_names])  # see test_audit.py
SKEWED = {f"r{n}" for n in range(20, 28)}


def audit(past: ToyPast) -> AuditReport:
    items = past.history()
    sessions, found = past.sessions(items), Audit(Recomputer(items), FEATURES)
    for shown in split_by_counter_offsets(past.shown()).values():
        found.look(shown, sessions.of, past.counters(items))
    return found.report


def test_an_honest_past_has_no_difference() -> None:
    report = audit(past(120))
    assert (report.sampled, report.equal, report.differing) == (120, 120, {})
    assert not report.without_counters and not report.not_recomputed


def no_value(event: Event) -> Event:
    buys = isinstance(event, Engagement) and event.kind == "buy" and event.request_id in SKEWED
    return replace(event, value=5.0) if buys else event


def no_kind(kind: str) -> Callable[[Event], Event | None]:
    def missed(event: Event) -> Event | None:
        if isinstance(event, Engagement) and event.kind == kind and event.request_id in SKEWED:
            return None
        return event

    return missed


def no_update(event: Event) -> Event | None:
    return None if isinstance(event, User) and event.time_ms % 1_000 > 900 else event


@pytest.mark.parametrize(
    ("missed", "columns"),
    [
        (no_value, ["item/buy.amount.sum.24h", "user/buy.amount.mean.24h", "item/last(buy.amount)",
                    "user×item/last(buy.amount)"]),
        (no_kind("buy"), ["item:material/buy.24h", "item/since(buy)", "user/since(buy)"]),
        (no_kind("look"), ["all/since(look)", "user×material/since(look)",
                           "material/distinct(look.user).24h"]),
        (no_kind("click"), ["item/distinct(click.user).24h", "user/distinct(click.brand).24h",
                            "brand:user/click.24h", "gap"]),
        (no_update, ["user.age", "region×colours/shown.24h", "region×device/shown.24h"]),
    ],
)  # fmt: skip
def test_what_a_server_missed_is_found_in_each_operator(
    missed: Callable[[Event], Event | None], columns: list[str]
) -> None:
    report = audit(past(60, missed))
    assert report.skewed and 0 < report.equal < 60
    # What is derived follows from what was logged: the skew is that of its source.
    derived = {one.name for one in FEATURES.derived}
    assert {name for name in columns if name not in derived} <= set(report.differing)
    assert not derived & set(report.differing)


def test_skew_in_any_column_is_found() -> None:
    honest = past(12).shown()[-1].impression.features
    assert honest is not None
    items = past(1).history()
    compare = Audit(Recomputer(items), FEATURES)._compare
    assert compare(honest, honest) == {}
    for column, name in enumerate(FEATURES.dense_names):
        planted = read_block(honest, FEATURES)
        planted.dense_NF[1, column] += 0.01
        found = compare(planted.block(), honest)
        if "item.near" not in name:  # by design: its last bits depend on how partitions interleave
            assert found[name].max() == pytest.approx(0.01, abs=1e-4), name


def test_live_folds_have_the_bits_of_replay() -> None:
    written, log = past(80), MemoryLog()
    for topic in topics(len(written.partitions)):
        log.create(topic)
    for item in written.items:
        log.append(ITEMS, [Append(0, b"", encode(item))])
    every = sorted((e for p in written.partitions for _, e in p), key=lambda event: event.time_ms)
    loop, reader = CounterLoop(log, FEATURES), EventReader(log, FEATURES)
    reader.read_items()
    sessions, builder = dict[str, Session](), FeatureBuilder(FEATURES)
    lists = 0
    for event in every:
        assert isinstance(event, User | Impression | Engagement)
        user = str(event.user_id)
        session = sessions.get(user) or Session(user, FEATURES)
        if isinstance(event, Impression) and event.features is not None:
            indices = np.array([reader.catalogue.index_of(item.item_id) for item in event.items])
            live = builder.build(
                session, event.surface, event.context, indices, reader.catalogue,
                loop.fold.counters, event.time_ms, is_list=True,
            )  # fmt: skip
            logged, again = read_block(event.features, FEATURES), builder.as_shown(live)
            assert (again.dense_NF[:, AUDITED] == logged.dense_NF[:, AUDITED]).all()
            assert (again.items_NI == logged.items_NI).all()
            lists += 1
        log.append(EVENTS, [Append(partition_of(user, 3), user.encode(), encode(event))])
        loop.turn()
        fold_event(session, event, reader.keys_of)
        sessions[user] = Session.unpack(session.pack(), FEATURES)  # as the store keeps it
    assert lists == 80


def test_operators_are_filled_in_for_a_past_of_another_feature_set() -> None:
    written, plain = past(80), past(80)
    served = changed(FEATURES, declared=Declared(entities=("all", "item")))
    for partition in plain.partitions:
        for n, (offset, event) in enumerate(partition):
            if isinstance(event, Impression) and event.features is not None:
                block = replace(event.features, feature_set=served.digest, dense=b"")
                partition[n] = (offset, replace(event, features=block))
    items = plain.history()
    fill = Backfill(Recomputer(items), FEATURES)
    for shown in split_by_counter_offsets(plain.shown()).values():
        fill.compute(shown, plain.sessions(items), plain.counters(items))
    for placed in written.shown():
        block, _ = fill._blocks[placed.partition, placed.offset]
        assert placed.impression.features is not None
        filled, logged = (read_block(block, FEATURES), read_block(placed.impression.features, FEATURES))
        difference = np.abs(filled.dense_NF - logged.dense_NF)[:, AUDITED]
        assert difference.max() < 1e-4


def test_a_snapshot_of_the_counters_part_has_the_state_of_operators(tmp_path: Path) -> None:
    written, log = past(40), MemoryLog()
    for topic in topics(len(written.partitions)):
        log.create(topic)
    for partition, events in enumerate(written.partitions):
        for _, event in events:
            user = str(getattr(event, "user_id", ""))
            log.append(EVENTS, [Append(partition, user.encode(), encode(event))])
    loop = CounterLoop(log, FEATURES, PartState(str(tmp_path), NAME))
    loop.turn()
    loop.save()
    again = CounterLoop(log, FEATURES, PartState(str(tmp_path), NAME))
    assert again.fold.operators.pack() == loop.fold.operators.pack()
    assert len(again.fold.operators) > 10
    gone = User(time_ms=START_MS + 10**9, user_id="u1", removed=True)
    log.append(EVENTS, [Append(partition_of("u1", 3), b"u1", encode(gone))])
    again.turn()
    again.save()
    kept = CounterLoop(log, FEATURES, PartState(str(tmp_path), NAME)).fold.operators
    assert key_of("user", "u1") not in kept._viewers and "u1" not in str(kept.pack())
    assert not len(kept._rows_of("u1")) and len(loop.fold.operators._rows_of("u1"))


def test_readers_of_item_state_have_all_rows_of_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    written, log = past(40), MemoryLog()
    for topic in topics(len(written.partitions)):
        log.create(topic)
    for item in written.items:
        log.append(ITEMS, [Append(0, b"", encode(item))])
    loop, told = CounterLoop(log, FEATURES, now_ms=lambda: 0), FEATURES.counter_table()
    loop.publish()  # everything, which is nothing yet: from here on only what changes
    for partition, events in enumerate(written.partitions):
        for _, event in events:
            log.append(EVENTS, [Append(partition, b"", encode(event))])
            loop.turn()
            loop.publish()
    for record in log.read(ITEM_STATE, 0, 0, 100_000):
        state = unpack(record.value, ItemState)
        keys, times = (np.frombuffer(part, np.int64) for part in (state.keys, state.last_ms))
        values = np.frombuffer(state.values, np.float32).reshape(-1, told.columns)
        told.set(keys, values, times)
    assert {int(key) for key in told.export()[0]} == {int(k) for k in loop.fold.counters.export()[0]}
    keys, *_ = loop.fold.counters.export()
    one, other = told.export(keys.tolist()), loop.fold.counters.export()
    assert np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])
    monkeypatch.setattr("serving.sessions.item_states._COUNTERS", 10)
    before = len(loop.fold.counters)
    loop.turn()
    assert len(loop.fold.counters) == 10 and loop.rows_evicted == before - 10


def test_a_quarantine_takes_back_what_a_viewer_counted() -> None:
    """The counts of different viewers are as if the viewer had never come."""
    folds = [ItemCounters(FEATURES), ItemCounters(FEATURES)]
    written = past(60)
    items, events = (
        written.history(),
        sorted(
            ((p, o, e) for p, placed in enumerate(written.partitions) for o, e in placed),
            key=lambda placed: placed[2].time_ms,
        ),
    )
    recounts = [CountersAsOf(items, written.events, 3) for _ in folds]
    for fold, recount in zip(folds, recounts, strict=True):
        recount._fold = fold
        for partition, offset, event in events:
            if fold is folds[0] or getattr(event, "user_id", "") != "u2":
                recount._count(partition, offset, event)
    at_ms = events[-1][2].time_ms
    verdict = Verdict(time_ms=at_ms, user_id="u2", quarantined=True)
    before = [e for _, _, e in events if getattr(e, "user_id", "") == "u2"]
    folds[0].verdict(verdict, before, items.by_time(at_ms))
    keys, _, _ = folds[1].counters.export()
    column = FEATURES.kinds.index("distinct(click.user)")
    counts = [fold.counters.read(keys, at_ms)[:, column] for fold in folds]
    assert counts[0] == pytest.approx(counts[1], abs=1e-4) and counts[1].max() > 1
