import numpy as np

from experiments.evidence.gates import ScoreMoments, failures, logits_of
from recsys.config.promotion_config import PromotionConfig

RULES = PromotionConfig()
COSTS = {"live_rank_us": 800, "rank_us": 800, "live_bytes": 1e6, "bytes": 1e6}
DRAW = np.random.default_rng(1)
LIVE = 1 / (1 + np.exp(-np.random.default_rng(0).normal(-0.5, 1, 1_000)))


LABELS = (DRAW.random(1_000) < LIVE).astype(float)


def scores(candidate: np.ndarray, live: np.ndarray = LIVE) -> ScoreMoments:
    its = ScoreMoments()
    for at in range(0, len(live), 100):
        here = slice(at, at + 100)
        its.add(live[here], candidate[here], LABELS[here])
    return its


def test_live_itself_passes() -> None:
    assert failures(scores(LIVE), RULES, COSTS | {"live_picks": 0.1, "picks": 0.1, "pickers": 90}) == []


def test_one_number_that_is_none_is_enough() -> None:
    candidate = LIVE.copy()
    candidate[7] = np.nan
    assert failures(scores(candidate), RULES) == ["1 of its scores aren't finite"]


def test_inflated_scores_and_constant_ones_fail() -> None:
    inflated = 1 / (1 + np.exp(-(logits_of(LIVE) + 2)))
    (reason,) = failures(scores(inflated), RULES)
    assert reason.startswith("its mean logit is 1.") and "expected within 1.0 of live's -0.5" in reason
    (reason,) = failures(scores(np.full(1_000, LIVE.mean())), RULES)
    assert reason.startswith("the spread of its logits is 0.00, expected 0.3")
    (reason,) = failures(scores(1 / (1 + np.exp(-4 * (logits_of(LIVE) + 0.5) + 0.5))), RULES)
    assert "the spread of its logits is 3.8" in reason


def test_a_live_line_that_knows_nothing_yet_holds_nobody_back() -> None:
    assert failures(scores(LIVE, np.full(1_000, 0.9)), RULES) == []


def test_where_negatives_are_sampled_the_kept_ones_represent_the_others() -> None:
    """Otherwise a third of what is kept would be positive, and a candidate that predicts a twentieth
    would be refused."""
    draw = np.random.default_rng(2)
    candidate = 1 / (1 + np.exp(-draw.normal(-3, 0.5, 20_000)))
    labels = (draw.random(20_000) < candidate).astype(float)
    kept = (labels > 0) | (draw.random(20_000) < 0.1)
    moments = ScoreMoments()
    moments.add(
        np.full(kept.sum(), 0.9), candidate[kept], labels[kept], np.where(labels > 0, 1.0, 10.0)[kept]
    )
    assert failures(moments, RULES) == [] and abs(moments.weight / 20_000 - 1) < 0.05


def test_few_scores_say_nothing_of_their_spread() -> None:
    its = ScoreMoments()
    its.add(LIVE[:100], np.full(100, 0.999), LABELS[:100])
    assert failures(its, RULES) == []


def test_a_slow_a_large_and_a_narrow_candidate_fail() -> None:
    fine = scores(LIVE)
    (slow,) = failures(fine, RULES, COSTS | {"rank_us": 1_300})
    assert slow == "it takes 1300 µs to rank a list, expected at most 1.5 times live's 800"
    (large,) = failures(fine, RULES, COSTS | {"bytes": 3e6})
    assert "2.9 MiB, expected at most 2.0 times live's 1.0" in large
    (narrow,) = failures(fine, RULES, {"live_picks": 0.1, "picks": 0.5, "pickers": 90})
    assert narrow.startswith("its ten commonest picks have 50% of 90 users' lists")
