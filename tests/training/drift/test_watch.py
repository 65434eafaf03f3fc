"""From the deltas of a line to what the director says of drift, and from that to the next step's record."""

import logging
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.lanes import MAX_RATE
from recsys.config.part_configs import DriftConfig
from recsys.events.control_records import Alarm, Control, Live, Reaction
from recsys.events.event_types import FeatureBlock
from recsys.events.records import CONTROL, DELTAS, STEPS, Delta, Step, pack, topics, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, LogUnavailable
from recsys.process.part_process import Heartbeat
from tests.support.training.learning_loops import Clock, FlakyLog, everything, sequence
from tests.support.training.small_feed import (
    FEATURES,
    append_examples,
    example,
    toy_config,
    toy_log,
)
from training.candidates.director import Director, report
from training.drift import watch as drift_watch
from training.drift.offline_command import OfflineCommand
from training.drift.watch import DriftWatch, SampledFeatures, is_steady

REACTS = DriftConfig(react=True, calm_examples=128 * 90, most_gathered=4)
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


def config_of(tmp_path, rules: DriftConfig = REACTS):
    return replace(toy_config(str(tmp_path)), drift=rules)


def director(log, tmp_path, rules: DriftConfig = REACTS) -> Director:
    its = Director(log, config_of(tmp_path, rules), lambda: 0)
    its.turn()
    return its


def said(log, kind: type) -> list:
    records = [unpack(record.value, Control) for record in log.read(CONTROL, 0, 0)]
    return [record for record in records if isinstance(record, kind)]


def next_step(log, loop, clock) -> Step:
    append_examples(log, [example(n) for n in range(8)])
    clock.now_ms += 1_000
    loop.turn()
    return everything(log, STEPS, Step)[0][-1]


def test_an_alarm_becomes_a_reaction_and_that_the_next_step_s_rate(tmp_path) -> None:
    log, clock = toy_log(), Clock()
    its, loop = director(log, tmp_path), sequence(log, clock)
    steps(log, 1, CALM)
    its.turn()
    assert said(log, Alarm | Reaction) == [] and next_step(log, loop, clock).rate == 1.0
    steps(log, CALM + 1, 8, loss=1.2)
    its.turn()
    alarms, reactions = said(log, Alarm), said(log, Reaction)
    assert {alarm.kind for alarm in alarms} == {"loss"} and alarms[0].found > 1.0
    assert alarms[0].expected == pytest.approx(0.6, abs=0.02) and alarms[0].step > CALM
    assert (reactions[0].rate, reactions[0].publish_every, reactions[0].offline) == (3.0, 1, True)
    assert reactions[0].because[0].startswith("loss ")
    assert said(log, Alarm | Reaction).index(reactions[0]) > 0  # first why, then what
    assert next_step(log, loop, clock).rate == reactions[-1].rate > 1.0
    assert next_step(log, sequence(log, clock), clock).rate == reactions[-1].rate  # another one
    steps(log, CALM + 9, 400)
    its.turn()
    assert said(log, Reaction)[-1].rate == next_step(log, loop, clock).rate == 1.0


def test_a_stationary_stream_gathers_and_an_alarm_ends_that_at_once(tmp_path) -> None:
    log, clock = toy_log(), Clock()
    its, loop = director(log, tmp_path), sequence(log, clock)
    steps(log, 1, 300)
    its.turn()
    assert [r.publish_every for r in said(log, Reaction)] == [2, 4]
    held = [next_step(log, loop, clock).defers_rows for _ in range(8)]
    assert held.count(False) == 2 and held.count(True) == 6
    steps(log, 301, 8, loss=1.2)
    its.turn()
    assert said(log, Reaction)[2].publish_every == 1
    assert not any(next_step(log, loop, clock).defers_rows for _ in range(5))


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
    records = watch.turn(0)
    assert [r for r in records if isinstance(r, Alarm)] and watch.alarms
    assert [r for r in records if isinstance(r, Reaction)] and watch.turn(0) == []


def test_another_director_goes_on_from_the_newest_reaction_and_warms_up_again(tmp_path) -> None:
    log = toy_log()
    first = director(log, tmp_path)
    steps(log, 1, CALM)
    steps(log, CALM + 1, 8, loss=1.2)
    first.turn()
    before = len(said(log, Alarm)), said(log, Reaction)
    again = director(log, tmp_path)
    assert again.drift.reaction == before[1][-1] and again.drift.alarms == 0
    steps(log, CALM + 9, 30, loss=2.4)
    again.turn()
    assert len(said(log, Alarm)) == before[0]  # nothing is told during warm-up …
    rates = [r.rate for r in said(log, Reaction)]
    assert rates[-1] < before[1][-1].rate and rates[len(before[1]) :] == sorted(
        rates[len(before[1]) :], reverse=True
    )
    steps(log, CALM + 39, 60, loss=2.4)  # … nor is the offline job asked for twice in six hours
    steps(log, CALM + 99, 8, loss=4.0)
    again.turn()
    assert len(said(log, Alarm)) > before[0] and sum(r.offline for r in said(log, Reaction)) == 1


def test_where_reactions_are_off_alarms_are_told_alone_and_what_stood_is_taken_back(
    tmp_path,
) -> None:
    log = toy_log()
    log.append(CONTROL, [Append(0, b"", pack(Reaction(rate=2.5, publish_every=4)))])
    its = director(log, tmp_path, DriftConfig())
    assert [(r.rate, r.publish_every) for r in said(log, Reaction)] == [(2.5, 4), (1.0, 1)]
    steps(log, 1, CALM)
    steps(log, CALM + 1, 8, loss=1.2)
    its.turn()
    assert said(log, Alarm) and len(said(log, Reaction)) == 2
    assert len(said(log, Reaction)) == 2 and director(log, tmp_path, DriftConfig()).turn() == 0
    off = director(log, tmp_path, DriftConfig(watch=False))
    before = len(said(log, Alarm))
    steps(log, 101, CALM + 8)
    steps(log, 202, 8, loss=1.5)
    off.turn()
    assert len(said(log, Alarm)) == before


def test_a_lowered_bound_holds_for_what_stands_already(tmp_path) -> None:
    log = toy_log()
    log.append(CONTROL, [Append(0, b"", pack(Reaction(rate=3.0, publish_every=8)))])
    its = director(log, tmp_path, DriftConfig(react=True, most_rate=2.0, most_gathered=4))
    assert (its.drift.reaction.rate, its.drift.reaction.publish_every) == (2.0, 4)


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
        its = director(log, tmp_path, replace(REACTS, from_ms=from_ms))
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
    log.append(
        CONTROL, [Append(0, b"", pack(Live(line="main", epoch=1, base_step=CALM, parent_epoch=0)))]
    )
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
    assert said(log, Alarm) and said(log, Reaction)[0].rate == 3.0


def test_deltas_that_were_trimmed_are_passed_over(tmp_path) -> None:
    log = toy_log()
    its = director(log, tmp_path)
    steps(log, 1, 10)
    log.trim(DELTAS, 0, 15)
    its.turn()
    assert its.drift.learned.step == 10


def test_whoever_folds_control_passes_alarms_and_reactions_over() -> None:
    alarm = Alarm(
        kind="loss", what="like", at_ms=1, step=2, expected=0.5, found=0.7, scale=0.1, detector="x"
    )
    assert not Lifecycle().fold(alarm) and not Lifecycle().fold(Reaction(rate=2.0))


@pytest.mark.parametrize("rate", [0.0, -1.0, MAX_RATE + 1, float("nan"), float("inf")])
def test_a_reaction_that_makes_no_sense_is_none(rate: float) -> None:
    log, clock = toy_log(), Clock()
    log.append(CONTROL, [Append(0, b"", pack(Reaction(rate=rate, publish_every=-3)))])
    step = next_step(log, sequence(log, clock), clock)
    assert (step.rate, step.defers_rows) == (1.0, False)


def test_the_heartbeat_says_how_things_are(tmp_path) -> None:
    log, beat = toy_log(), Heartbeat("director")
    log.append(CONTROL, [Append(0, b"", pack(Reaction(rate=1.5, publish_every=2)))])
    report(director(log, tmp_path), beat)
    gauges = beat.now().gauges
    of_drift = {"alarms": 0, "rate": 1.5, "publish_every": 2, "offline_runs": 0}
    assert gauges.items() >= of_drift.items()


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


# --- the offline command ---


def waits(script: str) -> str:
    return f"{sys.executable} -S -c '{script}'"


def until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_offline_command_runs_once_at_a_time_and_its_end_is_told(tmp_path, caplog) -> None:
    file = tmp_path / "ran"
    its = OfflineCommand(waits(f'open("{file}", "a").write("x"); input()'))
    assert its.start() and its.runs and not its.start()
    with caplog.at_level(logging.INFO):
        until(lambda: not its.runs)  # its input is at its end
    assert file.read_text() == "x" and its.ended == [1] and "status 1" in caplog.text
    assert its.start()
    its.close()
    assert not its.runs


def test_without_a_command_or_with_one_that_is_not_there_nothing_runs() -> None:
    assert not OfflineCommand("").start() and not OfflineCommand("/no/such/thing").start()


def test_the_director_starts_it_where_a_reaction_says_so(tmp_path) -> None:
    log = toy_log()
    its = director(log, tmp_path, replace(REACTS, offline_command=waits("input()")))
    steps(log, 1, CALM)
    steps(log, CALM + 1, 8, loss=1.2)
    its.turn()
    until(lambda: not its.offline.runs)
    assert its.offline.ended == [1]
