import numpy as np
import pytest

from benchmarks.studies.drift.kept_states import KeepingPlayer, mixed
from benchmarks.studies.drift.study_forgetting import PanelLoop, WorldABALog, _truth, _with_kept_share
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from replay.replay_run import ReplayOptions, ReplayResult, config_for, replay_with

LOG = WorldABALog(0, 0.6, users=20, items=40, requests_per_s=0.03)


def played(*keep_h: float, exams_h: tuple[float, ...] = ()) -> tuple[ReplayResult, KeepingPlayer]:
    options = ReplayOptions()
    config = config_for(LOG, options, Config())
    features = FeatureSet(LOG.schema, options.features, config.sessions.history)
    loop, starts = PanelLoop(features, config, 360_000), LOG.world().start_ms
    loop.exams = [starts + round(h * 3_600_000) for h in exams_h]
    player = KeepingPlayer(features, config, loop)
    player.keeps([starts + round(h * 3_600_000) for h in keep_h], 0 if keep_h else -1)
    return replay_with(player, LOG, options, iter, loop.digest), player


@pytest.fixture(scope="module")
def both() -> tuple[ReplayResult, KeepingPlayer]:
    return played(0.2, 0.4)


def test_nothing_hangs_on_what_is_kept(both: tuple[ReplayResult, KeepingPlayer]) -> None:
    plain, player = played()
    kept = both[0]
    assert plain.digest == kept.digest and plain.steps == kept.steps > 0
    assert np.array_equal(plain.predictions.scores["long_view"], kept.predictions.scores["long_view"])
    assert player.scores_NE().shape == (len(plain.predictions.request_id), 0)


def test_a_kept_state_speaks_from_when_it_was_kept_and_learns_no_more(
    both: tuple[ReplayResult, KeepingPlayer],
) -> None:
    rows, player = both[0].predictions, both[1]
    since_h = (np.asarray(rows.time_ms) - LOG.world().start_ms) / 3_600_000
    said, live = player.scores_NE(), np.asarray(rows.scores["long_view"])
    for n, hour in enumerate((0.2, 0.4)):
        assert np.isnan(said[since_h < hour, n]).all()
        assert np.isfinite(said[since_h > hour, n]).all()
    # Right after it was kept it is what is live; later live has learned.
    first = np.flatnonzero(since_h > 0.4)[0]
    assert said[first, 1] == pytest.approx(live[first], abs=1e-5)
    assert np.abs(said[-20:, 0] - live[-20:]).max() > 1e-3
    parts = player.parts()
    assert np.array_equal(np.isnan(parts.weights_N), since_h < since_h[since_h > 0.2][0])
    assert not np.allclose(parts.weights_N[-20:], parts.sessions_N[-20:])


def test_a_panel_is_drawn_once_and_its_exams_change_nothing(both: tuple[ReplayResult, KeepingPlayer]) -> None:
    kept, (result, player) = both[0], played(exams_h=(0.3, 0.5))
    loop = player.loop
    assert isinstance(loop, PanelLoop) and result.digest == kept.digest
    assert len(loop.memory) == 2 and 0.3 < loop.memory[1] != loop.memory[0]
    later = loop._drawn()
    assert 10 < len(loop._panel) < len(later)


def test_too_many_states_are_refused() -> None:
    with pytest.raises(ValueError, match="17 states would be kept, expected at most 16"):
        played(*(0.01 * n for n in range(17)))


def test_the_mix_follows_who_is_right_once_it_can_be_known() -> None:
    minutes, count = 60_000, 600
    time_ms = np.arange(count, dtype=np.int64) * minutes
    labels = np.arange(count) % 2.0
    good, bad = np.where(labels > 0, 0.8, 0.2), np.where(labels > 0, 0.4, 0.6)
    live = np.where(np.arange(count) < 300, good, bad)  # what was kept is right afterwards
    kept = np.where(np.arange(count) < 100, np.nan, np.where(np.arange(count) < 300, bad, good))
    out = mixed(time_ms, np.column_stack([live, kept]), labels)
    assert np.array_equal(out[:100], live[:100])
    assert np.abs(out[200:300] - good[200:300]).max() < 0.02
    # Ten minutes are told ten minutes later.
    assert np.abs(out[300:310] - bad[300:310]).max() < 0.02
    assert np.abs(out[360:] - good[360:]).max() < 0.02


def test_what_is_kept_is_told_raw_and_of_what_can_be_known() -> None:
    told = _with_kept_share({"a_end": {"auc": 0.8, "ceiling": 0.9}, "return": {"auc": 0.72, "ceiling": 0.81}})
    assert (told["kept"], told["kept_of_ceiling"]) == (0.9, 1.0)


def test_the_ceiling_is_what_the_world_draws_from(both: tuple[ReplayResult, KeepingPlayer]) -> None:
    rows = both[0].predictions
    world, truth = LOG.world(), _truth(LOG.world(), rows)
    ranks = [rows.request_id[: n + 1].count(rows.request_id[n]) - 1 for n in range(30)]
    assert max(ranks) > 2
    assert truth[:30].tolist() == [
        world.true_long_view(rows.user_id[n], rows.item_id[n], int(rows.time_ms[n]), ranks[n])  # type: ignore[index]
        for n in range(30)
    ]
