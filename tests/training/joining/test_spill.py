"""The joiner's spill: one contract over both, and a joiner that has one gives what a joiner without gives."""

import random
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Event, User
from recsys.events.records import EXAMPLES
from recsys.log.protocol import MemoryLog
from recsys.process.part_snapshot import PartState
from tests.support.simulation.memory_spill import MemorySpill
from tests.support.training.small_feed import (
    FEATURES,
    PARTITIONS,
    START_MS,
    append_events,
    feed,
    impression,
    toy_config,
    toy_log,
)
from training.joining import pending_impressions
from training.joining.impression_state import OpenImpression, StateHead, new_state
from training.joining.joiner import Joiner
from training.joining.joiner_loop import JoinerLoop
from training.joining.spill import Row, Spill, SpillLost

CONFIG = JoinConfig(window_s=20, horizon_s=100, negatives=0.5)
CAP = 40_000  # bytes: some open impressions, or a hundred closed ones


@pytest.fixture(params=["memory", "sqlite"])
def spill(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spill]:
    its: Spill = MemorySpill() if request.param == "memory" else Spill(tmp_path / "x" / "spill")
    yield its
    its.close()


def row(n: int, due_ms: int = 0, user: str = "u") -> Row:
    return Row(f"r{n}", due_ms, 100 - n, user, bytes([n]))


def test_rows_are_taken_once(spill: Spill) -> None:
    assert (len(spill), spill.next_ms(), spill.oldest(), spill.take("r1")) == (0, None, None, None)
    spill.put([row(1, 30), row(2, 20)])
    assert (len(spill), spill.next_ms(), spill.oldest()) == (2, 20, 98)
    assert spill.has("r1") and not spill.has("r3")
    assert spill.take("r1") == row(1, 30) and spill.take("r1") is None
    spill.put([row(1, 40)])
    assert spill.take("r1") == row(1, 40) and len(spill) == 1


def test_what_is_due_comes_in_order_and_no_more_than_asked_for(spill: Spill) -> None:
    spill.put([row(n, due) for n, due in ((4, 9), (2, 5), (1, 5), (3, 7), (5, 8))])
    assert [its.id for its in spill.take_due(8, 3)] == ["r1", "r2", "r3"]
    assert [its.id for its in spill.take_due(8, 3)] == ["r5"] and spill.take_due(8, 3) == []
    assert spill.next_ms() == 9


def test_it_goes_back_to_what_was_marked(spill: Spill) -> None:
    assert spill.mark() == 0, "nothing was put yet"
    spill.put([row(1), row(2)])
    first = spill.mark()
    spill.take("r1")
    spill.put([row(3)])
    second = spill.mark()
    spill.take("r2")
    spill.put([row(4)])
    third = spill.mark()
    spill.take("r3")
    spill.rewind(third, 2)
    assert [its.id for its in spill.take_due(0, 9)] == ["r3", "r4"]
    spill.rewind(second, 2)
    assert [its.id for its in spill.take_due(0, 9)] == ["r2", "r3"]
    spill.rewind(first, 2)
    assert [its.id for its in spill.take_due(0, 9)] == ["r1", "r2"]
    spill.rewind(0, 0)
    assert len(spill) == 0


def test_what_isnt_there_any_more_is_refused(spill: Spill) -> None:
    spill.put([row(1)])
    marks = [spill.mark() for _ in range(4)]
    with pytest.raises(SpillLost, match="generation is 5"):
        spill.rewind(5, 1)
    with pytest.raises(SpillLost, match="generation is 1"):
        spill.rewind(marks[0], 1)
    with pytest.raises(SpillLost, match="1 rows are stored, the snapshot has 2"):
        spill.rewind(marks[3], 2)


def test_a_users_rows_are_forgotten(spill: Spill) -> None:
    spill.put([row(1, user="a"), row(2, user="b"), row(3, user="a")])
    spill.forget("a")
    assert len(spill) == 1 and spill.has("r2")


def test_nothing_of_a_forgotten_user_stays_in_the_file(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill")
    spill.put([Row("r1", 0, 0, "somebody", b"what they did")])
    spill.mark()
    spill.forget("somebody")
    for _ in range(3):
        spill.mark()
    spill.close()
    there = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"somebody" not in there and b"what they did" not in there


def test_of_a_forgotten_user_no_copy_stays_in_pages_or_wal(tmp_path: Path) -> None:
    """Many rows in many orders, so that pages are split, and a kill between forgetting and deleting."""
    path, draw = tmp_path / "spill.sqlite", random.Random(2)
    its = Spill(path)
    for _ in range(6):
        rows = []
        for n in range(300):
            user = "victim" if n % 3 == 0 else "other"
            id_ = f"{draw.getrandbits(60):x}-{user}" + "x" * draw.randrange(200)
            value = user.encode() + draw.randbytes(draw.randrange(50, 300))
            rows.append(Row(id_, draw.randrange(10**9), n, user, value))
        its.put(rows)
        its.mark()
        its.take_due(10**8, 150)
    its.forget("victim")
    marked = its.mark()
    left = len(its)
    for path in tmp_path.glob("spill.sqlite*"):  # as it stands on disk
        path.with_name(path.name.replace("spill", "copy")).write_bytes(path.read_bytes())
    killed = Spill(tmp_path / "copy.sqlite")
    killed.rewind(marked, left)
    for after in (its, killed):
        after.mark()
        assert b"victim" in b"".join(path.read_bytes() for path in tmp_path.iterdir())
        after.mark()
    assert b"victim" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(its) == len(killed) == left > 0
    for after in (its, killed):
        after.rewind(marked + 2, left)
        after.close()


def test_deleting_what_was_taken_looks_at_nothing_else(tmp_path: Path) -> None:
    its, path = Spill(tmp_path / "spill.sqlite"), tmp_path / "spill.sqlite"
    its.put([row(n) for n in range(10)])
    its.mark()
    said: list[str] = []
    assert its._db is not None
    its._db.set_trace_callback(said.append)
    its.mark()
    its.close()
    (delete,) = [text for text in said if text.startswith("DELETE")]
    plan = sqlite3.connect(path).execute(f"EXPLAIN QUERY PLAN {delete}").fetchall()
    assert "held_taken" in plan[0][3]


def test_a_user_is_forgotten_by_an_index(tmp_path: Path) -> None:
    its, said = Spill(tmp_path / "spill.sqlite"), list[str]()
    its.put([row(n) for n in range(10)])
    assert its._db is not None
    its._db.set_trace_callback(said.append)
    its.forget("u")
    (update,) = [text for text in said if text.startswith("UPDATE")]
    plan = its._db.execute(f"EXPLAIN QUERY PLAN {update}").fetchall()
    assert "held_user" in plan[0][3] and len(its) == 0
    its.close()


def test_of_others_closed_impressions_only_the_user_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    pending = pending_impressions.PendingImpressions(False, None, CAP)
    for n in range(20):
        one = impression(n, n % 10, START_MS)
        pending.add(one.request_id, OpenImpression(new_state(n, one), one, 0), 10)
        pending.close(one.request_id, 100)
    monkeypatch.setattr(pending_impressions, "decode_state", None)
    pending.forget("nobody")
    assert len(pending) == 20
    pending.forget(new_state(3, impression(3, 3, START_MS)).user_id)
    assert len(pending) == 18


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("aaacfftm"), st.integers(0, 2)), min_size=30, max_size=60))
def test_forgotten_users_have_nothing_left_whenever_it_was_added(steps: list[tuple[str, int]]) -> None:
    pending = pending_impressions.PendingImpressions(False, MemorySpill(), 8_000)
    expected: dict[str, int] = {}  # user by request
    for n, (step, user) in enumerate(steps):
        if step in "ac":
            shown = impression(n, user, START_MS)
            opened = OpenImpression(new_state(n, shown), shown, 3_000)
            pending.add(f"r{n}", opened, n)
            if step == "c" and f"r{n}" in pending.open:
                pending.close(f"r{n}", n)
            expected[f"r{n}"] = user
        elif step == "f":
            pending.forget(new_state(0, impression(0, user, START_MS)).user_id)
            expected = {id_: other for id_, other in expected.items() if other != user}
        elif step == "t":
            for id_ in expected:
                pending.load(id_)
        else:
            pending.mark()
        assert len(pending) == len(expected) and all(map(pending.has, expected))
        packed = sum(len(p) + pending_impressions._AROUND for p in pending.closed.values())
        assert pending.bytes == packed + sum(opened.size for opened in pending.open.values())


def test_users_are_forgotten_in_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    pending, decoded = pending_impressions.PendingImpressions(False, None, 10**9), list[bytes]()
    for n in range(100):
        shown = impression(n, n, START_MS)
        pending.add(f"r{n}", OpenImpression(new_state(n, shown), shown, 0), n)
        pending.close(f"r{n}", n)
    heads = pending_impressions._head

    class Counting:
        def decode(self, packed: bytes) -> StateHead:
            decoded.append(packed)
            return heads.decode(packed)

    monkeypatch.setattr(pending_impressions, "_head", Counting())
    for n in range(50):
        pending.forget(new_state(n, impression(n, n, START_MS)).user_id)
    assert len(pending) == 50 and len(decoded) == 150  # once each, and those that go once more
    pending.mark()
    pending.forget("nobody")
    assert len(decoded) == 200  # the index is held for a while only


def test_the_index_of_users_is_bounded_without_a_mark() -> None:
    pending = pending_impressions.PendingImpressions(False, None, 10**9)
    pending.forget("nobody")
    for n in range(1_000):
        shown = impression(n, n, START_MS)
        pending.add(f"r{n}", OpenImpression(new_state(n, shown), shown, 0), n)
        pending.close(f"r{n}", n)
        if n >= 10:
            pending.drop(f"r{n - 10}")
        assert len(pending._ids_of_user or {}) <= 2 * 11 + 2  # eleven are pending at most


def test_a_file_that_was_killed_stands_at_its_newest_mark(tmp_path: Path) -> None:
    first = Spill(tmp_path / "spill")
    first.put([row(1)])
    generation = first.mark()
    first.put([row(2)])
    first.take("r1")
    copy = tmp_path / "copy"  # as it stands on disk, with a transaction open
    copy.write_bytes((tmp_path / "spill").read_bytes())
    copy.with_name("copy-wal").write_bytes((tmp_path / "spill-wal").read_bytes())
    second = Spill(copy)
    second.rewind(generation, 1)
    assert [its.id for its in second.take_due(0, 9)] == ["r1"]
    first.close()
    second.close()
    with pytest.raises(SpillLost, match="is gone"):
        Spill(tmp_path / "nothing").rewind(1, 1)


# --- a joiner with one ---


@settings(max_examples=25, deadline=None)
@given(due=st.lists(st.integers(0, 20), min_size=30, max_size=60), now_ms=st.integers(0, 25))
def test_timers_run_out_in_one_order_wherever_they_are(due: list[int], now_ms: int) -> None:
    its = pending_impressions.PendingImpressions(False, MemorySpill(), 20_000)
    for n, due_ms in enumerate(due):
        shown = impression(n, 1, START_MS)
        its.add(f"r{n:02}", OpenImpression(new_state(n, shown), shown, 1_000), due_ms)
        assert its.bytes <= 20_000 and len(its) == n + 1
    assert its.spilled and len(its.open) > 5
    expected = sorted((due_ms, f"r{n:02}") for n, due_ms in enumerate(due) if due_ms <= now_ms)
    assert list(its.due(now_ms)) == expected


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_impressions, "_AT_ONCE", 2)


def shaken(requests: int, order: list[int]) -> list[Event]:
    """A feed of which some events come late, some twice, and a user leaves."""
    events = feed(requests)
    for n, shift in enumerate(order):
        at = (n * 37) % len(events)
        event = events.pop(at)
        events.insert(min(len(events), at + shift), event)
        if shift % 3 == 0:
            events.append(event)
    middle = len(events) // 2
    gone = User(time_ms=START_MS, user_id="u3", removed=True)
    return [*events[:middle], gone, *events[middle:]]


@settings(max_examples=25, deadline=None)
@given(
    requests=st.integers(1, 60),
    order=st.lists(st.integers(0, 60), max_size=20),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    recalls=st.booleans(),
)
def test_results_are_those_of_a_joiner_that_holds_all_in_memory(
    requests: int, order: list[int], cuts: list[int], recalls: bool
) -> None:
    """Also where it is killed in between, and goes on from a snapshot and what was marked."""
    events = shaken(requests, order)
    recall = (lambda offset: events[offset]) if recalls else None
    labels = FEATURES.schema.labels
    whole = Joiner(0, labels, CONFIG, recall)  # type: ignore[arg-type]
    expected = [e for n, event in enumerate(events) for e in whole.feed(n, event)]

    spill, found, saved = MemorySpill(), list[object](), (0, b"", 0)

    def begin() -> Joiner:
        return Joiner(0, labels, CONFIG, recall, spill, CAP)  # type: ignore[arg-type]

    its, at, most = begin(), 0, 0
    saved = (0, its.pack(), 0)
    for cut in [*sorted(cuts), len(events)]:
        while at < min(cut, len(events)):
            found += its.feed(at, events[at])
            at, most = at + 1, max(most, its.impressions.spilled)
        if cut % 2:
            saved = (at, its.pack(), len(found))
        its = begin()
        its.restore(saved[1])
        at, found = saved[0], found[: saved[2]]
    while at < len(events):
        found += its.feed(at, events[at])
        at, most = at + 1, max(most, its.impressions.spilled)
    assert found == expected and its.counts == whole.counts
    assert (len(its.impressions), its.impressions.oldest()) == (
        len(whole.impressions),
        whole.impressions.oldest(),
    )
    assert most or requests < 30


def drain(log: MemoryLog, folder: Path, memory_mb: float) -> JoinerLoop:
    config = toy_config()
    config = replace(config, join=replace(config.join, memory_mb=memory_mb))
    loop = JoinerLoop(log, config, FEATURES, lambda: 0, PartState(folder, "joiner"))
    while loop.turn():
        pass
    return loop


def joined(log: MemoryLog) -> list[list[bytes]]:
    return [[record.value for record in log.read(EXAMPLES, p, 0)] for p in range(PARTITIONS)]


def test_a_loop_that_is_killed_anywhere_goes_on_with_what_it_had_on_disk(tmp_path: Path) -> None:
    events, log, calm = feed(120), toy_log(), toy_log()
    append_events(calm, events)
    drain(calm, tmp_path / "calm", 512.0)
    most = 0
    for start in range(0, len(events), 90):
        append_events(log, events[start : start + 90])
        loop = drain(log, tmp_path / "small", 0.05)
        most = max(most, loop.spilled())
        if start % 180:
            loop.save()
        loop.close()  # as kill -9 does: what isn't marked is gone
    assert most > 20 and joined(log) == joined(calm)
    assert not list((tmp_path / "calm").rglob("spill*")), "no file where memory does"


def test_a_snapshot_whose_spill_is_gone_says_what_to_do(tmp_path: Path) -> None:
    log = toy_log()
    append_events(log, feed(120)[:-1])
    loop = drain(log, tmp_path, 0.05)
    assert loop.spilled()
    loop.save()
    loop.close()
    for file in (tmp_path / "parts/joiner").glob("spill*"):
        file.unlink()
    with pytest.raises(ValueError, match="doesn't fit its spill .*remove that folder"):
        drain(log, tmp_path, 0.05)
