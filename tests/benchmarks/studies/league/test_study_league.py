"""`recsys study league`: every recommender is judged on the same rows, and none sees a label early."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.league import league_logs, study_league
from benchmarks.studies.league.basket_world import BasketWorld
from benchmarks.studies.league.study_league import (
    RANKED,
    SCORED,
    NightlyTrees,
    _ranking_contests,
    league_table,
    measure_log,
    options_of,
    worth_of,
)
from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.study import study
from recsys.app.app_file import read_app
from recsys.events.event_types import Engagement, FeatureBlock
from recsys.features.request_features import RequestFeatures
from recsys.model.prediction_metrics import auc
from replay.datasets.open_dataset import open_dataset
from replay.judging.answers import AHEAD, BEHIND, OURS
from replay.predictions import Predictions, build_report
from replay.replay_run import ReplayOptions

pytestmark = pytest.mark.steady


def small() -> WorldLog:
    return WorldLog(1, hours=30, users=12, items=30, requests_per_s=0.0015)


def small_baskets(seed: int) -> BasketWorld:
    return BasketWorld(seed, households=40, products=200, days=60, categories=12)


@pytest.mark.slow
def test_all_are_judged_on_the_same_rows() -> None:
    measured = measure_log(small(), ReplayOptions(step_examples=24))
    found = measured.figures
    for one in worth_of("nothing", measured, measured):
        assert not any(one[name] for name in ("difference", "low", "high"))
    names = list(found["ranking"])
    assert names[0] == OURS and len(names) > 1
    assert {measured["rows"] for measured in found["ranking"].values()} == {found["rows"]}
    assert found["rows"] > 100 and found["ranking"][OURS]["lists"]["requests"] > 10
    assert found["retrieval"]["targets"] > 10
    assert found["retrieval"]["exposure"]
    assert SCORED in [one["contest"] for one in found["contests"]]


@pytest.mark.slow
def test_a_league_of_small_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On no log is a simple list ahead; each feature left out has its worth."""
    monkeypatch.setattr(study_league, "with_bar", iter)
    monkeypatch.setattr(league_logs, "BasketWorld", small_baskets)
    file = tmp_path / "league.json"
    command = ["league", "baskets", "shop", "--rows", "1000", "--cases", "60", "--without", "near"]
    command += ["--json", str(file)]
    result = CliRunner().invoke(study, command)
    assert result.exit_code == 0, result.output
    logs = json.loads(file.read_text())["logs"]
    assert list(logs) == ["baskets", "shop"]
    for found in logs.values():
        for contest in found["contests"]:
            assert contest["verdict"] != BEHIND, contest
        assert {one["part"] for one in found["worth"]} == {"near"}
        assert any(one["difference"] for one in found["worth"])
    assert any(found["contests"] for found in logs.values())
    result = CliRunner().invoke(study, ["league", "shop", "--without", "luck"])
    assert result.exit_code == 2 and "'luck', expected" in result.output
    assert "own items" in logs["baskets"]["retrieval"]["questions"]["first"]["lists"]


@pytest.mark.slow
def test_the_definition_of_baskets_is_that_of_init(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(league_logs, "BasketWorld", small_baskets)
    league_logs.LOGS["baskets"](tmp_path, 3)
    app = read_app(tmp_path / "app.yaml")
    assert app.repeats and app.shown == "clicks"
    dataset = open_dataset(tmp_path, app, tmp_path / "app.yaml")
    assert options_of(dataset, None, None, None).until_ms is None
    until_ms = options_of(dataset, 100, None, None).until_ms
    clicks = [e for e in dataset.events(until_ms=until_ms) if isinstance(e, Engagement)]
    assert 50 < len(clicks) <= 100


def test_baskets_share_a_moment_and_repeat(tmp_path: Path) -> None:
    small_baskets(3).write(tmp_path)
    lines = (tmp_path / "sales.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    baskets = {basket: (user, time) for user, basket, _, time in rows}
    assert len(baskets) == len(set(baskets.values())) < len(rows) / 3
    assert [*map(int, baskets)] == list(range(1, len(baskets) + 1))
    pairs = Counter((user, product) for user, _, product, _ in rows)
    assert 0.3 < 1 - len(pairs) / len(rows) < 0.9
    per_basket = Counter((basket, product) for _, basket, product, _ in rows)
    assert set(per_basket.values()) == {1}
    other = tmp_path / "again"
    other.mkdir()
    small_baskets(3).write(other)
    assert (other / "sales.csv").read_bytes() == (tmp_path / "sales.csv").read_bytes()


def predictions_of_two(better: str, worse: str) -> Predictions:
    """60 lists of three items, of 20 users; ``worse`` misjudges every third list."""
    lists, rng = 60, np.random.default_rng(0)
    labels = np.tile([1, 0, 0], lists)
    good = labels * 0.5 + rng.random(3 * lists) * 0.4
    bad = np.where(np.repeat(np.arange(lists) % 3 == 0, 3), 1 - good, good)
    return Predictions(
        request_id=[f"r{n // 3}" for n in range(3 * lists)],
        user_id=[f"u{n // 3 % 20}" for n in range(3 * lists)],
        item_id=[f"i{n % 3}" for n in range(3 * lists)],
        time_ms=np.arange(3 * lists), line=["main"] * (3 * lists), version=["0.0"] * (3 * lists),
        scores={better: good, worse: bad}, labels={better: labels, worse: labels},
    )  # fmt: skip


@pytest.mark.parametrize("ours", ["better", "worse"])
def test_lists_are_compared_pair_by_pair(ours: str) -> None:
    names = (OURS, "trees") if ours == "better" else ("trees", OURS)
    judged = predictions_of_two(*names)
    contests = list(_ranking_contests(judged, build_report(judged)["labels"]))
    by_name = {one["contest"]: one for one in contests}
    assert set(by_name) == {RANKED, SCORED}
    for one in contests:
        assert one["verdict"] == (AHEAD if ours == "better" else BEHIND)
        assert one["best"] == "trees"
    ranked, scored = by_name[RANKED], by_name[SCORED]
    assert ranked["cases"] == 60
    assert abs(ranked["difference"]) == pytest.approx(1 / 3, abs=1e-3)
    assert scored["cases"] == 180
    expected = auc(judged.scores[OURS], judged.labels[OURS]) - auc(
        judged.scores["trees"], judged.labels["trees"]
    )
    assert scored["difference"] == pytest.approx(expected, abs=1e-4)


def contest(ours: float, difference: float) -> dict[str, object]:
    interval = [difference - 0.01, difference + 0.01]
    return {"contest": "c", "ours": ours, "verdict": "", "best": "b", "metric": "hit@10",
            "difference": difference, "interval": interval, "cases": 99}  # fmt: skip


def test_losses_come_first() -> None:
    figures = {
        "a": {"contests": [contest(0.5, 0.1), contest(0.2, -0.02)]},
        "b": {"contests": [contest(0.1, -0.05), contest(0.3, 0.3)]},
    }
    table = league_table(figures)
    ahead = [cell.plain for cell in list(table.columns)[5].cells]
    assert ahead == ["-33%", "-9%", "+25%", "+inf%"]


def block(x: float) -> FeatureBlock:
    return FeatureBlock(feature_set="", dense=np.array([x, 0.0], np.float32).tobytes())


def request(*x: float) -> RequestFeatures:
    dense = np.array([[value, 0.0] for value in x], np.float32)
    keys, floats = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32)
    return RequestFeatures("", keys[0:0].reshape(-1), keys, keys, floats, dense)


@pytest.mark.slow
def test_trees_are_grown_at_midnight_only() -> None:
    pytest.importorskip("lightgbm")
    trees = NightlyTrees(0.0)
    trees.move(0)
    for n in range(2000):
        trees.learn(block(n % 2), n % 2 == 1)
    trees.move(86_399_999)
    assert trees.score(request(0.0, 1.0)) == pytest.approx([0.5, 0.5])
    trees.move(86_400_000)
    low, high = trees.score(request(0.0, 1.0))
    assert low < 0.1 < 0.9 < high
