from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from recsys.events.event_types import AGAIN, UNPROVEN, USER_PROVEN, Engagement, Impression, ServedItem
from replay import replay_run
from replay.player import ScoredImpression
from replay.predictions import Predictions, PredictionsFile, joined
from replay.replay_run import ScoreRecorder


def scored(
    request: str, *items: str | int, step: int = 1, at_ms: int = 5, **context: str
) -> ScoredImpression:
    impression = Impression(
        time_ms=at_ms, request_id=request, user_id="u", items=[ServedItem(item_id=i) for i in items],
        context=context,
    )  # fmt: skip
    scores = np.arange(3 * len(items), dtype=np.float32).reshape(-1, 3) / 10
    return ScoredImpression(impression, scores, "main", 0, step)


def happened(request: str, item: str | int, kind: str, at_ms: int = 9) -> Engagement:
    return Engagement(time_ms=at_ms, request_id=request, user_id="u", item_id=item, kind=kind)


def test_scores_stand_beside_what_happened_in_the_order_given() -> None:
    its = ScoreRecorder(["click", "like"], "page")
    its.happened(happened("r2", 7, "like"))  # before it is scored
    its.scored(scored("r1", "a", "b", page="home"))
    its.scored(scored("r2", "7", step=2))
    for kind in ("click", "click", "skip"):
        its.happened(happened("r1", "b", kind))
    its.happened(happened("r9", "a", "click"))
    out = its.predictions()
    assert out.request_id == ["r1", "r1", "r2"] and out.item_id == ["a", "b", "7"]
    assert out.version == ["0.1", "0.1", "0.2"] and out.line == ["main"] * 3
    assert list(out.labels["click"]) == [0, 1, 0] and list(out.labels["like"]) == [0, 0, 1]
    np.testing.assert_allclose(out.scores["click"], [0.0, 0.3, 0.0])
    np.testing.assert_allclose(out.scores["like"], [0.1, 0.4, 0.1])
    assert its.contexts().tolist() == ["home", "home", ""]


def test_of_nothing_there_are_empty_columns() -> None:
    its = ScoreRecorder(["click"], None)
    out = its.predictions()
    assert out.request_id == [] and len(out.scores["click"]) == len(out.labels["click"]) == 0
    assert len(its.contexts()) == 0


def test_a_list_without_items_adds_no_row() -> None:
    its = ScoreRecorder(["click"], None)
    for list_of in (scored("r1"), scored("r2", "a", "b"), scored("r3")):
        its.scored(list_of)
    out = its.predictions()
    assert out.request_id == ["r2", "r2"] and out.item_id == ["a", "b"]
    np.testing.assert_allclose(out.scores["click"], [0.0, 0.3])


def test_blocks_are_written_once_their_labels_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_run, "_BLOCK", 2)
    blocks: list[Predictions] = []
    ours = ScoreRecorder(["click"], None, horizon_ms=100, write=blocks.append)
    whole = ScoreRecorder(["click"], None, horizon_ms=100)
    events = [
        scored("r1", "a", "b", at_ms=0), scored("r2", "a", at_ms=50), happened("r1", "b", "click", 90),
        scored("r3", "a", at_ms=101), happened("r1", "a", "click", 102),  # too late
        happened("r2", "a", "click", 140), scored("r4", "a", at_ms=300),
    ]  # fmt: skip
    written = []
    for event in events:
        for recorder in (ours, whole):
            if isinstance(event, Engagement):
                recorder.happened(event)
            else:
                recorder.scored(event)
        written.append(sum(len(block.request_id) for block in blocks))
    assert written == [0, 0, 0, 2, 2, 2, 4]  # the newest may still get a label
    ours.finish()
    rows, expected = joined(blocks, ["click"]), whole.predictions()
    assert rows.request_id == expected.request_id == ["r1", "r1", "r2", "r3", "r4"]
    assert list(rows.labels["click"]) == list(expected.labels["click"]) == [0, 1, 1, 0, 0]
    np.testing.assert_array_equal(rows.scores["click"], expected.scores["click"])


def test_a_label_outlives_the_block_that_ends_before_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_run, "_BLOCK", 2)
    recorder = ScoreRecorder(["click"], None, horizon_ms=100)
    recorder.scored(scored("r1", "a", "b", at_ms=0))
    recorder.scored(scored("r2", "a", at_ms=10))
    recorder.happened(happened("r2", "a", "click", 20))
    recorder.scored(scored("r3", "a", at_ms=1_000))  # after a pause both are due at once
    assert list(recorder.predictions().labels["click"]) == [0, 0, 1, 0]


def test_ids_turn_into_text_with_the_first_one_that_is_no_number(tmp_path: Path) -> None:
    file = PredictionsFile(tmp_path / "p.parquet", ["click"])
    for item in (7, "v8", 9):
        recorder = ScoreRecorder(["click"], None, write=file.write)
        recorder.scored(scored("r", item))
        recorder.finish()
    assert file.finish().item_id.tolist() == ["7", "v8", "9"]
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_an_engagement_without_a_request_belongs_to_the_newest_list_with_its_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_run, "_BLOCK", 1)
    recorder = ScoreRecorder(["click"], None, horizon_ms=100)
    first, second = scored("r1", "a", "b", at_ms=0), scored("r2", "a", at_ms=10)
    for each in (first, second):
        recorder.shown(each.impression)
    for item in ("a", "b", "never shown"):
        recorder.happened(happened("", item, "click", 20))
    recorder.scored(first)  # scores come later
    recorder.scored(second)
    recorder.scored(scored("r3", "c", at_ms=1_000))
    assert ("u", "b") not in recorder._newest, "its list is written"
    assert list(recorder.predictions().labels["click"]) == [0, 1, 1, 0]


def test_only_what_the_joiner_learns_is_a_label() -> None:
    recorder = ScoreRecorder(["click"], None, horizon_ms=100)
    listed = scored("r1", "late", "late of the newest", "in time", "unproven", "user", "again")
    recorder.shown(listed.impression)  # at 5
    recorder.happened(happened("r1", "in time", "click", 104))
    for item, proof in (("unproven", UNPROVEN), ("user", USER_PROVEN), ("again", AGAIN)):
        recorder.happened(replace(happened("r1", item, "click"), proof=proof))
    recorder.happened(happened("r1", "late", "click", 105))
    recorder.happened(happened("", "late of the newest", "click", 105))
    recorder.scored(listed)
    assert list(recorder.predictions().labels["click"]) == [0, 0, 1, 0, 0, 0]
