"""Declared operators in whole systems: a live run has no skew and is explained to the bit, and a replay of a
log is the same twice."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.answers.reconstruction_run import run_system
from benchmarks.harness.archived_log import archive_log
from benchmarks.harness.local_system import LocalSystem, small_config
from parameter_server.publish.deltas import StepDelta
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from plugins.feature_audit.archive_audit import audit_features
from recsys.config.system_config import Config
from recsys.events.event_types import Event, Impression, User
from recsys.events.field_schema import NUMERIC
from recsys.features.families.declared import Declared, faults
from recsys.features.families.derived import Derived
from recsys.features.feature_set import FeatureSet, Floats
from recsys.features.feature_set_file import FEED_SCHEMA, feature_set, write_feature_set
from recsys.features.request_features import read_block
from recsys.process.open_log import open_log
from replay.datasets.open_dataset import open_dataset
from replay.player import Player
from replay.replay_report import _about
from replay.replay_run import ReplayOptions, replay_data
from tests.support.operator_app import APP, START_MS, events, past
from tests.support.operator_app import FEATURES as APP_FEATURES

FEATURES = FeatureSet(
    replace(
        FEED_SCHEMA,
        user=(*FEED_SCHEMA.user, ("age", NUMERIC)),
        context=(*FEED_SCHEMA.context, ("battery", NUMERIC)),
        kinds=("view", "long_view", "like", "hide"),
    ),
    declared=Declared(
        half_lives_h=(1.0, 24.0),
        entities=("all", "item", "author", "topic", "user", "user×author", "user×item",
                  "country×author", "surface×topic", "user×surface"),
        item_age=True,
        numbers=("user.age", "context.battery"),
        counts=("hide",),
        values=(("like", "stars"),),
        against=(("item", "author"), ("user×author", "author")),
        last=(("view", "item"), ("view", "user×item"), ("view", "user"),
              ("like", "country×author")),
        distinct=(("view", "item", "user"), ("view", "user", "topic"),
                  ("like", "country×author", "user")),
        derived=(
            Derived("gap", "difference", ("item/long_view.1h", "author/long_view.1h")),
            Derived("band", "bucket", ("item/shown.24h",), (0.1, 0.2, 0.4)),
            Derived("match", "function", ("gap", "item.age", "band"), (),
                    "tests.support.operator_app:match@2"),
        ),
    ),
)  # fmt: skip


@pytest.mark.slow
def test_a_live_run_has_no_skew_and_is_explained_to_the_bit(tmp_path: Path) -> None:
    assert not list(faults(FEATURES))
    config = small_config(tmp_path / "state")
    write_feature_set(config, FEATURES)
    assert feature_set(config) == FEATURES
    # A seed with which no item changes while events on it wait to be counted (docs/how-to/audit.md, limits).
    asked, steps = asyncio.run(run_system(LocalSystem(config), 60, 1))
    assert steps > 5
    log = open_log(config)
    archive_log(log, tmp_path / "state" / "archive")
    log.close()
    report = audit_features(tmp_path / "state" / "archive", 1.0, 1_000)
    assert (report.sampled, report.equal, report.differing) == (60, 60, {})
    assert not report.without_counters
    system = LocalSystem(config)
    checker = AnswerChecker(system.log, config, system.features)
    checks = [checker.explain(request_id, user) for request_id, user in asked]
    system.close()
    assert [check.verdict for check in checks] == [EQUAL] * 60


class Recorder:
    """A loop that learns nothing and remembers what is appended."""

    def __init__(self) -> None:
        self.appended: list[Event] = []

    def advance(self, now_ms: int) -> list[StepDelta]:
        return []

    def append(self, event: Event) -> None:
        self.appended.append(event)


def test_a_replay_has_the_bits_of_the_server() -> None:
    recorder = Recorder()
    player = Player(APP_FEATURES, Config(), recorder)
    for event in events(60):
        player.play(event)
    logged = {s.impression.request_id: s.impression.features for s in past(60).shown()}
    played = [event for event in recorder.appended if isinstance(event, Impression)]
    assert len(played) == len(logged) == 60
    for impression in played:
        one, other = impression.features, logged[impression.request_id]
        assert one is not None and other is not None
        dense = [read_block(block, APP_FEATURES).dense_NF for block in (one, other)]
        assert np.array_equal(dense[0], dense[1]) and one.item_keys == other.item_keys
    gone = User(time_ms=START_MS + 10**9, user_id="u1", removed=True)
    assert len(player.item_counters.operators._rows_of("u1"))
    player.play(gone)
    assert not len(player.item_counters.operators._rows_of("u1")) and "u1" not in player.sessions


def test_a_log_is_replayed_the_same_twice(tmp_path: Path) -> None:
    lines = [json.dumps(msgspec.to_builtins(event)) for event in events(60)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    options = ReplayOptions(step_examples=16, step_every_s=20.0)
    once, again = (replay_data(open_dataset(tmp_path, APP), options) for _ in range(2))
    assert once.digest == again.digest and once.steps > 5
    assert len(once.predictions.item_id) == 180 and once.function_errors == {}


def test_a_replay_reports_calls_of_functions_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def match(*values: Floats) -> Floats:
        raise ZeroDivisionError

    monkeypatch.setattr("tests.support.operator_app.match", match)
    lines = [json.dumps(msgspec.to_builtins(event)) for event in events(20)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    dataset, options = open_dataset(tmp_path, APP), ReplayOptions(step_examples=16)
    replayed = replay_data(dataset, options)
    (calls,) = [count for name, count in replayed.function_errors.items() if name == "match"]
    assert calls >= 20  # of some lists, for candidates, too
    about = _about(tmp_path, dataset, options, replayed)
    assert about["function_errors"] == {"match": calls}
