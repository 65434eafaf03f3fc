"""`recsys study coldstart`: what it measures is what it says, and it writes its figures."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.quality.coldstart_world import (
    ARMS,
    Feed,
    Slot,
    newcomers,
    past_of,
    small,
    without,
)
from benchmarks.studies.quality.study_coldstart import (
    SWIPES,
    PolicyResults,
    _regrets,
    new_items,
    new_users,
)
from examples.short_video.world import World
from recsys.config.policy_config import PolicyConfig
from runtime.cli.main import app

HOUR_MS = 3_600_000


def world(**more: float) -> World:
    return World(3, 24, 40, publish_every_s=600.0, **{"requests_per_s": 0.02} | more)


def test_what_an_item_earned_is_counted_from_its_first_hour_alone() -> None:
    feed = Feed(world(), small(PolicyConfig()))
    feed.slots = [Slot(10, "a", 0.5), Slot(90, "a", 0.25), Slot(100, "a", 9.0), Slot(50, "b", 9.0)]
    assert feed.earned({"a": 0, "c": 5}, 100) == {"a": 0.75, "c": 0.0}


def test_the_regret_is_what_good_new_items_earned_less_than_the_oracle_s() -> None:
    here = world()
    feeds = {name: Feed(here, small(PolicyConfig())) for name in ("oracle", "none")}
    feeds["oracle"].measured_ms, feeds["oracle"].now_ms = here.start_ms, here.start_ms + 2 * HOUR_MS
    new = here.new_items(here.start_ms, here.start_ms + HOUR_MS)
    assert len(new) == 5

    def appeal(item_id: object) -> float:
        return float(
            np.mean([here.true_long_view(f"u{n}", str(item_id), since[item_id]) for n in range(24)])
        )

    since = {item.item_id: item.time_ms for item in new}
    best = sorted(since, key=lambda item_id: -appeal(item_id))
    feeds["oracle"].slots = [Slot(since[i], i, 1.0) for i in best]
    feeds["none"].slots = [Slot(since[best[0]], best[0], 0.25), Slot(since[best[1]], best[1], 7.0)]
    assert sorted(_regrets(feeds)["none"]) == [0.0, 0.75, 1.0]  # of the better three of five


def test_the_ratios_are_to_popularity_and_over_all_users() -> None:
    rates = np.ones((10, len(SWIPES), len(ARMS)))
    rates[:, 2, ARMS.index("whole")] = 1.5
    rates[:5, 2, ARMS.index("ceiling")] = 2.0
    row = new_users([rates[:5], rates[5:]])[2]
    assert row["swipes"] == 5 and row["hit_rate"] == {
        "whole": 1.5,
        "no session": 1.0,
        "greedy": 1.0,
        "ceiling": 1.5,
        "popularity": 1.0,
    }
    ratios = row["to_popularity"]
    assert ratios["whole"] == {"ratio": 1.5, "low": 1.5, "high": 1.5}
    assert ratios["greedy"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert ratios["ceiling"]["low"] < ratios["ceiling"]["ratio"] == 1.5
    assert row["by_seed"] == {"whole": [1.5, 1.5], "greedy": [1.0, 1.0], "ceiling": [2.0, 1.0]}


def test_the_regrets_of_all_worlds_are_put_together() -> None:
    regrets = {"none": [4.0, 2.0], "quota 0": [2.0, 2.0], "default": [1.0, 2.0]}
    one = PolicyResults(regrets, {"oracle": 0.5, "default": 0.4}, 100, 80, 4)
    two = PolicyResults(
        {name: [0.0] for name in regrets}, {"oracle": 0.7, "default": 0.5}, 100, 20, 1
    )
    found = new_items([one, two])
    its = found["new_items"]
    assert its["items"] == 3 and its["regret"] == {"none": 2.0, "quota 0": 1.333, "default": 1.0}
    assert its["default_to_none"]["ratio"] == 0.5 and its["default_to_quota_0"]["ratio"] == 0.75
    assert its["by_seed"][0]["none"] == 3.0 and its["hit_rate"] == {"oracle": 0.6, "default": 0.45}
    assert found["quota"]["ranks"] == 200 and found["quota"]["share_of_offered"] == 0.05


def test_a_catalogue_with_a_past_is_no_longer_on_trial_and_nobody_has_seen_it() -> None:
    here, trust_after = world(), PolicyConfig().trust_after
    feed = Feed(here, small(PolicyConfig()), past=past_of(here, trust_after + 2))
    assert (feed.player.replica.popularity.shown[:40] > trust_after).all()
    assert len(feed.player.replica.popularity.top) == 40
    assert not any(session.seen for session in feed.player.sessions.values())


@pytest.mark.slow
def test_newcomers_are_asked_about_at_the_same_moment_and_teach_the_model_nothing() -> None:
    away = ["u0", "u4"]
    feed = Feed(world(), small(PolicyConfig()), frozenset(away))
    feed.run(feed.world.start_ms + HOUR_MS // 2)
    step = feed.player.replica.step
    assert not any(user in feed.player.sessions and feed.player.session(user).seen for user in away)
    rates = newcomers(feed, away, (0, 2, 9))
    assert rates.shape == (2, 3, len(ARMS)) and ((rates > 0) & (rates < 1)).all()
    assert feed.player.replica.step == step
    assert len(feed.player.session("u0").seen) == 9
    assert (rates[:, 0, 0] == rates[:, 0, 1]).all()  # at first there is no session to do without


@pytest.mark.slow
def test_the_oracle_s_panel_tries_new_items_on_and_counts_for_nothing_else() -> None:
    here = world()
    feed = Feed(here, small(without(PolicyConfig())), panel=4, measured_ms=here.start_ms)
    feed.run(here.start_ms + HOUR_MS // 2)
    new = [item.item_id for item in here.new_items(here.start_ms + 1, feed.now_ms + 1)]
    catalogue, shown = feed.player.replica.catalogue, feed.player.replica.popularity.shown
    feed.player.sync_popularity()
    indices = [catalogue.index_of(item_id) for item_id in new[:-1]]
    assert len(new) == 3 and (shown[indices] >= 3.9).all()
    assert feed.given == 0 and len(feed.slots) <= feed.ranks


@pytest.mark.slow
def test_it_prints_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.studies.quality.study_coldstart._PANEL", 3)
    file = tmp_path / "f.json"
    options = ["--seeds", "1", "--users", "16", "--items", "40", "--hours", "2"]
    options += ["--requests-per-s", "0.006", "--json", str(file)]
    result = CliRunner().invoke(app, ["study", "coldstart", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert [row["swipes"] for row in found["new_users"]] == list(SWIPES)
    assert set(found["new_items"]["regret"]) == {"none", "quota 0", "default"}
    quota = found["quota"]
    assert 0 < quota["given"] <= quota["offered"] <= quota["ranks"]
    assert "ceiling to popularity" in result.output
    assert "after  5 swipes" in result.output and "quota 0.05" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--seeds", "0"], "--seeds is 0"), (["--only", "both"], "--only is 'both'"),
     (["--json", "no/such/f.json"], "there is no folder"), (["--hours", "0.5"], "--hours is 0.5")],
)  # fmt: skip
def test_what_can_not_be_studied_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["study", "coldstart", *arguments])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
