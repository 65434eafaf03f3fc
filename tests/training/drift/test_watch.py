"""From the deltas of a line to what the director says of drift."""

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from recsys.config.part_configs import DriftConfig
from recsys.events.control_records import Alarm, Control, Live
from recsys.events.event_types import FeatureBlock
from recsys.events.records import CONTROL, DELTAS, STEPS, Delta, Step, pack, topics, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, LogUnavailable
from recsys.process.part_process import Heartbeat
from tests.support.training.learning_loops import Clock, FlakyLog, everything, sequence
from tests.support.training.small_feed import FEATURES, append_examples, example, toy_config, toy_log
from training.candidates.director import Director
from training.drift import watch as drift_watch
from training.drift.watch import DriftWatch, SampledFeatures, is_steady

CALM, BLOCK = 85, 128  # steps that warm the monitors up, each a block


def steps(log, first: int, many: int, loss: float = 0.6, epoch: int = 0, line: str = "main"):
    """Deltas of steps with some noise around a mean loss of each label, which stays calibrated."""
    rng, found = np.random.default_rng(first), []
    for step in range(first, first + many):
        metrics = {"examples": float(BLOCK)}
        for label in (*FEATURES.schema.labels, "click", "follow", "comment", "share", "hide"):
            metrics[f"loss.{label}"] = BLOCK * (loss + 0.02 * rng.standard_normal())
            metrics[f"predicted.{label}"] = BLOCK * 0.3
            metrics[f"happened.{label}"] = BLOCK * (0.3 + 0.02 * rng.standard_normal())
        its = Delta(line=line, epoch=epoch, step=step, base_step=step - 1, part=0, parts=2,
                    metrics=metrics, time_ms=60_000 * step)  # fmt: skip
        found += [its, replace_part(its)]
    log.append(DELTAS, [Append(0, b"", pack(delta)) for delta in found])


def replace_part(delta: Delta) -> Delta:
    return structs.replace(delta, part=1, metrics={})


def config_of(tmp_path, rules: DriftConfig | None = None):
    return replace(toy_config(str(tmp_path)), drift=rules or DriftConfig())


def director(log, tmp_path, rules: DriftConfig | None = None) -> Director:
    its = Director(log, config_of(tmp_path, rules), lambda: 0)
    its.turn()
    return its


def said(log, kind: type) -> list:
    records = [unpack(record.value, Control) for record in log.read(CONTROL, 0, 0)]
    return [record for record in records if isinstance(record, kind)]


def test_an_alarm_is_told_and_changes_no_step(tmp_path) -> None:
    log, clock = toy_log(), Clock()
    its, loop = director(log, tmp_path), sequence(log, clock)
    steps(log, 1, CALM)
    its.turn()
    assert said(log, Alarm) == []
    steps(log, CALM + 1, 8, loss=1.2)
    its.turn()
    alarms = said(log, Alarm)
    assert {alarm.kind for alarm in alarms} == {"loss"} and alarms[0].measured > 1.0
    assert alarms[0].expected == pytest.approx(0.6, abs=0.02) and alarms[0].step > CALM
    log.append(CONTROL, [Append(0, b"", pack({"type": "reaction", "rate": 3.0}))])  # of an earlier version
    append_examples(log, [example(n) for n in range(8)])
    clock.now_ms += 1_000
    loop.turn()
    assert everything(log, STEPS, Step)[0][-1].rate == 1.0


def test_an_alarm_found_before_a_read_that_fails_is_returned_by_the_next_turn(tmp_path) -> None:
    log = toy_log()
    watch = DriftWatch(log, config_of(tmp_path), FEATURES)
    steps(log, 1, CALM)
    watch.turn(0)
    steps(log, CALM + 1, 8, loss=1.2)
    read = watch.learned.read

    def fails_at_its_end():
        yield from read()
        raise LogUnavailable("deltas are away")

    watch.learned.read = fails_at_its_end
    with pytest.raises(LogUnavailable):
        watch.turn(0)
    watch.learned.read = read
    assert len(watch.turn(0)) == watch.alarms > 0 and watch.turn(0) == []


def test_another_director_warms_up_again(tmp_path) -> None:
    log = toy_log()
    first = director(log, tmp_path)
    steps(log, 1, CALM)
    steps(log, CALM + 1, 8, loss=1.2)
    first.turn()
    before = len(said(log, Alarm))
    again = director(log, tmp_path)
    assert before and again.drift.alarms == 0
    steps(log, CALM + 9, 30, loss=2.4)
    again.turn()
    assert len(said(log, Alarm)) == before  # nothing is told during warm-up
    steps(log, CALM + 39, 60, loss=2.4)
    steps(log, CALM + 99, 8, loss=4.0)
    again.turn()
    assert len(said(log, Alarm)) > before


def test_where_nothing_is_watched_no_alarm_is_told(tmp_path) -> None:
    log = toy_log()
    off = director(log, tmp_path, DriftConfig(watch=False))
    steps(log, 1, CALM)
    steps(log, CALM + 1, 8, loss=1.2)
    off.turn()
    assert said(log, Alarm) == []


def test_other_lines_repeated_steps_and_what_is_no_number_are_passed_over(tmp_path) -> None:
    log = toy_log()
    its = director(log, tmp_path)
    steps(log, 1, CALM)
    steps(log, CALM - 20, 20, loss=3.0)  # a line that went back repeats them
    steps(log, CALM + 1, 20, loss=3.0, line="candidate")
    steps(log, CALM + 1, 20, loss=3.0, epoch=5)  # it isn't live
    steps(log, CALM + 1, 2, loss=float("nan"))
    log.append(DELTAS, [Append(0, b"", b"\xff")])
    its.turn()
    assert said(log, Alarm) == [] and its.drift.not_finite == 2


def test_examples_of_a_warm_up_are_not_judged_and_define_nothing_usual(tmp_path) -> None:
    for from_ms, expected in ((0, True), (60_000 * CALM, False)):
        log = toy_log()
        its = director(log, tmp_path, DriftConfig(from_ms=from_ms))
        steps(log, 1, CALM)
        steps(log, CALM + 1, 20, loss=3.0)  # other people
        its.turn()
        assert bool(said(log, Alarm)) == expected
    steps(log, CALM + 21, CALM, loss=3.0)
    steps(log, 2 * CALM + 21, 20, loss=6.0)
    its.turn()
    assert said(log, Alarm), "drift among them is seen"


def test_in_another_epoch_the_losses_begin_anew(tmp_path) -> None:
    log = toy_log()
    its = director(log, tmp_path)
    steps(log, 1, CALM)
    its.turn()
    log.append(CONTROL, [Append(0, b"", pack(Live(line="main", epoch=1, base_step=CALM, parent_epoch=0)))])
    steps(log, CALM + 1, 20, loss=1.5, epoch=1)
    its.turn()
    assert said(log, Alarm) == [] and its.drift.learned.step == CALM + 20


def test_what_the_log_did_not_take_is_told_when_it_does(tmp_path) -> None:
    log = FlakyLog()
    for topic in topics(2):
        log.create(topic)
    its = director(log, tmp_path)
    steps(log, 1, CALM)
    steps(log, CALM + 1, 6, loss=1.2)
    log.fail[CONTROL] = [0]
    with pytest.raises(LogUnavailable):
        its.turn()
    assert said(log, Alarm) == []
    its.turn()
    assert said(log, Alarm)


def test_deltas_that_were_trimmed_are_passed_over(tmp_path) -> None:
    log = toy_log()
    its = director(log, tmp_path)
    steps(log, 1, 10)
    log.trim(DELTAS, 0, 15)
    its.turn()
    assert its.drift.learned.step == 10


def test_the_heartbeat_says_how_many_alarms_there_were(tmp_path) -> None:
    log, beat = toy_log(), Heartbeat("director")
    its = director(log, tmp_path)
    its.report(beat, 0)
    assert beat.now().gauges["alarms"] == 0
    steps(log, 1, CALM)
    steps(log, CALM + 1, 8, loss=1.2)
    its.turn()
    its.report(beat, 0)
    assert beat.now().gauges["alarms"] == its.drift.alarms > 0


# --- features ---


def test_a_share_of_the_examples_is_looked_at_and_no_correction(monkeypatch) -> None:
    log = toy_log()
    sampled = SampledFeatures(log, FEATURES)
    fed = []
    monkeypatch.setattr(sampled.monitor, "step", lambda *its: fed.append(its) or [])
    monkeypatch.setattr(drift_watch, "_SHARE", 1.0)
    odd = FeatureBlock(feature_set="another")
    changes = {1: {"correction": True}, 4: {"features": odd}, 7: {"features": None}}
    append_examples(log, [example(3 * n, **changes.get(n, {})) for n in range(64)])  # partition 0
    assert sampled.turn(0, 5) == [] and sampled.watched == 61
    dense_BF, keys, at_ms, step = fed[0]
    assert dense_BF.shape == (61, len(sampled.monitor.columns)) and (at_ms, step) == (
        example(189).closed_ms,
        5,
    )
    block = example(0).features
    assert block is not None
    user = np.frombuffer(block.user_keys, np.int64)
    assert keys["profile"][0] == user[1] and set(keys) >= {"context", "duration", "item.author"}
    sampled.turn(10, 5)  # not due yet
    again = [example(3)] * 64
    append_examples(log, again)
    assert len(fed) == 1
    monkeypatch.setattr(drift_watch, "_SHARE", 0.25)
    append_examples(log, again * 40)
    for now_ms in range(1_000, 60_000, 1_000):
        sampled.turn(now_ms, 5)
    assert 64 <= sampled.watched - 61 < 64 * drift_watch._BEHIND / 2


def test_features_of_a_warm_up_are_not_looked_at(monkeypatch) -> None:
    log = toy_log()
    sampled = SampledFeatures(log, FEATURES, example(30).closed_ms)
    monkeypatch.setattr(drift_watch, "_SHARE", 1.0)
    append_examples(log, [example(3 * n) for n in range(64)])
    sampled.turn(0, 5)
    assert sampled.watched == 64 - 11


def test_columns_that_only_grow_or_turn_are_not_watched() -> None:
    assert all(map(is_steady, ("item/like.fast", "user/watch.slow", "item.duration_ms")))
    assert not any(map(is_steady, ("all/shown.slow", "hour.sin", "events", "item.vector[3]")))


def test_a_system_of_the_usual_features_is_watched(tmp_path) -> None:
    config = config_of(tmp_path)
    assert DriftWatch(toy_log(), config, feature_set(config))._features.monitor.slots
