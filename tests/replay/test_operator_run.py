"""Declared operators in whole systems: a live run has no skew and is explained to the bit, and a replay of a
log is the same twice."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from benchmarks.answers.reconstruction_run import run_system
from benchmarks.harness.local_system import LocalSystem, small_config
from recsys.app.feature_checks import faults
from recsys.events.field_schema import NUMERIC
from recsys.features.feature_set import Declared, FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA, feature_set, write_feature_set
from recsys.features.operators import Derived
from recsys.process.open_log import open_log
from replay.answer_check import EQUAL, AnswerChecker
from replay.datasets.open_dataset import open_dataset
from replay.replay_run import ReplayOptions, replay_data
from runtime.jobs.archive_jobs import audit_features
from tests.support.operator_app import APP, events
from training.archive.writer import Archive

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
    asked, steps = asyncio.run(run_system(LocalSystem(config), 60, 0))
    assert steps > 5
    log = open_log(config)
    archive = Archive(log, tmp_path / "state" / "archive", lambda: 0)
    while archive.turn():
        pass
    archive.flush()
    log.close()
    report = audit_features(tmp_path / "state" / "archive", 1.0, 1_000)
    assert (report.sampled, report.equal, report.differing) == (60, 60, {})
    assert not report.without_counters
    system = LocalSystem(config)
    checker = AnswerChecker(system.log, config, system.features)
    checks = [checker.explain(request_id, user) for request_id, user in asked]
    system.close()
    assert [check.verdict for check in checks] == [EQUAL] * 60


def test_a_log_is_replayed_the_same_twice(tmp_path: Path) -> None:
    lines = [json.dumps(msgspec.to_builtins(event)) for event in events(60)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    options = ReplayOptions(step_examples=16, step_every_s=20.0)
    once, again = (replay_data(open_dataset(tmp_path, APP), options) for _ in range(2))
    assert once.digest == again.digest and once.steps > 5
    assert len(once.predictions.item_id) == 180
