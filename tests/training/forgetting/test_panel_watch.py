"""Panels of a live line in one process: each snapshot scores them, they outlive kills and lose the erased."""

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.storage import snapshots
from parameter_server.storage.changes import Changes
from parameter_server.storage.snapshot_rows import rows_of
from recsys.config.part_configs import DriftConfig
from recsys.config.system_config import Config, tables_of
from recsys.events.control_records import Erasure, Live
from recsys.events.records import CONTROL, EXAMPLES, ErasedExample, pack
from recsys.log.protocol import Append, LogUnavailable, Record
from recsys.model.model import build_model
from recsys.process.part_process import Heartbeat
from tests.support.training.small_feed import DENSE, FEATURES, append_examples, example, toy_config, toy_log
from training.candidates.shadow_loop import ShadowLoop
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.forgetting import panel_log, panel_watch
from training.forgetting.panel_watch import Ended, PanelThread, PanelWatch, report
from training.forgetting.panels import PREVIOUS
from training.lines.line import MAIN, spec_of
from training.steps.lineage import Lineage
from training.steps.sequencer_loop import SequencerLoop
from training.steps.step_reader import ExampleCheck, ServedExample

SAID = np.full(3, 0.4, np.float32).tobytes()


class Line:
    """A live line with its log and snapshots, and who watches it."""

    def __init__(self, state: Path, shards: int = 2) -> None:
        its = toy_config(str(state), examples=32, shards=shards)
        self.config: Config = replace(its, drift=DriftConfig(panel_examples=256))
        self.log, self._numbers = toy_log(), count()
        self.folder = state / "snapshots"
        self._sequencer = SequencerLoop(self.log, self.config, FEATURES, count(0, 1_000).__next__)
        model = build_model(FEATURES, self.config.model)
        self.client = LocalClient.fresh(spec_of(self.config), model.read_dense(), lambda _: None)
        self._changes = [Changes(shard) for shard in self.client.shards]
        self._worker = Worker(0, 1, self.log, self.client, Learner(model), self.config)
        self.now_s = 0.0
        self.watch = self.watching()

    def watching(self) -> PanelWatch:
        return PanelWatch(self.log, self.config, FEATURES, lambda: self.now_s, lambda: self.now_s)

    def learn(
        self, examples: int | list[int], turned: bool = False, predicted: bytes = SAID, later_ms: int = 0
    ) -> None:
        """So many new ones, or those of these numbers; ``turned``: with the contrary first label."""
        new = isinstance(examples, int)
        numbers = [next(self._numbers) for _ in range(examples)] if new else examples
        shown = [example(n, predicted=predicted) for n in numbers]
        if turned:
            shown = [msgspec.structs.replace(e, labels=[1 - e.labels[0], e.labels[1]]) for e in shown]
        shown = [msgspec.structs.replace(e, closed_ms=e.closed_ms + later_ms) for e in shown]
        append_examples(self.log, shown)
        while self._sequencer.turn():
            pass
        while self._worker.step < self._sequencer.step:
            self._worker.turn()
        return shown

    def save(self, epoch: int = 0) -> int:
        shards = self.client.shards
        for part, (shard, changes) in enumerate(zip(shards, self._changes, strict=True)):
            update, meta = changes.export()
            where = (self.folder, MAIN, epoch, shard.applied, part, len(shards))
            changes.written(snapshots.write_part(*where, update, meta), meta)
        return shards[0].applied


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def two_snapshots(line: Line) -> None:
    for _ in range(2):
        line.learn(320)
        line.save()
        assert line.watch.turn()


def test_the_first_snapshot_makes_a_panel_and_the_second_says_what_is_left(line: Line) -> None:
    assert not line.watch.turn()
    line.learn(320)
    line.save()
    assert line.watch.turn() and line.watch.retention == {} and not line.watch.turn()
    assert [len(p) for p in line.watch.panels] == [256]
    line.learn(320)
    line.save()
    assert line.watch.turn() and len(line.watch.panels) == 2
    its = line.watch.retention[PREVIOUS]
    assert its.examples == 256 and its.before == 0.5  # all were told the same
    assert its.age_ms == line.watch.panels[0].time_ms - line.watch.panels[1].time_ms > 0
    assert 0.5 < its.learned <= 1 and its.now != its.learned


def test_a_long_look_for_what_was_served_neither_reads_nor_keeps_it_all(line: Line) -> None:
    line.learn(1_600, predicted=b"")
    lineage = Lineage(line.log, MAIN, [])
    step = lineage.record(line.client.shards[0].applied)
    check = ExampleCheck(FEATURES, DENSE, ServedExample)
    looked, most = 0, 0

    def gone(_: ServedExample) -> bool:
        nonlocal looked, most
        looked += 1
        if looked % 100 == 0:
            most = max(most, sum(type(its) is ServedExample for its in gc.get_objects()))
        return False

    before = sum(type(its) is ServedExample for its in gc.get_objects())
    found = panel_log.read_newest(line.log, lineage, step, 50, check, gone)
    assert len(found.panel) == len(found.examples) == 50
    assert looked == 8 * 50 and most - before <= 52
    ends = {p: line.log.end(EXAMPLES, p) for p in range(3)}
    for row in found.panel.rows_N:  # the newest
        assert row["offset"] >= ends[int(row["partition"])] - 60


@pytest.mark.parametrize("turns", [False, True])
def test_a_line_that_learns_the_contrary_is_seen_to_forget(line: Line, turns: bool) -> None:
    same = list(range(320))
    for _ in range(4):
        line.learn(same)
    line.save()
    line.watch.turn()
    for _ in range(4):
        line.learn(same, turned=turns)
    line.save()
    assert line.watch.turn()
    forgotten = line.watch.retention[PREVIOUS].forgotten
    assert forgotten > 0.1 if turns else forgotten < 0, forgotten


def test_rows_are_those_that_the_shards_have_also_out_of_increments(line: Line) -> None:
    for n, examples in enumerate((320, 1, 1, 1, 1)):
        line.learn(examples, later_ms=10_000 * n)
        line.save()
    found = snapshots.latest(line.folder, MAIN).snapshot
    assert found is not None and len(found.files(1)) == 3
    table = next(t for t in tables_of(line.config.model) if t.name == "features")
    have = [shard.tables["features"].export()["keys"] for shard in line.client.shards]
    keys = np.concatenate([*have, np.array([7, 8, 9])])
    keys = np.random.default_rng(0).permutation(keys)
    said = rows_of(found, table, line.config.model.seed, keys)
    expected = line.client.lookup(found.step, {"features": keys})["features"]
    assert np.array_equal(said, expected)
    with pytest.raises(ValueError, match="another model"):
        rows_of(found, replace(table, dim=9), 0, keys)


def test_a_watch_that_was_killed_goes_on_with_the_same_numbers(line: Line) -> None:
    two_snapshots(line)
    other = line.watching()  # nothing was closed
    assert other.retention == line.watch.retention and other.step == line.watch.step
    assert not other.turn()
    line.learn(320)
    line.save()
    assert line.watch.turn() and other.turn()
    assert other.retention == line.watch.retention and len(other.panels) == len(line.watch.panels)


def test_a_damaged_file_begins_anew(line: Line) -> None:
    two_snapshots(line)
    for path in (Path(line.config.state) / "parts" / "panels").iterdir():
        path.write_bytes(b"x" * 80)
    again = line.watching()
    assert again.panels == [] and again.turn() and len(again.panels) == 1


def test_who_has_asked_to_be_forgotten_leaves_at_once_and_the_erased_are_empty_places(line: Line) -> None:
    two_snapshots(line)
    said = Erasure(user_id="u3", offset=10_000)
    line.log.append(CONTROL, [Append(0, b"", pack(said))])
    erased = [
        (p, r.offset)
        for p in range(3)
        for r in line.log.read(EXAMPLES, p, 0, 10_000)
        if msgspec.msgpack.decode(r.value)["user_id"] in ("u3", "u4")
    ]
    asked = {"u3": 0, "u4": 0}
    for partition, offset in erased:
        (its,) = line.log.read(EXAMPLES, partition, offset, 1)
        user = msgspec.msgpack.decode(its.value)["user_id"]
        asked[user] += 1
        if user == "u4":
            line.log.replace(EXAMPLES, partition, [Record(offset, b"", pack(EMPTY))])
    line.learn(64)
    line.save()
    assert line.watch.turn()
    places = {(int(r["partition"]), int(r["offset"])) for p in line.watch.panels for r in p.rows_N}
    assert asked["u3"] and asked["u4"] and not places & set(erased)
    assert 200 < line.watch.retention[PREVIOUS].examples < 256


EMPTY = ErasedExample(sequence=1, closed_ms=1)


def test_a_correction_that_comes_later_changes_the_label(line: Line) -> None:
    line.learn(320)
    line.save()
    line.watch.turn()
    before = line.watch.panels[0].rows_N.copy()
    row = before[np.flatnonzero(before["label"] == 0)[0]]
    late = example(
        10_000, partition=int(row["partition"]), offset=int(row["impression"]), index=int(row["index"]),
        labels=[1.0, 0.0], previous=[0.0, 0.0], correction=True,
    )  # fmt: skip
    append_examples(line.log, [late])
    line.learn(64)
    line.save()
    line.watch.turn()
    after = line.watch.panels[-1].rows_N
    differs = np.flatnonzero(after["label"] != before["label"])
    assert len(differs) == 1 and after[differs[0]]["impression"] == row["impression"]


def late_correction(line: Line) -> int:
    """Of an example of the oldest panel; returns the id of that."""
    rows = line.watch.panels[-1].rows_N
    row = rows[np.flatnonzero(rows["label"] == 0)[0]]
    late = example(
        10_000, partition=int(row["partition"]), offset=int(row["impression"]), index=int(row["index"]),
        labels=[1.0, 0.0], previous=[0.0, 0.0], correction=True,
    )  # fmt: skip
    append_examples(line.log, [late])
    return int(row["impression"])


def test_a_correction_outlives_a_run_that_breaks_off(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.learn(320)
    line.save()
    line.watch.turn()
    its = late_correction(line)
    line.learn(400)
    line.save()

    def pruned(*_: object) -> None:
        raise FileNotFoundError("rows.safetensors")

    with monkeypatch.context() as patched:
        patched.setattr(panel_watch, "rows_of", pruned)
        assert not line.watch.turn() and len(line.watch.panels) == 1
    line.learn(400)  # so that the fresh panel begins after the correction
    line.save()
    assert line.watch.turn()
    rows = line.watch.panels[-1].rows_N
    assert rows["label"][rows["impression"] == its].tolist() == [1.0]


def test_records_that_are_too_many_to_look_through_are_counted(line: Line) -> None:
    append_examples(line.log, [example(n) for n in range(60)])
    ends = [line.log.end(EXAMPLES, p) for p in range(3)]
    came = panel_log.read_corrections(line.log, {0: 0, 1: 3}, most=5)
    assert came.skipped == (ends[0] - 5) + (ends[1] - 5 - 3) and came.ends == dict(enumerate(ends[:2]))


def test_scoring_stops_between_batches_when_it_is_to_end(line: Line) -> None:
    two_snapshots(line)
    line.learn(64)
    line.save()
    asked = count()
    ended = PanelWatch(line.log, line.config, FEATURES, ended=lambda: next(asked) == 2)
    with pytest.raises(Ended):
        ended.turn()
    assert next(asked) == 3 and ended.step < line.client.shards[0].applied


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["opens", "begins", "turns", "turns late"])
def test_the_thread_outlives_every_error_and_tells_nothing_old(
    line: Line, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    line.learn(320)
    line.save()
    if where == "turns late":
        line.watch.turn()
    faults = {"opens": LogUnavailable("away"), "begins": LogUnavailable("away")}
    fault = faults.get(where, RuntimeError("a shape that nobody expected"))
    failed, beat, mended = threading.Event(), Heartbeat("shadow"), threading.Event()

    def broken(own: Callable[..., Any]) -> Callable[..., Any]:
        def run(*its: Any, **more: Any) -> Any:
            if not mended.is_set():
                failed.set()
                raise fault
            return own(*its, **more)

        return run

    monkeypatch.setattr(panel_watch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(panel_watch, "feature_set", lambda _: FEATURES)
    monkeypatch.setattr(panel_watch, "open_log", lambda _: line.log)
    if where == "opens":
        monkeypatch.setattr(panel_watch, "open_log", broken(panel_watch.open_log))
    elif where == "begins":
        monkeypatch.setattr(panel_watch, "ControlReader", broken(panel_watch.ControlReader))
    else:
        monkeypatch.setattr(PanelWatch, "turn", broken(PanelWatch.turn))
    thread = PanelThread(line.config, beat, pause_s=0.05)
    try:
        assert failed.wait(20)
        if where.startswith("turns"):
            until(lambda: beat.now().counters["panel_failures"] > 1)
            monkeypatch.setattr(PanelWatch, "__init__", broken(PanelWatch.__init__))
            failures = beat.now().counters["panel_failures"]
            until(lambda: beat.now().counters["panel_failures"] > failures + 1)
            assert not any(name.startswith("panel") for name in beat.now().gauges)
        mended.set()
        until(lambda: beat.now().gauges.get("panels") == 1)
    finally:
        thread.close()


def test_panels_of_history_that_was_replaced_go_and_those_before_stay(line: Line) -> None:
    two_snapshots(line)
    first, second = (p.step for p in reversed(line.watch.panels))
    for epoch, since in ((1, second), (2, first)):
        its = Live(line=MAIN, epoch=epoch, base_step=since, parent_epoch=0)
        line.log.append(CONTROL, [Append(0, b"", pack(its))])
        for part, shard in enumerate(line.client.shards):
            arrays, meta = shard.export()
            where = (line.folder, MAIN, epoch, second, part, 2)
            snapshots.write_part(*where, arrays, meta | {"step": second})
        if epoch == 1:  # a promotion: what is left in the model that was promoted
            assert line.watch.turn() and len(line.watch.panels) == 2
            assert line.watch.retention[PREVIOUS].examples == 256


def test_runs_take_no_more_than_their_share(line: Line) -> None:
    spent = count(0, 0.5)
    line.watch = PanelWatch(line.log, line.config, FEATURES, lambda: line.now_s, lambda: next(spent))
    line.learn(320)
    line.save()
    assert line.watch.turn() and line.watch.cpu_s == 0.5
    line.learn(64)
    line.save()
    line.now_s = 49.0
    assert not line.watch.turn()
    line.now_s = 51.0
    assert line.watch.turn()


def test_what_is_not_told_any_more_leaves_the_heartbeat(line: Line) -> None:
    two_snapshots(line)
    beat = Heartbeat("shadow")
    beat.gauge("cpu_s", 1.0)
    report(line.watch, beat)
    gauges = beat.now().gauges
    assert gauges["panels"] == 2 and gauges["panel_step"] == line.watch.step
    its = line.watch.retention[PREVIOUS]
    assert gauges["panel_forgotten.previous"] == round(its.learned - its.now, 4)
    line.watch.retention = {}
    report(line.watch, beat)
    left = beat.now().gauges
    assert "panel_forgotten.previous" not in left and left["cpu_s"] == 1.0


def test_a_run_looks_through_the_keys_of_a_snapshot_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    own = panel_watch.rows_of
    monkeypatch.setattr(panel_watch, "rows_of", lambda *its: looks.append(1) or own(*its))
    monkeypatch.setattr(panel_watch, "_AT_ONCE", 50)  # several batches of each panel
    two_snapshots(line)
    assert len(looks) == 2 and line.watch.retention[PREVIOUS].examples == 256


def test_candidates_take_what_their_loop_is_told_that_it_spent(line: Line) -> None:
    spent = count(0, 0.5)
    loop = ShadowLoop(line.log, line.config, FEATURES, lambda: 0, spent=lambda: next(spent))
    loop.turn()
    assert loop.cpu_s == 0.5
