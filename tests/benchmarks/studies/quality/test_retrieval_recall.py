"""Recall in a replay: of which items, with which session, and ranks against a slow definition."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.studies.quality.retrieval_recall import (
    RetrievalRecall,
    Targets,
    probe_for,
    rank_metrics,
    rank_of,
)
from recsys.app.app_file import read_app
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.replay_run import Outputs, ReplayOptions, config_for, replay_data

DAY_MS = 86_400_000
OPTIONS = ReplayOptions(step_examples=8)


def write(folder: Path, *events: dict) -> Path:
    items = [{"type": "item", "time_ms": 0, "item_id": f"v{n}", "fields": {"author": f"a{n % 3}"}}
             for n in range(30)]  # fmt: skip
    (folder / "dataset.yaml").write_text("labels: [click, like]\nwindow_s: 60\nall_shown: true\n")
    lines = (json.dumps(event) + "\n" for event in (*items, *events))
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def shown(request: str, time_ms: int, *items: str, user: str = "u") -> dict:
    return {"type": "impression", "time_ms": time_ms, "request_id": request, "user_id": user,
            "items": [{"item_id": item} for item in items]}  # fmt: skip


def clicked(
    time_ms: int, item: str, request: str = "", user: str = "u", kind: str = "click"
) -> dict:
    event = {
        "type": "engagement",
        "time_ms": time_ms,
        "user_id": user,
        "item_id": item,
        "kind": kind,
    }
    return event | ({"request_id": request} if request else {})


def report_of(folder: Path, **options: object) -> dict:
    dataset = open_dataset(folder)
    probe = probe_for(dataset, ReplayOptions(step_examples=8, **options), 1.0)
    found = replay_data(dataset, OPTIONS, outputs=Outputs(probe=probe)).retrieval
    assert found is not None
    return found


def test_a_query_is_due_before_the_list_or_without_one_before_the_click(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        shown("r1", 10, "v1", "v2", "v3"), clicked(20, "v2", "r1"), clicked(21, "v3", "r1"),
        clicked(22, "v3", "r1"), clicked(23, "v1", "r1", kind="like"),
        clicked(30, "v4"), clicked(40, "v4"), clicked(50, "v5", "r9"),
        shown("r2", 60, "v6", "v7"), shown("r3", 70, "v6"), clicked(80, "v6"), clicked(81, "v7"),
        clicked(82, "v6", user="w"),
    )  # fmt: skip
    dataset = open_dataset(folder)
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0), 1.0)
    due = [(event.time_ms, targets.take(event)) for event in dataset.events()]
    assert [pair for pair in due if pair[1]] == [
        (10, ["v2", "v3"]), (30, ["v4"]), (40, ["v4"]), (50, ["v5"]),
        (60, ["v7"]), (70, ["v6"]), (82, ["v6"]),
    ]  # fmt: skip


def test_without_lists_each_click_of_a_visit_is_judged(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        clicked(20, "v2", "visit"), clicked(21, "v3", "visit"), clicked(22, "v2", "visit"),
        clicked(22, "v2", "visit"),
    )  # fmt: skip
    dataset = open_dataset(folder)
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0), 1.0)
    due = [(event.time_ms, targets.take(event)) for event in dataset.events()]
    assert [pair for pair in due if pair[1]] == [(20, ["v2"]), (21, ["v3"]), (22, ["v2"])]


def test_the_later_half_is_judged_unless_a_time_is_given(tmp_path: Path) -> None:
    days = [clicked(day * DAY_MS + 5, "v1") for day in range(5)]
    dataset = open_dataset(write(tmp_path, *days))
    assert Targets(dataset, ReplayOptions(), 1.0).from_ms == 3 * DAY_MS
    assert Targets(dataset, ReplayOptions(judge_from_ms=7), 1.0).from_ms == 7
    one_day = Targets(dataset, ReplayOptions(from_ms=0, until_ms=DAY_MS), 1.0)
    assert one_day.from_ms == 5
    assert Targets(dataset, ReplayOptions(until_ms=1), 1.0).from_ms == 0


def test_a_share_is_a_sample_by_hash(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, *(clicked(n, "v1") for n in range(1, 1001))))
    kept = []
    for _ in range(2):
        targets = Targets(dataset, ReplayOptions(judge_from_ms=0), 0.3)
        kept.append([event.time_ms for event in dataset.events() if targets.take(event)])
    assert kept[0] == kept[1] and 250 < len(kept[0]) < 350


class Watcher:
    """A baseline that writes down what it is asked and taught."""

    name = "watcher"

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        self.calls.append(("learn", user_id, item, time_ms))

    def scores(self, user_id: str, now_ms: int) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(("scores", user_id, now_ms))
        return np.arange(30), -np.arange(30.0)


def test_no_query_knows_its_own_engagement(tmp_path: Path) -> None:
    folder = write(
        tmp_path, shown("r1", 10, "v1", "v2"), clicked(20, "v2", "r1"), clicked(30, "v4")
    )
    dataset, watcher = open_dataset(folder), Watcher()
    config = config_for(dataset, OPTIONS, Config())
    features = FeatureSet(dataset.schema, "all", config.sessions.history)
    player = Player(features, config, DirectLoop(features, config))
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0), 1.0)
    recall = RetrievalRecall(player, targets, [watcher])
    asked: list[tuple[int, list[int], list[int]]] = []
    recommend = player.pipeline.recommend

    def spy(query):
        history = [entry.keys[0] for entry in query.session.history]
        asked.append((query.now_ms, history, list(query.session.seen)))
        return recommend(query)

    player.pipeline.recommend = spy  # type: ignore[method-assign]
    for event in dataset.events():
        recall.before(event)
        player.play(event)
    keys = player.replica.catalogue.keys[:, 0]
    first, second = asked
    assert first == (10, [], []) and second[0] == 30
    assert keys[2] in second[1] and keys[4] not in second[1]
    assert watcher.calls == [("scores", "u", 10), ("learn", "u", 2, 20), ("scores", "u", 30)]
    found = recall.report()
    assert found["targets"] == 2 and found["seen_before"] == 0
    # Of the second query v1 and v2 were seen, so v4 is the third of those left.
    assert found["baselines"]["watcher"]["mrr"] == pytest.approx((1 / 3 + 1 / 3) / 2, abs=1e-4)
    assert found["baselines"]["watcher, seen too"]["mrr"] == pytest.approx(
        (1 / 3 + 1 / 5) / 2, abs=1e-4
    )


def test_a_log_of_clicks_alone_has_the_whole_report(tmp_path: Path) -> None:
    clicks = [clicked(n * 60_000, f"v{n * n % 7}", user=f"u{n % 4}") for n in range(1, 200)]
    found = report_of(write(tmp_path, *clicks, clicked(200 * 60_000, "new")))
    assert found["targets"] == 100 and found["not_published"] == 1
    for group, names in (
        ("sources", {"popular", "vector", "similar"}),
        ("path", {"union", "retrieved and ranked"}),
        ("baselines", {"popularity, 1 h", "item-kNN", "session-kNN, pause 24 h"}),
    ):
        assert names <= found[group].keys()
    assert found["path"]["union"].keys() == {"recall@10", "recall@100", "recall@300"}
    # All but one were clicked before by the same user: no source names these again.
    assert found["seen_before"] == 99 and found["path"]["union"]["recall@300"] == 0.0
    assert found["baselines"]["popularity, 24 h, seen too"]["recall@10"] == 0.99


def test_a_measured_replay_of_clicks_draws_the_same_lists(tmp_path: Path) -> None:
    folder = write(
        tmp_path, *(clicked(n * 9_000, f"v{n * n % 23}", user=f"u{n % 4}") for n in range(1, 80))
    )
    (folder / "app.yaml").write_text(
        "shown: clicks\nevents: {click: positive}\nsources: {popular: 6}\n"
    )
    dataset = open_dataset(folder, read_app(folder / "app.yaml"))
    plain = replay_data(dataset, OPTIONS)
    probed = replay_data(dataset, OPTIONS, outputs=Outputs(probe=probe_for(dataset, OPTIONS, 0.5)))
    assert plain.steps > 2 and plain.digest == probed.digest
    items = list(plain.predictions.item_id)
    assert items == list(probed.predictions.item_id) and len(items) > 300


def test_a_measured_replay_scores_as_another(tmp_path: Path) -> None:
    events = [
        event
        for n in range(1, 60)
        for event in (
            shown(f"r{n}", n * 60_000, f"v{n % 7}", f"v{n % 5 + 7}", user=f"u{n % 3}"),
            clicked(n * 60_000 + 9, f"v{n % 7}", f"r{n}", user=f"u{n % 3}"),
        )
    ]
    dataset = open_dataset(write(tmp_path, *events))
    plain = replay_data(dataset, OPTIONS)
    probed = replay_data(dataset, OPTIONS, outputs=Outputs(probe=probe_for(dataset, OPTIONS, 1.0)))
    assert plain.digest == probed.digest and plain.retrieval is None and probed.retrieval
    for label in ("click", "like"):
        ours, theirs = (np.asarray(r.predictions.scores[label]) for r in (plain, probed))
        assert ours.tobytes() == theirs.tobytes()


def test_a_share_out_of_range_is_named(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path))
    with pytest.raises(ValueError, match="--retrieval is 1.5"):
        probe_for(dataset, OPTIONS, 1.5)
    assert probe_for(dataset, OPTIONS, 0.0) is None


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), max_size=12), st.integers(0, 12))
def test_a_rank_is_the_place_in_the_sorted_list(scores: list[float], target: int) -> None:
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    slow = order.index(target) + 1 if target in order else 0
    assert rank_of(np.arange(len(scores)), np.array(scores), target) == slow


@given(st.lists(st.integers(0, 12), max_size=30))
def test_metrics_of_one_wanted_item_are_those_of_its_rank(ranks: list[int]) -> None:
    fast = rank_metrics(ranks, (1, 10))
    for name, value in {
        "recall@1": [rank == 1 for rank in ranks],
        "recall@10": [0 < rank <= 10 for rank in ranks],
        "ndcg@10": [1 / math.log2(rank + 1) if 0 < rank <= 10 else 0.0 for rank in ranks],
        "mrr": [1 / rank if rank else 0.0 for rank in ranks],
    }.items():
        mean = np.mean(value) if ranks else float("nan")
        assert fast[name] == pytest.approx(mean, nan_ok=True)
