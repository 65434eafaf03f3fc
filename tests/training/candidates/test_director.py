"""What the director appends to `control`, and that it appends nothing twice."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from parameter_server.storage.snapshots import complete_steps, write_part
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Erasure, Experiments, ExperimentState, Live
from recsys.events.records import CONTROL, pack, topics, unpack
from recsys.log.protocol import Append, MemoryLog
from recsys.process.disk_budget import Level, Space
from recsys.process.part_process import Heartbeat, run_folder
from recsys.process.space_file import FILE
from training.candidates.director import Director, experiment_texts
from training.candidates.rollback_impact import impact_file, read_impact


@pytest.fixture
def log():
    log = MemoryLog()
    for topic in topics(2):
        log.create(topic)
    return log


def director(log, tmp_path, texts):
    return Director(log, replace(Config(), state=str(tmp_path)), lambda: 1_000, texts)


def controls(log):
    return [unpack(record.value, Control) for record in log.read(CONTROL, 0, 0)]


def test_the_first_line_and_the_experiments_are_told_once(log, tmp_path):
    texts = experiment_texts()
    assert "default.yaml" in texts
    director(log, tmp_path, texts).turn()
    told = controls(log)
    assert [type(record) for record in told] == [Live, Experiments]
    assert told[0].line == "main" and told[1].revision == 1 and told[1].configs == texts
    for _ in range(2):  # another turn, another director: nothing new to say
        again = director(log, tmp_path, texts)
        again.turn()
        again.turn()
    assert len(controls(log)) == 2


def test_a_changed_file_is_a_new_revision(log, tmp_path):
    texts = experiment_texts()
    director(log, tmp_path, texts).turn()
    changed = {name: text.replace("share: 0.5", "share: 0.50") for name, text in texts.items()}
    director(log, tmp_path, changed).turn()
    assert [r.revision for r in controls(log) if isinstance(r, Experiments)] == [1, 2]


def test_a_file_that_cannot_be_read_is_told_to_nobody(log, tmp_path):
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        director(log, tmp_path, {"bad.yaml": "name: x\nnonsense: 1\n"})
    assert controls(log) == []


def test_a_record_that_cannot_be_read_is_passed_over(log, tmp_path):
    log.append(CONTROL, [Append(0, b"", b"\xff"), Append(0, b"", pack(Live(line="main", epoch=3)))])
    its = director(log, tmp_path, {})
    its.turn()
    assert its.live is not None and its.live.epoch == 3


def test_an_impact_that_a_power_cut_has_emptied_is_listed_again(log, tmp_path):
    lives = [Live(line="main", epoch=epoch) for epoch in (0, 1, 2)]  # the last: a rollback to 0
    records = [*lives, Erasure(user_id="u", time_ms=1, offset=0)]
    log.append(CONTROL, [Append(0, b"", pack(record)) for record in records])
    file = impact_file(tmp_path, "main/1")
    file.parent.mkdir()
    file.write_bytes(b"")
    clock = iter(range(0, 1_000_000, 20_000))
    its = Director(log, replace(Config(), state=str(tmp_path)), lambda: next(clock), {})
    for _ in range(3):
        its.turn()
    listed = read_impact(file)
    assert listed is not None and listed.served_by == "main/1"


def test_the_heartbeat_counts_experiments_that_ended_by_themselves(log, tmp_path):
    whys = {"a": "broken: users by arm", "b": "broken: can't be read", "c": "harm: hide", "d": "asked"}
    stands = {name: ExperimentState(state="stopped", why=why) for name, why in whys.items()}
    log.append(CONTROL, [Append(0, b"", pack(Experiments(revision=1, states=stands)))])
    its, beat = director(log, tmp_path, {}), Heartbeat("director")
    its.turn()
    its.report(beat, 0)
    ended = {"experiments_broken": 2, "experiments_harmed": 1}
    assert beat.now().gauges.items() >= ended.items()


def test_it_keeps_two_snapshots_while_disk_space_is_low(log, tmp_path):
    for step in (1, 2, 3):
        write_part(tmp_path / "snapshots", "main", 0, step, 0, 1, {"a": np.zeros(step)}, {"step": step})
    its = director(log, tmp_path, {})
    its.turn()
    assert complete_steps(tmp_path / "snapshots", "main", 0) == [1, 2, 3]
    space = Space(level=Level.LOWER, time_ms=machine_ms())
    (run_folder(tmp_path) / FILE).write_bytes(msgspec.json.encode(space))
    its = Director(log, replace(Config(), state=str(tmp_path)), lambda: 10_000, {})
    its.turn()
    assert complete_steps(tmp_path / "snapshots", "main", 0) == [2, 3]
