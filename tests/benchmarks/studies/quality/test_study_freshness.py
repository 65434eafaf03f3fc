"""`recsys study freshness`: copies side by side give what replays of their own give, and what is said."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.quality.judged_days import judged_from_ms
from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.studies.quality.study_figures import JudgedRows, draw_aucs, figures
from benchmarks.studies.quality.study_freshness import judge, syncs_of
from recsys.events.event_types import Engagement, Impression
from recsys.model.prediction_metrics import auc
from replay.replay_run import ReplayOptions, replay_data
from runtime.cli.main import app

pytestmark = pytest.mark.steady

OPTIONS = ReplayOptions(features="ids", step_examples=24)
HOUR_MS = 3_600_000


def small(seed: int = 1) -> WorldLog:
    return WorldLog(seed, hours=30, users=12, items=30, requests_per_s=0.0015)


@cache
def judged_of(seed: int) -> tuple[JudgedRows, int]:
    return judge(small(), OPTIONS, seed)


@pytest.mark.slow
def test_a_copy_scores_as_a_replay_of_its_own() -> None:
    world = small()
    from_ms = judged_from_ms(world)
    judged, steps = judged_of(0)
    assert steps > 10
    alone = {"frozen": {"frozen_after_ms": from_ms}} | {
        sync.name: {"sync_every_ms": sync.every_ms} for sync in syncs_of(from_ms)[1:]
    }
    names = [sync.name for sync in syncs_of(from_ms)]
    for name in ("frozen", "5 h", "each step"):
        options = ReplayOptions(features="ids", step_examples=24, **alone[name])
        predictions = replay_data(world, options).predictions
        late = np.asarray(predictions.time_ms) >= from_ms
        expected = np.asarray(predictions.scores["long_view"])[late]
        assert np.array_equal(judged.scores_KN[names.index(name)], expected), name
        assert np.array_equal(judged.labels_N, np.asarray(predictions.labels["long_view"])[late])
    frozen, fresh = judged.scores_KN[0], judged.scores_KN[-1]
    assert not np.array_equal(frozen, fresh)


@pytest.mark.slow
def test_a_seed_changes_what_the_model_starts_from_and_how_the_world_drifts() -> None:
    one, other = (judged_of(seed)[0] for seed in (0, 1))
    assert np.array_equal(one.labels_N, other.labels_N)
    assert not np.array_equal(one.scores_KN, other.scores_KN)
    assert list(small(1).events()) != list(small(2).events())


def test_the_world_s_log_is_in_order_and_holds_what_was_seen() -> None:
    events = list(small().events())
    times = [event.time_ms for event in events]
    assert times == sorted(times)
    seen = {(e.request_id, e.item_id) for e in events if isinstance(e, Engagement)}
    shown = [e for e in events if isinstance(e, Impression)]
    assert len(shown) > 50 and all((e.request_id, s.item_id) in seen for e in shown for s in e.items)
    known: set[str] = set()
    for event in events:
        if isinstance(event, Impression):
            assert {str(served.item_id) for served in event.items} <= known
        elif hasattr(event, "item_id"):
            known.add(str(event.item_id))
    middle = times[-1] - 10 * HOUR_MS
    assert {e.time_ms >= middle for e in small().events(middle) if hasattr(e, "request_id")} == {True}


def made(noise: tuple[float, ...], rows: int = 3000) -> JudgedRows:
    """Scores that tell the label, each kind with more or less noise."""
    draw = np.random.default_rng(5)
    labels = draw.integers(0, 2, rows)
    scores = [labels + n * draw.normal(size=rows) for n in noise]
    return JudgedRows(np.array(scores, np.float32), labels, np.array([f"u{n % 60}" for n in range(rows)]))


def test_what_differs_is_told_apart_and_what_is_equal_is_not() -> None:
    judged = made((2.0, 1.0))
    again = JudgedRows(judged.scores_KN[[0, 1, 1, 0]], judged.labels_N, judged.users_N)
    found = figures(["a", "b", "c", "d"], [draw_aucs(again, 100, 0)] * 2)
    assert [pair["said"] for pair in found["pairs"]] == ["better", "not separable", "worse", "not separable"]
    better = found["pairs"][0]
    assert 0 < better["low"] < better["difference"] < better["high"]
    expected = auc(judged.scores_KN[0], judged.labels_N)
    assert found["syncs"][0]["auc"] == pytest.approx(expected, abs=1e-5)
    assert found["syncs"][0]["auc_by_seed"] == [found["syncs"][0]["auc"]] * 2


def test_all_kinds_are_drawn_alike() -> None:
    judged = made((1.0, 1.0))
    same = JudgedRows(judged.scores_KN[[0, 0]], judged.labels_N, judged.users_N)
    _, drawn = draw_aucs(same, 50, 3)
    assert np.array_equal(drawn[:, 0], drawn[:, 1]) and drawn[:, 0].std() > 0


@pytest.mark.slow
def test_it_prints_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.studies.quality.study_freshness._SAMPLES", 20)
    file = tmp_path / "f.json"
    arguments = ["freshness", "world", "--features", "ids", "--seeds", "1", "--hours", "10"]
    result = CliRunner().invoke(app, ["study", *arguments, "--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert [sync["sync"] for sync in found["syncs"]] == [sync.name for sync in syncs_of(0)]
    assert len(found["pairs"]) == 7 and found["rows"] > 100 and "frozen → 1 day" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nowhere"], "nowhere"), (["world", "--seeds", "0"], "--seeds is 0"),
     (["world", "--hours", "2"], "expected 2 or more"), (["world", "--hours", "0"], "hours is 0"),
     (["world", "--features", "most"], "model.features is 'most'"),
     (["world", "--json", "no/such/f.json"], "there is no folder")],
)  # fmt: skip
def test_what_can_not_be_studied_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["study", "freshness", *arguments])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
