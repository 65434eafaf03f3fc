import numpy as np

from recsys.events.event_types import Engagement, Impression, ServedItem
from replay.player import ScoredImpression
from replay.replay_run import ScoreRecorder


def scored(request: str, *items: str | int, step: int = 1, **context: str) -> ScoredImpression:
    impression = Impression(
        time_ms=5, request_id=request, user_id="u", items=[ServedItem(item_id=i) for i in items],
        context=context,
    )  # fmt: skip
    scores = np.arange(3 * len(items), dtype=np.float32).reshape(-1, 3) / 10
    return ScoredImpression(impression, scores, "main", 0, step)


def happened(request: str, item: str | int, kind: str) -> Engagement:
    return Engagement(time_ms=9, request_id=request, user_id="u", item_id=item, kind=kind)


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
