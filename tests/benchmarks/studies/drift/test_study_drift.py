"""`recsys study drift`: arms score the same rows, each before it learns, and figures say what they gave."""

import json
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.drift.drift_arms import ARMS, ArmResults, Arms, Track
from benchmarks.studies.drift.drift_figures import figures_of, plot, run_of, shown
from benchmarks.studies.drift.refit import RefitOptions
from benchmarks.studies.drift.scenario_log import ScenarioLog
from benchmarks.studies.drift.scenario_stream import Stream, watch
from benchmarks.studies.drift.study_drift import _base
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from recsys.events.event_types import Impression
from replay.replay_run import ReplayOptions, config_for, replay_data
from runtime.cli.main import app

pytestmark = pytest.mark.steady

OPTIONS = ReplayOptions(step_examples=64)
SMALL = Config(
    step=StepConfig(lanes=1),
    model=ModelConfig(dim=4, hidden=(16,), retrieval_weight=0.0),
    parameter_server=ParameterServerConfig(shards=1, delta_format="fp32"),
)


def log(story: str = "meaning") -> ScenarioLog:
    return ScenarioLog(1, 6.0, users=10, items=40, requests_per_s=0.012, story=story)


@cache
def played() -> tuple[Stream, Track, Arms, ArmResults]:
    stream = watch(log(), OPTIONS, SMALL, log().nights())
    track = Track(stream)
    arms = Arms(track, RefitOptions(epochs=2), student=True)
    return stream, track, arms, arms.play()


def test_online_scores_as_a_replay_of_its_own() -> None:
    stream, _, _, found = played()
    alone = replay_data(log(), OPTIONS, config_for(log(), OPTIONS, SMALL)).predictions
    assert np.array_equal(np.asarray(alone.labels["long_view"]), stream.labels)
    expected = np.asarray(alone.scores["long_view"])
    assert np.allclose(found.scores["online only"], expected, atol=1e-6)


def test_every_arm_scores_every_row_and_no_job_knows_what_comes_after_it() -> None:
    stream, track, arms, found = played()
    assert tuple(found.scores) == (*ARMS, "student")
    assert all(np.isfinite(scores).all() for scores in found.scores.values())
    assert len(found.epochs) == len(stream.nights) == len(found.weights) == 4
    for night, (cut_ms, ready_ms) in zip(stream.nights, log().nights(), strict=True):
        assert all(cut.time_ms <= cut_ms for cut in stream.cuts[: night.steps])
        assert night.steps < night.ready_steps < track.steps
        first = int(np.searchsorted(stream.time_ms, ready_ms))
        assert (stream.time_ms[night.rows] >= ready_ms).all() and len(night.rows) > 50
        assert track.firsts[night.ready_steps] <= first
    before = stream.time_ms < log().nights()[0][1]
    some = np.flatnonzero(before)[:100]
    for arm in ARMS:
        assert np.array_equal(found.scores[arm][some], found.scores["online only"][some])


def test_lists_of_the_night_know_nothing_of_the_day() -> None:
    stream, _, _, found = played()
    night, following = stream.nights[0], stream.nights[1]
    known = set(night.rows.tolist())
    day = np.flatnonzero((stream.time_ms >= night.ready_ms) & (stream.time_ms < following.ready_ms))
    new = [row for row in day if row not in known]
    assert new and len(set(found.scores["nightly lists"][new].tolist())) == 1
    shown_items = [e for e in log().events() if isinstance(e, Impression)]
    items = [str(served.item_id) for e in shown_items for served in e.items]
    published = {str(i.item_id): i.time_ms for i in log().events() if not hasattr(i, "request_id")
                 and hasattr(i, "item_id")}  # fmt: skip
    assert all(published[items[row]] <= night.cut_ms for row in night.rows)
    assert all(published[items[row]] >= night.cut_ms for row in new)


def test_warm_start_forgets_the_night_and_merged_is_a_form_that_serves() -> None:
    stream, track, arms, found = played()
    for form in ("online", "catch-up 4", "interpolated 4", "distilled 4"):
        assert form in arms.lines
    assert "averaged 4" in arms.pairs and "averaged" not in arms.choosers["merged, one line"].live
    last = slice(track.firsts[stream.nights[-1].ready_steps], None)
    lines = np.stack([its.scores[last] for its in arms.lines.values()])
    assert (lines == found.scores["merged, one line"][last]).any(0).all()
    forms = np.stack([*lines, *(its.scores[last] for its in arms.pairs.values())])
    assert (forms == found.scores["merged"][last]).any(0).all()
    batches = track.batches(0, stream.nights[-1].steps)
    assert arms.offline.line.step == found.epochs[-1] * len(batches)  # it is frozen
    learned = track.steps - stream.nights[-1].ready_steps
    assert arms.warm.line.step == arms.offline.line.step + learned
    assert arms.online.line.step == arms.lines["catch-up 4"].line.step == track.steps
    late = np.flatnonzero(stream.time_ms >= stream.nights[-1].ready_ms)
    for arm in ("offline nightly", "warm start", "nightly lists"):
        assert not np.array_equal(found.scores[arm][late], found.scores["online only"][late])


def made(gains: dict[str, float], seeds: int = 3) -> dict[str, Any]:
    runs = []
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        labels = draw.integers(0, 2, 2000)
        scores = {}
        for arm in ARMS:
            signal = labels * (1 + gains.get(arm, 0.0)) + draw.normal(size=2000)
            scores[arm] = 1 / (1 + np.exp(-signal))
        users, window = np.array([f"u{n % 40}" for n in range(2000)]), np.arange(2000) // 500
        judged = np.arange(2000) >= 500
        runs.append(run_of(scores, judged, labels, users, window - 1, samples=50, seed=seed))
    return figures_of(ARMS, runs)


def test_the_figures_say_which_arm_is_better_and_what_is_shown() -> None:
    found = made({"merged": 1.0, "nightly lists": -0.8})
    assert shown(found) == {
        "not below the better parent": True,
        "better than warm start": True,
        "better than nightly lists": True,
    }
    worse = made({"online only": 1.0})
    assert not shown(worse)["not below the better parent"]
    assert len(found["windows"]) == len(ARMS) and len(found["windows"][0]) == 3
    assert [len(arm["auc_by_seed"]) for arm in found["arms"]] == [3] * len(ARMS)


def test_the_picture_has_two_panels_for_each_story() -> None:
    story = made({}) | {"story": "a & b", "from_h": 30.0, "window_h": 6.0, "ready_h": [30.0, 36.0]}
    root = ET.fromstring(plot([story, story], "A < B"))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert tags.count("polyline") == 2 * (2 * len(ARMS) - 1)
    assert {"A < B", "a & b: AUC", "merged"} <= {element.text for element in root.iter()}


@pytest.mark.slow
def test_it_prints_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.studies.drift.study_drift._SAMPLES", 20)
    monkeypatch.setattr("benchmarks.studies.drift.study_drift._base", lambda seed: SMALL)
    file, picture = tmp_path / "f.json", tmp_path / "f.svg"
    arguments = ["drift", "--story", "bots", "--seeds", "1", "--hours", "10", "--student"]
    result = CliRunner().invoke(
        app, ["study", *arguments, "--json", str(file), "--plot", str(picture)]
    )
    assert result.exit_code == 0, result.output
    (story,) = json.loads(file.read_text())["stories"]
    assert [arm["arm"] for arm in story["arms"]] == [*ARMS, "student"] and story["rows"] > 1000
    assert "merged − warm start" in result.output and "student − online only" in result.output
    assert picture.read_text().startswith("<svg")


def test_the_ranker_alone_is_judged() -> None:
    config = _base(3)
    assert (config.model.seed, config.model.retrieval_weight, config.step.lanes) == (3, 0.0, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nowhere"], "nowhere"), (["--seeds", "0"], "--seeds is 0"),
     (["--story", "flood"], "story is 'flood'"), (["--hours", "0"], "hours is 0"),
     (["nowhere", "--story", "bots"], "expected one of them"),
     (["--json", "no/such/f.json"], "there is no folder")],
)  # fmt: skip
def test_what_can_not_be_studied_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["study", "drift", *arguments])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
