"""Recall in a replay: of which items, with which session, and ranks against a slow definition."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.app.app_file import read_app
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement
from recsys.features.feature_set import FeatureSet
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.judging.answers import OURS, case_metrics, rank_of
from replay.judging.asked_lists import AskedLists
from replay.judging.questions import FIRST, NEW, NEXT, Visits
from replay.judging.retrieval_recall import RetrievalRecall, probe_for
from replay.judging.targets import Targets
from replay.player import Player
from replay.replay_run import Outputs, ReplayOptions, config_for, replay_data

DAY_MS = 86_400_000
OPTIONS = ReplayOptions(step_examples=8)


def write(folder: Path, *events: dict) -> Path:
    items = [
        {"type": "item", "time_ms": 0, "item_id": f"v{n}", "fields": {"author": f"a{n % 3}"}}
        for n in range(30)
    ]
    (folder / "dataset.yaml").write_text("labels: [click, like]\nwindow_s: 60\nall_shown: true\n")
    lines = (json.dumps(event) + "\n" for event in (*items, *events))
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def shown(request: str, time_ms: int, *items: str, user: str = "u") -> dict:
    return {"type": "impression", "time_ms": time_ms, "request_id": request, "user_id": user,
            "items": [{"item_id": item} for item in items]}  # fmt: skip


def clicked(time_ms: int, item: str, request: str = "", user: str = "u", kind: str = "click") -> dict:
    event = {"type": "engagement", "time_ms": time_ms, "user_id": user, "item_id": item, "kind": kind}
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
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0))
    due = [(event.time_ms, targets.take(event, NEXT)) for event in dataset.events()]
    assert [pair for pair in due if pair[1]] == [
        (10, ["v2", "v3"]), (30, ["v4"]), (40, ["v4"]), (50, ["v5"]),
        (60, ["v7"]), (70, ["v6"]), (82, ["v6"]),
    ]  # fmt: skip


def test_without_lists_each_click_of_a_visit_is_judged(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        clicked(20, "v2", "visit"),
        clicked(21, "v3", "visit"),
        clicked(22, "v2", "visit"),
        clicked(22, "v2", "visit"),
    )
    dataset = open_dataset(folder)
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0))
    due = [(event.time_ms, targets.take(event, NEXT)) for event in dataset.events()]
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
        kept.append([event.time_ms for event in dataset.events() if targets.take(event, NEXT)])
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
    folder = write(tmp_path, shown("r1", 10, "v1", "v2"), clicked(20, "v2", "r1"), clicked(30, "v4"))
    dataset, watcher = open_dataset(folder), Watcher()
    config = config_for(dataset, OPTIONS, Config())
    features = FeatureSet(dataset.schema, "all", config.sessions.history)
    player = Player(features, config, DirectLoop(features, config))
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0), 1.0)
    lists = AskedLists(60.0, False, [watcher])
    recall = RetrievalRecall(player, targets, lists)
    noted: list[tuple[str, dict[str, int]]] = []
    for question, answers in lists.answers.by_question.items():
        answers.add = lambda user, row, ranks, q=question: noted.append(  # type: ignore[method-assign]
            (q, {name: rank for name, rank in ranks.items() if name != OURS})
        )
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
    figures = recall.report()
    assert figures["targets"] == 2 and figures["seen_before"] == 0
    # Of the second query v1 and v2 were seen, so v4 is the third of those left.
    assert noted == [(NEW, {"watcher": 3}), (NEXT, {"watcher": 3})]


def test_a_log_of_clicks_alone_has_the_whole_report(tmp_path: Path) -> None:
    """Each user clicks each item once; the clicks of a user are ten minutes apart, two hours after ten."""
    clicks = [
        clicked(1 + (10 * n + 120 * (n // 10)) * 60_000 + user, f"v{(n * 7 + user) % 30}", user=f"u{user}")
        for n in range(20)
        for user in range(40)
    ]
    report = report_of(write(tmp_path, *clicks, clicked(DAY_MS - 1, "new", user="u0")), judge_from_ms=0)
    assert report["targets"] == 801 and report["not_published"] == 1
    assert report["seen_before"] == 0
    for group, names in (
        ("sources", {"popular", "vector", "similar"}),
        ("path", {"union", "retrieved and ranked"}),
    ):
        assert names <= report[group].keys()
        assert {figures["cases"] for figures in report[group].values()} == {801}
    assert not {"ndcg@10", "mrr"} & report["path"]["union"].keys()
    assert report["path"]["union"]["recall@300"] > 0.9
    questions = report["questions"]
    cases = {question: questions[question]["cases"] for question in questions}
    assert cases == {NEXT: 40 * 18, FIRST: 41, NEW: 40}
    assert questions[FIRST]["ours"]["hit@10"] is None and questions[FIRST]["verdict"] == {
        "verdict": None,
        "cases": 41,
    }
    measured = questions[NEXT]
    assert {"popularity, 1 h", "popularity, 30 d", "transitions", "item-kNN", "EASE"} <= measured[
        "lists"
    ].keys()
    low, high = measured["lists"]["transitions"]["intervals"]["hit@10"]
    assert low <= measured["lists"]["transitions"]["hit@10"] <= high
    assert measured["lists"]["transitions"]["hit@10"] > 0.8  # item 7 places on follows each


def test_an_item_that_the_viewer_had_is_not_asked_unless_items_repeat(tmp_path: Path) -> None:
    clicks = [clicked(1 + n * 60_000, f"v{n % 7}", user="u") for n in range(80)]
    folder = write(tmp_path, *clicks)
    report = report_of(folder, judge_from_ms=0)
    assert report["targets"] == 7 and report["seen_before"] == 73
    (folder / "app.yaml").write_text("shown: clicks\nevents: {click: positive}\nrepeats: true\n")
    dataset = open_dataset(folder, read_app(folder / "app.yaml"))
    probe = probe_for(dataset, ReplayOptions(judge_from_ms=0))
    report = replay_data(dataset, OPTIONS, outputs=Outputs(probe=probe)).retrieval or {}
    assert report["targets"] == 80 and report["seen_before"] == 0
    assert report["questions"][NEXT]["lists"]["transitions"]["hit@10"] == pytest.approx(72 / 79, abs=1e-4)


def test_the_items_of_a_basket_are_due_together(tmp_path: Path) -> None:
    folder = write(
        tmp_path, clicked(10, "v1"), clicked(20, "v2"), clicked(20, "v3", user="w"),
        clicked(20, "v4"), clicked(20, "v2"), clicked(30, "v5"),
    )  # fmt: skip
    dataset = open_dataset(folder)
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0))
    due = [targets.take(event, NEXT) for event in dataset.events()]
    assert [items for items in due if items] == [["v1"], ["v2", "v4"], ["v3"], ["v5"]]


def test_each_question_has_as_many_cases_as_wished(tmp_path: Path) -> None:
    """600 users: a first click, nine more in the visit, one a day later, and that again."""
    times = [n * 60_000 for n in range(10)] + [DAY_MS, DAY_MS]
    items = [*range(10), 10, 3]
    clicks = [
        clicked(1 + time_ms, f"v{items[n]}", user=f"u{user}")
        for n, time_ms in enumerate(times)
        for user in range(600)
    ]
    dataset = open_dataset(write(tmp_path, *clicks))
    visits, drawn = Visits(), Counter[str]()
    targets = Targets(dataset, ReplayOptions(judge_from_ms=0), cases=300)
    for event in dataset.events():
        if isinstance(event, Engagement):
            question = visits.take(str(event.user_id), event.time_ms)
            drawn[question] += len(targets.take(event, question))
    assert 250 < drawn[NEXT] < 350 and 250 < drawn[NEW] < 350
    assert 500 < drawn[FIRST] < 700  # half of them repeat an item: not counted as cases


def test_a_measured_replay_of_clicks_draws_the_same_lists(tmp_path: Path) -> None:
    folder = write(tmp_path, *(clicked(n * 9_000, f"v{n * n % 23}", user=f"u{n % 4}") for n in range(1, 80)))
    (folder / "app.yaml").write_text("shown: clicks\nevents: {click: positive}\nsources: {popular: 6}\n")
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


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30))
def test_metrics_of_one_wanted_item_are_those_of_its_rank(ranks: list[int]) -> None:
    slow = [
        [0 < r <= 10, 0 < r <= 100, 0 < r <= 300, 1 / math.log2(r + 1) if 0 < r <= 10 else 0.0,
         1 / r if r else 0.0]
        for r in ranks
    ]  # fmt: skip
    assert case_metrics(ranks) == pytest.approx(np.array(slow, float))
